"""Marks of citations, read as the answer streams: however it is cut, and never in code."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.texts.citations import MARK, MarkReader

SOURCES = (1, 2, 3)
parts = st.one_of(
    st.sampled_from(
        [
            "blue",
            " ",
            "  ",
            "\n",
            ".",
            "a",
            "`",
            "```",
            "~~~",
            "```py\n",
            "[",
            "]",
            "[1]",
            "[9]",
            "[1, 9]",
            "[2-4]",
        ]
    ),
    st.sampled_from(
        ["[0]", "(", ")", "1", "9", ",", "_", "x[", "[12", "[ 3 ;", "\u2013", "\t", "[^1]", "[[2]]"]
    ),
    st.text(max_size=3),
)
texts = st.lists(parts, max_size=25).map("".join)


def read(*pieces, numbers=SOURCES):
    reader = MarkReader(numbers)
    return "".join([reader.feed(piece) for piece in pieces]) + reader.end(), list(reader.cited)


@given(texts, st.data())
def test_any_split_of_a_text_gives_the_same_answer(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(*pieces) == read(*text) == read(text)


@given(texts)
def test_an_answer_that_was_cleaned_is_clean(text):
    clean, cited = read(text)
    assert read(clean) == (clean, cited)


@given(texts)
def test_with_a_source_for_every_number_nothing_is_changed(text):
    assert read(text, numbers=range(1000))[0] == text


@given(texts)
def test_only_marks_and_blanks_are_taken_out(text):
    clean, _ = read(text)

    def bones(of):
        return re.sub(r"[\s\d\[\],;\u2013-]", "", of)

    assert bones(clean) == bones(text)


@given(st.text(alphabet=st.characters(exclude_characters="["), max_size=60))
def test_a_text_without_brackets_passes_as_it_is(text):
    assert read(text) == (text, [])


@given(texts)
def test_nothing_but_blanks_and_an_open_bracket_is_ever_held_back(text):
    reader = MarkReader(range(1000))
    sent = ""
    for at, char in enumerate(text, start=1):
        sent += reader.feed(char)
        held = text[:at][len(sent) :]
        assert re.fullmatch(r"[ \t]*(\[[\d,;\u2013 \t-]*)?", held)


@pytest.mark.parametrize(
    ("text", "clean", "cited"),
    [
        ("The sky is blue [1].", "The sky is blue [1].", [1]),
        ("The sky is blue[2], so [1].", "The sky is blue[2], so [1].", [2, 1]),
        ("Blue [9].", "Blue.", []),
        ("Blue[9].", "Blue.", []),
        ("Blue [9] sky", "Blue sky", []),
        ("Blue [1][9][2] sky", "Blue [1][2] sky", [1, 2]),
        ("Blue [9][1].", "Blue [1].", [1]),
        ("Blue [1] [2].", "Blue [1] [2].", [1, 2]),
        ("Blue [1, 3; 9].", "Blue [1, 3].", [1, 3]),
        ("Blue [ 1 ,3 ].", "Blue [ 1 ,3 ].", [1, 3]),
        ("Blue [2-9].", "Blue [2, 3].", [2, 3]),
        ("Blue [1\u20133].", "Blue [1\u20133].", [1, 2, 3]),
        ("[9] First\n[8]\n- [7] third", "First\n\n- third", []),
        ("(see [9])", "(see)", []),
        ("Blue [9]", "Blue", []),
        ("Blue [1", "Blue [1", []),
        ("In [2024] it was", "In [2024] it was", []),
        ("[a] [^1] [] [1a]", "[a] [^1] [] [1a]", []),
    ],
)
def test_marks_in_prose(text, clean, cited):
    assert read(text) == (clean, cited)


@pytest.mark.parametrize(
    "text",
    [
        "a[0] and b[9] and x1[9]",
        "f(x)[9], a[1][9], my_list_[9], self.items[9], {}[9], 'ab'[9]",
        "list[0] and names [0]",
        "`items[9] = [9, 8]` and ``[`9] [9]``",
        "```python\nvalues = [9]\nprint(values [9])\n```",
        "~~~\n[9]\n```\n[9]\n~~~",
        "````md\n```py\n[9]\n```\n[9]\n````",
        "```md\n```py\n[9]\n```\n[9]\n```",
        "1. So:\n   ```\n   [9]\n   ```",
        "```py\n[9]",
    ],
)
def test_code_passes_untouched(text):
    assert read(text) == (text, [])


@pytest.mark.parametrize(
    "code",
    [
        "`[9]`",
        "```\n[9]\n```\n",
        "```py\n[9]\n```\n",
        "```md\n```py\n[9]\n```\n```\n",
        "a ```[9]``` b",
        "a ` b\n",
    ],
)
def test_after_code_marks_count_again(code):
    assert read(f"{code} so [9] [1]")[0].startswith(code)
    assert read(f"{code} so [9] [1]")[1] == [1]
    assert read(f"{code} so [9] [1]")[0].endswith("so [1]")


def test_a_mark_in_words_is_one_for_the_pattern_too():
    assert MARK.fullmatch("[1, 2-3; 4]")
    assert not MARK.fullmatch("[]")
