"""Read what a GGUF file says about itself, without its weights. Format: ggml-org/ggml docs/gguf.md, v3."""

import hashlib
import math
import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

_MAGIC = b"GGUF"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_SHOWN = 5
# general.file_type, as llama.cpp numbers it; the package `gguf` takes half a second to import
_FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K"}
_FILE_TYPES |= {11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S"}
_FILE_TYPES |= {17: "Q5_K_M", 18: "Q6_K"}
_FILE_TYPES |= {24: "IQ1_S", 25: "IQ4_NL", 30: "IQ4_XS", 32: "BF16"}


class NotGguf(ValueError):
    """The file is no GGUF file of a version that this reads; the message names it."""


@dataclass(frozen=True, kw_only=True)
class GgufInfo:
    """One model file: its metadata (long arrays included), counts of weights, and identity."""

    path: Path
    metadata: dict[str, Any]
    parameter_count: int
    size_bytes: int
    sha256: str
    modified_at: datetime

    @property
    def architecture(self) -> str:
        """The family of the model, such as `llama` or `bert`."""
        return str(self.metadata["general.architecture"])

    @property
    def context_length(self) -> int:
        """Tokens that the model was trained for."""
        return int(self.metadata[f"{self.architecture}.context_length"])

    @property
    def is_encoder(self) -> bool:
        """Whether the file says how to pool token vectors: then it embeds texts and cannot write any."""
        return f"{self.architecture}.pooling_type" in self.metadata

    @property
    def quantization(self) -> str:
        """Storage of the weights, such as `Q4_1`; `unknown` where the file does not say."""
        return _FILE_TYPES.get(self.metadata.get("general.file_type", -1), "unknown")

    @property
    def parameter_size(self) -> str:
        """Weights in people's words, such as `134.52M`."""
        for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
            if self.parameter_count >= unit:
                return f"{self.parameter_count / unit:.2f}{letter}"
        return str(self.parameter_count)

    def shown(self, *, verbose: bool) -> dict[str, Any]:
        """Metadata as /api/show gives it: arrays longer than 5 empty unless `verbose`; no chat template."""
        shown = {key: value for key, value in self.metadata.items() if key != "tokenizer.chat_template"}
        shown["general.parameter_count"] = self.parameter_count
        if not verbose:
            shown = {key: [] if _is_long(value) else value for key, value in shown.items()}
        return shown


def read_gguf(path: Path) -> GgufInfo:
    """Read the head of `path` and its SHA-256. Raises NotGguf, OSError."""
    with path.open("rb") as file:
        try:
            metadata, sizes = _read_head(file)
            str(metadata["general.architecture"])
        except (struct.error, KeyError, UnicodeDecodeError, MemoryError) as error:
            raise NotGguf(f"{path} is not a GGUF model file ({error!r})") from error
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    stat = path.stat()
    return GgufInfo(
        path=path,
        metadata=metadata,
        parameter_count=sum(sizes),
        size_bytes=stat.st_size,
        sha256=digest,
        modified_at=datetime.fromtimestamp(stat.st_mtime, UTC),
    )


def _read_head(file: BinaryIO) -> tuple[dict[str, Any], list[int]]:
    if file.read(4) != _MAGIC:
        raise KeyError("no magic number")
    version, tensors, pairs = _unpack(file, "IQQ")
    if version not in {2, 3}:
        raise KeyError(f"version {version}")
    metadata = {}
    for _ in range(pairs):
        key = _read_string(file)
        metadata[key] = _read_value(file, _unpack(file, "I")[0])
    sizes = []
    for _ in range(tensors):
        _read_string(file)
        (dimensions,) = _unpack(file, "I")
        sizes.append(math.prod(_unpack(file, f"{dimensions}Q")))
        _unpack(file, "IQ")  # type and offset
    return metadata, sizes


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _read_string(file)
    if kind == _ARRAY:
        item_kind, length = _unpack(file, "IQ")
        if item_kind in _SCALARS:
            return list(_unpack(file, f"{length}{_SCALARS[item_kind]}"))
        return [_read_value(file, item_kind) for _ in range(length)]
    return _unpack(file, _SCALARS[kind])[0]


def _read_string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return file.read(length).decode()


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    layout = "<" + layout
    return struct.unpack(layout, file.read(struct.calcsize(layout)))


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > _LONGEST_SHOWN
