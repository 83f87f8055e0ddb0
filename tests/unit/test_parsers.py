"""The built-in parsers, and what fits a class."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gaelp_tasks.errors import AnswerUnfit
from gaelp_tasks.models.shape import as_format, as_json, fit, read_json
from gaelp_tasks.texts.parsers import code_blocks, items, json_value, lines
from support.fakes import assert_one_sentence

values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


class Town(BaseModel):
    name: str
    people: int


@given(values)
def test_json_is_found_alone_in_a_fence_and_in_prose(value):
    text = json.dumps(value)
    assert json_value(text) == value
    assert json_value(f"Sure:\n```json\n{text}\n```\nDone.") == value
    if isinstance(value, dict | list):
        assert json_value(f"Here you are: {text}. Anything else") == value


@pytest.mark.parametrize("text", ["", "no JSON here", "{'a': 1}", "[" * 100_000, '{"a": 1', "NaN"])
def test_a_text_without_json_is_refused(text):
    with pytest.raises(ValueError, match=r"no JSON|JSON"):
        json_value(text)


def test_code_is_given_as_data():
    assert code_blocks("```py a.py\nx\n```") == [{"language": "py", "text": "x", "name": "a.py"}]


def test_lines_are_those_that_say_something():
    assert lines(" a \n\n\tb\r\n") == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Here:\n- a\n* b\n  goes on\n\nThat was it.", ["a", "b goes on"]),
        ("1. a\n2) b\n(3) c\n\u2022 d", ["a", "b", "c", "d"]),
        ("a\nb", ["a", "b"]),
        ("- a\n  - b", ["a", "b"]),
        ("-5 is no item", ["-5 is no item"]),
        ("", []),
    ],
)
def test_the_items_of_a_list(text, found):
    assert items(text) == found


def test_an_answer_that_fits_a_class_is_its_instance_with_or_without_a_fence():
    text = '{"name": "Ulm", "people": 3}'
    assert fit(text, Town) == fit(f"```json\n{text}\n```\n", Town) == Town(name="Ulm", people=3)


@pytest.mark.parametrize(
    "text", ["", "SECRET", '{"name": "SECRET"}', '{"name": "SECRET", "people": "SECRET"}', "```"]
)
def test_an_answer_that_does_not_fit_says_where_and_does_not_repeat_itself(text):
    with pytest.raises(AnswerUnfit, match="no Town") as caught:
        fit(text, Town)
    assert "SECRET" not in str(caught.value)
    assert_one_sentence(str(caught.value))


def test_a_class_is_its_schema_and_a_schema_is_itself():
    assert as_format(Town) == Town.model_json_schema()
    assert as_format({"type": "object"}) == {"type": "object"}
    assert (as_format("json"), as_format(None)) == ("json", None)


def test_models_become_json_and_what_cannot_is_refused():
    assert as_json({"a": [Town(name="Ulm", people=3)], "b": (1, None)}) == {
        "a": [{"name": "Ulm", "people": 3}],
        "b": [1, None],
    }
    deep = []
    for _ in range(200):
        deep = [deep]
    for value in (object(), deep, {"a": object}):
        with pytest.raises(ValueError, match=r"serialize|deep|recursion"):
            as_json(value)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[" * 100_000, "[" * 100 + "]" * 100])
def test_json_that_no_other_reader_takes_is_refused(text):
    with pytest.raises(ValueError, match=r"JSON|nested"):
        read_json(text)
