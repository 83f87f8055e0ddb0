"""What nodes are asked, as data, and within which limits."""

import math

import pytest

from gaelp_tasks.clients import Limits, requests
from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.models import FunctionCall, Message, ToolCall, as_messages
from gaelp_tasks.settings import Settings

# --- requests ---------------------------------------------------------------------------------------


def chat(messages="Hi", *, context=0, format=None, tools=None, think=None, **options):  # noqa: A002  Ollama's name
    return requests.chat_request(
        as_messages(messages),
        model="m",
        keep_alive=300,
        num_ctx=context,
        format=format,
        tools=tools,
        think=think,
        options=options,
    )


def test_a_plain_chat_sends_no_field_that_was_not_asked_for():
    assert chat() == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "keep_alive": 300,
    }


def test_everything_asked_for_is_sent():
    tool = {"type": "function", "function": {"name": "f"}}
    request = chat(context=4096, format="json", tools=(tool,), think=False, temperature=0, seed=None)
    assert request["options"] == {"temperature": 0, "num_ctx": 4096}
    assert (request["format"], request["tools"], request["think"]) == ("json", [tool], False)


def test_an_argument_that_is_null_survives_the_way_to_the_node():
    call = ToolCall(function=FunctionCall(name="f", arguments={"x": None}))
    [message] = chat([Message(role="assistant", tool_calls=(call,))])["messages"]
    assert message["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": None}}}]


@pytest.mark.parametrize("name", ["num_ctx", "keep_alive", "options", "stream"])
def test_a_keyword_that_a_node_would_ignore_is_refused(name):
    with pytest.raises(InvalidInvocation, match=f"^{name} is no model option: "):
        chat(**{name: 1})


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, object()])
def test_what_json_cannot_say_is_refused_before_it_is_sent(value):
    with pytest.raises(InvalidInvocation, match="cannot be written as JSON"):
        requests.body({"temperature": value})


@pytest.mark.parametrize(
    ("given_", "sent"),
    [
        (300, 300),
        (300.0, 300),
        (0, 0),
        (0.5, "0.500s"),
        (-1, -1),
        (-0.5, -1),
        (math.inf, -1),
        ("300", 300),
        ("-1", -1),
        ("5m", "5m"),
    ],
)
def test_keep_alive_is_written_as_ollama_takes_it(given_, sent):
    assert requests.keep_alive_value(given_) == sent


# --- limits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"connect_s": 0}, {"stall_s": -1}, {"load_s": math.inf}, {"total_s": math.nan}]
)
def test_a_limit_that_is_none_is_said(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Limits(**wrong)


def test_limits_come_from_the_settings():
    settings = Settings(connect_timeout_s=1, load_timeout_s=2, first_token_timeout_s=3, stall_timeout_s=0)
    assert Limits.from_settings(settings) == Limits(connect_s=1, load_s=2, first_token_s=3, stall_s=0)
