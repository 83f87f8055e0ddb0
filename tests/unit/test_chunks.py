"""Chunks: exact, bounded, overlapping by whole sentences, and nothing of the text is lost."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.texts.chunks import Span, chunks, sentences

texts = st.lists(
    st.one_of(
        st.text(max_size=30), st.sampled_from(["A word. ", "Why? ", "\n\n", "\n", " ", "\u3002", "x" * 50])
    ),
    max_size=20,
).map("".join)
sizes = st.integers(1, 60)


@given(texts, sizes, st.data())
def test_every_character_is_in_a_chunk_and_every_chunk_is_a_piece_of_the_text(text, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = chunks(text, size=size, overlap=overlap)
    covered = set()
    for span in found:
        assert 0 <= span.start < span.end <= len(text)
        assert span.end - span.start <= size
        assert span.of(text) == span.of(text).strip()
        covered |= set(range(span.start, span.end))
    assert {at for at, char in enumerate(text) if not char.isspace()} <= covered


@given(texts, sizes, st.data())
def test_chunks_go_forward_and_share_no_more_than_the_overlap(text, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    found = chunks(text, size=size, overlap=overlap)
    for one, following in pairwise(found):
        assert one.start < following.start
        assert one.end < following.end
        assert one.end - following.start <= overlap


@given(texts)
def test_sentences_lie_side_by_side_and_say_something(text):
    found = sentences(text)
    assert all(one.end <= following.start for one, following in pairwise(found))
    assert all(span.of(text).strip() for span in found)
    said = "".join(span.of(text) for span in found)
    assert "".join(said.split()) == "".join(text.split())


def test_a_text_that_fits_is_one_chunk():
    assert chunks("One. Two.", size=9, overlap=0) == [Span(0, 9)]


def test_chunks_end_with_a_paragraph_rather_than_in_the_next_one():
    text = "First thing. Second thing.\n\nThird thing. Fourth thing, which is long."
    assert [span.of(text) for span in chunks(text, size=45, overlap=0)] == [
        "First thing. Second thing.",
        "Third thing. Fourth thing, which is long.",
    ]


def test_neighbours_share_whole_sentences():
    text = "Aaaa. Bbbb. Cccc. Dddd. Eeee."
    assert [span.of(text) for span in chunks(text, size=18, overlap=6)] == [
        "Aaaa. Bbbb. Cccc.",
        "Cccc. Dddd. Eeee.",
    ]


def test_a_long_sentence_is_cut_between_words_and_a_long_word_where_it_must():
    text = "some words " + "x" * 25
    assert [span.of(text) for span in chunks(text, size=10, overlap=0)] == [
        "some words",
        "x" * 10,
        "x" * 10,
        "x" * 5,
    ]


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_a_blank_text_has_no_chunks(text):
    assert chunks(text) == sentences(text) == []


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (5, 5), (5, -1)])
def test_sizes_that_cannot_be_are_refused(size, overlap):
    with pytest.raises(ValueError, match="chunk"):
        chunks("text", size=size, overlap=overlap)


def test_sentences_end_at_marks_and_lines():
    text = 'One is 3.5 m. "Two!" Three?\nFour\u3002Five'
    assert [span.of(text) for span in sentences(text)] == [
        "One is 3.5 m.",
        '"Two!"',
        "Three?",
        "Four\u3002",
        "Five",
    ]
