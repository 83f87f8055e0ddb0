"""Embeddings of the model server."""

import pytest

from support.model_server import EMBED_MODEL

pytestmark = pytest.mark.engine


def embed(server, **fields):
    answer = server.post("/api/embed", {"model": EMBED_MODEL, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["embeddings"]


def dot(left, right):
    return sum(a * b for a, b in zip(left, right, strict=True))


def test_embeddings_are_unit_vectors_and_near_for_shared_words(server):
    bird, birds, stone = embed(server, input=["the red bird", "a red bird", "some pale stone"])
    assert dot(bird, bird) == pytest.approx(1, abs=1e-5)
    assert dot(bird, birds) > dot(bird, stone) + 0.2


def test_a_batch_equals_its_texts_one_by_one(server):
    texts = [f"the {word}" for word in ("river", "bird", "stone", "café") for _ in range(6)]
    batch = embed(server, input=texts)
    assert len(batch) == 24
    for text, vector in zip(texts[::6], batch[::6], strict=True):
        assert dot(vector, embed(server, input=text)[0]) == pytest.approx(1, abs=1e-4)


def test_a_long_text_is_cut_to_the_context(server):
    (long,) = embed(server, input="bird " * 1000)
    (whole,) = embed(server, input="bird " * 254)
    assert dot(long, whole) == pytest.approx(1, abs=1e-4)


def test_a_long_text_is_400_where_cutting_is_forbidden(server):
    answer = server.post("/api/embed", {"model": EMBED_MODEL, "input": "bird " * 1000, "truncate": False})
    assert answer.status_code == 400
    assert "exceeds the context length" in answer.json()["error"]


def test_fewer_dimensions_are_a_unit_vector_again(server):
    (vector,) = embed(server, input="bird", dimensions=5)
    assert len(vector) == 5
    assert dot(vector, vector) == pytest.approx(1)
