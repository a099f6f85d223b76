from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_ada_guard import guard_messages


def test_roles_and_text_are_those_of_the_chat_template() -> None:
    messages = [SystemMessage("Be brief."), HumanMessage("Hello?"), AIMessage("Hello.")]
    assert guard_messages(messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
    ]


def test_tool_calls_and_their_results_keep_their_place() -> None:
    call = AIMessage("", tool_calls=[{"name": "clock", "args": {"zone": "UTC"}, "id": "1"}])
    asked, answered = guard_messages([call, ToolMessage("12:00", tool_call_id="1")])
    assert asked["tool_calls"][0]["function"]["name"] == "clock"
    assert answered["role"] == "tool"
    assert answered["content"] == "12:00"
