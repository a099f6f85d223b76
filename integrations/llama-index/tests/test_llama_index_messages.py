from types import SimpleNamespace

from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from ada_guard import Guard
from ada_guard.testing import ScriptedSidecar
from llama_index.llms.ada_guard import AdaGuardLLM, guard_messages, judged_against
from llama_index.llms.ada_guard.messages import guard_tools
from llama_index.llms.ada_guard.testing import ScriptedLLM

CALL = {"type": "function", "id": "1", "function": {"name": "search", "arguments": '{"query": "kites"}'}}


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


def test_other_names_of_the_assistant_are_the_assistant() -> None:
    messages = [ChatMessage(role=role, content="Hi") for role in (MessageRole.CHATBOT, MessageRole.MODEL)]
    assert [message["role"] for message in guard_messages(messages)] == ["assistant", "assistant"]


def test_a_tool_call_and_its_result_keep_their_place() -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="search", tool_kwargs={"query": "kites"})
    messages = [
        ChatMessage(role=MessageRole.ASSISTANT, content=[TextBlock(text="I look."), call]),
        ChatMessage(role=MessageRole.TOOL, content="two", additional_kwargs={"tool_call_id": "1"}),
    ]
    assert guard_messages(messages) == [
        {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
        {"role": "tool", "content": "two", "tool_call_id": "1"},
    ]


def test_a_tool_call_is_found_where_integrations_kept_it_before() -> None:
    function = SimpleNamespace(name="search", arguments='{"query": "kites"}')
    for kept in ({"tool_calls": [SimpleNamespace(id="1", function=function)]}, {"tool_calls": [CALL]}):
        message = ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs=kept)
        assert guard_messages([message])[0]["tool_calls"] == [CALL]
    legacy = {"function_call": {"name": "search", "arguments": '{"query": "kites"}'}}
    message = ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs=legacy)
    assert guard_messages([message])[0]["tool_calls"] == [{**CALL, "id": "0"}]


def test_the_arguments_of_a_call_are_found_by_any_of_their_names() -> None:
    for name in ("arguments", "input", "args", "parameters"):
        kept = {"tool_calls": [{"id": "1", "name": "search", name: {"query": "kites"}}]}
        message = ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs=kept)
        assert guard_messages([message])[0]["tool_calls"] == [CALL]


def test_a_call_without_known_arguments_is_told_whole() -> None:
    kept = {"tool_call": {"id": "1", "name": "search", "body": "kites"}}
    message = ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs=kept)
    [call] = guard_messages([message])[0]["tool_calls"]
    assert call["function"]["arguments"] == '{"id": "1", "name": "search", "body": "kites"}'


def test_reasoning_is_told_apart_from_text() -> None:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=[ThinkingBlock(content="Hm."), TextBlock(text="Yes.")])
    assert guard_messages([message]) == [{"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}]


def test_what_is_no_text_is_named() -> None:
    message = ChatMessage(role=MessageRole.USER, content=[TextBlock(text="Look"), ImageBlock(url="http://a/b.png")])
    assert guard_messages([message])[0]["content"] == [{"type": "text", "text": "Look"}, {"type": "image"}]


def test_tools_are_those_of_the_chat_template() -> None:
    openai = {"type": "function", "function": {"name": "search", "parameters": {}}}
    anthropic = {"name": "search", "description": "Searches.", "input_schema": {"type": "object"}}
    assert guard_tools([openai, anthropic, {"type": "web_search"}, "odd"]) == [
        openai,
        {
            "type": "function",
            "function": {"name": "search", "description": "Searches.", "parameters": {"type": "object"}},
        },
    ]
    assert guard_tools(None) is None
    assert guard_tools(["odd"]) is None


def test_an_answer_is_judged_against_what_the_llm_was_sent_or_against_the_question() -> None:
    asked = []

    class Sidecar(ScriptedSidecar):
        def open(self, conversation, **kwargs):  # type: ignore[no-untyped-def]  # only notes
            asked.append([dict(message) for message in conversation.messages])
            return super().open(conversation, **kwargs)

    llm = AdaGuardLLM(llm=ScriptedLLM.saying("two"), guard=Guard.for_sidecar(Sidecar()))
    llm.chat([ChatMessage(role=MessageRole.USER, content="Context: kites. How many?")])
    with judged_against("How many?"):
        stream = llm.stream_chat([ChatMessage(role=MessageRole.USER, content="Context: kites. How many?")])
    assert list(stream)  # what it is judged against was settled when the LLM was called
    assert [messages[0]["content"] for messages in asked] == ["Context: kites. How many?", "How many?"]
