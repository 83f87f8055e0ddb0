"""Tiny random models: small, the same for the same seed, readable by our own reader."""

import pytest

from gaelp_tasks.demo.model_server.gguf_info import read_gguf
from gaelp_tasks.demo.tiny_model import write_tiny_chat_model, write_tiny_embed_model

WRITERS = [write_tiny_chat_model, write_tiny_embed_model]


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_seed_gives_the_same_bytes(write, tmp_path):
    first = write(tmp_path / "a.gguf", seed=7)
    second = write(tmp_path / "b.gguf", seed=7)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_another_seed_gives_another_model(write, tmp_path):
    first = write(tmp_path / "a.gguf", seed=7)
    second = write(tmp_path / "b.gguf", seed=8)
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("write", WRITERS)
def test_a_tiny_model_is_under_a_megabyte_and_leaves_nothing_beside_it(write, tmp_path):
    path = write(tmp_path / "tiny.gguf")
    assert path.stat().st_size < 1_000_000
    assert list(tmp_path.iterdir()) == [path]


def test_the_chat_model_says_what_memory_arithmetic_needs(tmp_path):
    info = read_gguf(write_tiny_chat_model(tmp_path / "tiny.gguf", width=96, blocks=3, context_length=512))
    assert info.architecture == "llama"
    assert not info.is_encoder
    assert info.context_length == 512
    assert info.quantization == "F16"
    assert info.metadata["llama.block_count"] == 3
    assert info.metadata["llama.embedding_length"] == 96
    assert info.metadata["llama.attention.head_count"] == 4
    assert info.metadata["llama.attention.head_count_kv"] == 2
    assert info.metadata["llama.attention.key_length"] == 24
    assert info.metadata["llama.attention.value_length"] == 24


def test_the_embedding_model_says_that_it_is_one(tmp_path):
    info = read_gguf(write_tiny_embed_model(tmp_path / "tiny.gguf", width=32))
    assert info.architecture == "bert"
    assert info.is_encoder
    assert info.metadata["bert.embedding_length"] == 32
