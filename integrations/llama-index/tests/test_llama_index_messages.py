from llama_index.core.base.llms.types import ChatMessage, MessageRole

from llama_index.llms.ada_guard import guard_messages


def test_roles_and_text_are_those_of_the_chat_template() -> None:
    messages = [
        ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
        ChatMessage(role=MessageRole.USER, content="Hello?"),
    ]
    assert guard_messages(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
    ]


def test_a_message_without_text_is_an_empty_text() -> None:
    assert guard_messages([ChatMessage(role=MessageRole.ASSISTANT)]) == [{"role": "assistant", "content": ""}]
