"""Answers that rest on documents: what is chosen, what the model is shown, what is cited."""

import math
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.agents import ResearchAgent
from gaelp_tasks.agents.sources import behind, best, cut, similarity
from gaelp_tasks.clients import BaseOllamaClient, ChatResponse, ScriptedClient
from gaelp_tasks.clients.base import Embeddings
from gaelp_tasks.errors import InvalidInvocation, ModelMissing, NodeFailed
from gaelp_tasks.models import Document

TOPICS = ("cat", "moon", "tax")
CATS = Document(text="The cat sleeps all day.", title="On cats", source="cats.txt")
MOON = Document(text="The moon is far away.")
LONG = [
    f"About the {topic}, part {part}: {'it goes on and on ' * 25}." for part in range(4) for topic in TOPICS
]


class Library(ScriptedClient):
    """A client whose vectors tell which topics a text is about."""

    async def embed(self, texts, *, model=None):
        self.embedded.append(tuple(texts))
        vectors = tuple(tuple(float(text.lower().count(topic)) for topic in TOPICS) for text in texts)
        return Embeddings(vectors=vectors, model=model or "")


def shown(client):
    """What the model was asked, without the system prompt."""
    return client.asked[-1].messages[-1].content


async def ask(client, documents, question="What does the cat do?", **options):
    return await ResearchAgent(client).get_response(question, documents=documents, **options)


async def test_documents_that_fit_are_shown_whole_numbered_and_without_embeddings():
    client = Library(["It sleeps [1]."])
    await ask(client, [CATS, MOON])
    assert shown(client).startswith(
        "[1] On cats\nThe cat sleeps all day.\n\n[2] The moon is far away.\n\nAnswer from these sources."
    )
    assert shown(client).endswith("Question: What does the cat do?")
    assert client.asked[0].messages[0].content == ResearchAgent.system_prompt
    assert client.embedded == []


async def test_a_citation_points_to_the_very_characters_of_its_document():
    client = Library(["It sleeps [1]."])
    answer = await ask(client, [CATS, MOON])
    assert answer.text == "It sleeps [1]."
    assert answer.data["citations"] == [
        {
            "number": 1,
            "document": 0,
            "title": "On cats",
            "source": "cats.txt",
            "start": 0,
            "end": 23,
            "text": "The cat sleeps all day.",
            "by": "model",
        }
    ]


async def test_a_citation_of_nothing_is_dropped_from_the_text_and_the_data():
    client = Library(["It sleeps [", "1][7", "], far [2, ", "9] away [8]", "."])
    answer = await ask(client, [CATS, MOON])
    assert answer.text == "It sleeps [1], far [2] away."
    assert [one["number"] for one in answer.data["citations"]] == [1, 2]


async def test_text_streams_before_the_end_and_the_citations_come_last():
    client = Library(["The cat ", "sleeps", " [1", "]."])
    async with aclosing(ResearchAgent(client).run("?", documents=[CATS])) as stream:
        chunks = [chunk async for chunk in stream]
    assert [chunk.content for chunk in chunks] == ["The cat", " sleeps", "", " [1].", ""]
    assert [bool(chunk.data) for chunk in chunks] == [False] * 4 + [True]
    assert chunks[-1].done


async def test_of_many_documents_those_that_fit_the_question_are_shown_within_the_budget():
    client = Library(["See [2]."])
    answer = await ask(client, LONG)
    [embedded] = client.embedded
    assert embedded[0] == "What does the cat do?"
    assert embedded[1:] == tuple(text.strip() for text in LONG)
    assert shown(client).count("About the cat") == 4
    assert shown(client).count("About the moon") + shown(client).count("About the tax") == 4
    assert len(shown(client)) < ResearchAgent.budget_chars + 500
    [cited] = answer.data["citations"]
    assert cited["text"] == LONG[cited["document"]][cited["start"] : cited["end"]]
    assert f"[2] {cited['text']}" in shown(client)


async def test_without_marks_the_sentences_of_the_answer_find_their_sources():
    client = Library(["Some cat", " is asleep. The moon is up. No idea about anything else."])
    answer = await ask(client, [CATS, MOON, "A tax is due."])
    assert answer.text == "Some cat is asleep. The moon is up. No idea about anything else."
    assert [(one["number"], one["by"]) for one in answer.data["citations"]] == [
        (1, "similarity"),
        (2, "similarity"),
    ]


async def test_what_resembles_no_source_cites_none():
    answer = await ask(Library(["No idea about anything at all."]), [CATS, MOON])
    assert answer.data == {"citations": []}


async def test_an_answer_in_json_is_left_alone():
    client = Library(['{"cat": [7, 8], "note": "see [9]"}'])
    answer = await ask(client, [CATS, MOON], format="json")
    assert answer.text == '{"cat": [7, 8], "note": "see [9]"}'
    assert [one["by"] for one in answer.data["citations"]] == ["similarity"]


async def test_without_an_embedding_model_what_fits_is_used_and_what_does_not_is_refused():
    class Bookless(ScriptedClient):
        async def resolve(self, model, *, embeds=False):
            if embeds:
                raise ModelMissing("http://n has no embedding model: pull one there.", node="http://n")
            return await super().resolve(model)

    answer = await ask(Bookless(["It sleeps [1]."]), [CATS])
    assert answer.data["citations"][0]["by"] == "model"
    assert (await ask(Bookless(["It sleeps, as cats do."]), [CATS])).data == {"citations": []}
    client = Bookless()
    with pytest.raises(ModelMissing, match=r"5,692 characters and 4,000 fit.* pull one there\.") as caught:
        await ask(client, LONG)
    assert caught.value.node == "http://n"
    assert client.asked == []


async def test_a_node_that_fails_after_the_answer_costs_only_the_inferred_citations():
    class Tired(Library):
        async def embed(self, texts, *, model=None):
            raise NodeFailed("boom")

    answer = await ask(Tired(["The cat is asleep."]), [CATS])
    assert (answer.text, answer.data) == ("The cat is asleep.", {"citations": []})


async def test_without_documents_it_answers_as_any_agent():
    client = Library(["Known [1]."])
    answer = await ResearchAgent(client).get_response("Hi")
    assert (answer.text, answer.data, shown(client)) == ("Known [1].", {}, "Hi")


@pytest.mark.parametrize("documents", [[" \n"], ["a", {"title": "no text"}], [5], 5, [""]])
async def test_documents_without_a_text_are_refused(documents):
    with pytest.raises(InvalidInvocation, match="documents"):
        await ask(Library(), documents)


async def test_the_sources_stand_before_the_last_question_of_a_conversation():
    client = Library(["It sleeps [1]."])
    await ask(client, [CATS], ["First?", {"role": "assistant", "content": "Yes."}, "Then?"])
    asked = client.asked[0].messages
    assert [one.content for one in asked[1:3]] == ["First?", "Yes."]
    assert asked[3].content.endswith("Question: Then?")


async def test_a_client_that_never_says_done_has_citations_too():
    class Plain(BaseOllamaClient):
        async def generate_embedding(self, text):
            return [1.0]

        async def chat(self, messages, **options):
            yield ChatResponse(content="It sleeps [1")
            yield ChatResponse(content="] [9] ")

    answer = await ResearchAgent(Plain()).get_response("?", documents=["The cat sleeps."])
    assert answer.text == "It sleeps [1]"
    assert [one["number"] for one in answer.data["citations"]] == [1]


# --- choosing


def sources_of(sizes):
    return cut([Document(text="x" * size) for size in sizes], size=1000, overlap=0)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.floats(-1, 1)), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(1, 120),
)
def test_the_best_within_the_budget_are_chosen_in_their_order(given_sources, most, budget):
    sources = sources_of(size for size, _ in given_sources)
    scores = [score for _, score in given_sources]
    chosen = best(sources, scores, most=most, budget=budget)
    assert 1 <= len(chosen) <= most
    assert len(chosen) == 1 or sum(len(source.text) for source in chosen) <= budget
    assert [source.number for source in chosen] == list(range(1, len(chosen) + 1))
    assert [source.document for source in chosen] == sorted(source.document for source in chosen)
    assert max(scores) in {scores[source.document] for source in chosen}


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5))
def test_a_vector_is_like_itself_and_unlike_its_opposite(vector):
    length = math.hypot(*vector)
    if length > 1e-3:
        assert similarity(vector, vector) == pytest.approx(1)
        assert similarity(vector, [-number for number in vector]) == pytest.approx(-1)
    assert similarity(vector, [0.0] * len(vector)) == 0


def test_each_source_is_found_once_and_only_where_it_is_near_enough():
    said = [(1.0, 0.0), (0.9, 0.1), (0.0, 0.0), (0.1, 1.0)]
    assert behind(said, [(0.0, 1.0), (1.0, 0.0)], at_least=0.5) == [1, 0]
    assert behind(said, [], at_least=0.0) == []
