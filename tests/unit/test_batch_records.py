"""What is told of the lines of a batch that have ended, in either form."""

import json

import pytest

from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_file import EndedLine, Form, record

RESULT = {
    "id": "i",
    "text": "It is.",
    "model": "m",
    "stop_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}


def ended(form, outcome=LineOutcome.DONE, result=RESULT, **more):
    known = {
        "number": 7,
        "custom_id": "a",
        "form": form,
        "embeds": False,
        "outcome": outcome,
        "code": "",
        "why": "",
        "task_id": "t1",
        "ended_at_s": 5.5,
        "result": json.dumps(result) if result else "",
    }
    return EndedLine(**known | more)


def test_a_result_of_ours_is_the_result_mapping():
    assert record(ended(Form.OWN)) == {"custom_id": "a", "result": RESULT, "error": None}


def test_a_result_of_openai_is_a_chat_completion():
    told = record(ended(Form.CHAT))
    assert (told["id"], told["custom_id"], told["error"]) == ("batch_req_t1", "a", None)
    assert (told["response"]["status_code"], told["response"]["request_id"]) == (200, "t1")
    body = told["response"]["body"]
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 5, "m")
    [choice] = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "It is.", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_tool_call_is_told_as_openai_tells_it():
    call = {"function": {"name": "f", "arguments": {"x": "ü"}, "index": None}, "id": None}
    [choice] = record(ended(Form.CHAT, result=RESULT | {"tool_calls": [call]}))["response"]["body"]["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"x": "ü"}'}}
    ]


def test_vectors_are_told_in_order():
    result = {"model": "m", "embeddings": [[1.0], [2.0]], "usage": {"prompt_tokens": 3}}
    body = record(ended(Form.EMBEDDINGS, result=result))["response"]["body"]
    assert [(one["index"], one["embedding"]) for one in body["data"]] == [(0, [1.0]), (1, [2.0])]
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("outcome", "code", "told"),
    [
        (LineOutcome.EXPIRED, "", "batch_expired"),
        (LineOutcome.CANCELLED, "", "batch_cancelled"),
        (LineOutcome.FAILED, "NodeFailed", "NodeFailed"),
        (LineOutcome.INVALID, "invalid_line", "invalid_line"),
    ],
)
@pytest.mark.parametrize("form", Form)
def test_an_error_names_its_line_in_either_form(form, outcome, code, told):
    found = record(ended(form, outcome, None, code=code, why="So it is."))
    assert found["error"] == {"code": told, "message": "So it is.", "line": 7}
    assert found["custom_id"] == "a"
    assert found.get("response") is None
    assert found.get("result") is None


def test_a_line_of_ours_that_was_cut_keeps_its_text_beside_the_error():
    cut = RESULT | {"stop_reason": "deadline"}
    found = record(ended(Form.OWN, LineOutcome.FAILED, cut, code="deadline", why="Cut."))
    assert (found["result"], found["error"]["code"]) == (cut, "deadline")
