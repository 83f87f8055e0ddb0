"""What a model is made of, as far as its memory depends on it; read from what /api/show and /api/tags tell.

A server names the sizes of a model by its architecture: `llama.block_count`, `llama.attention.head_count_kv`.
Where they are missing or make no sense, a shape has no layers, and only the size of its files is known.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from gaelp_tasks.models.capacity import Bytes
from gaelp_tasks.models.frozen import Frozen

__all__ = ["Layer", "ModelShape", "is_cut", "read_shape"]

MOST = 2**31  #: no size of a real model is larger
MOST_LAYERS = 4096
F32_BYTES = 4  #: recurrent states are kept whole, whatever the type of the KV cache

#: architectures that Ollama runs one invocation at a time whatever OLLAMA_NUM_PARALLEL says
ALONE = {"mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe"}
ALONE_FAMILY = "nemotron_h"
#: every n-th layer looks at the whole context, the others at a window; for files that do not tell the pattern
WINDOW_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "cohere2": 4,
    "exaone4": 4,
    "gptoss": 2,
    "gpt-oss": 2,
}
#: they keep states of a kind that is not read here
FOREIGN_STATES = ("rwkv", "arwkv")
#: arrays that decide about memory; a server leaves long ones out unless it is asked to be verbose
ARRAYS = ("attention.head_count_kv", "attention.sliding_window_pattern", "feed_forward_length")

#: floats that each token of a batch holds while it is computed: per unit of feed-forward, and of width. The
#: engine's own figures for SmolLM2-135M (14.64 MiB for 512 tokens) and MiniLM (6.76) are met to 0.2 %.
GATED = (3, 5)
PLAIN = (2, 1)  #: of the one architecture that we know to have no gate


class Layer(NamedTuple):
    """What one layer keeps in memory for one slot."""

    keys: int  #: numbers for each token; 0 in a recurrent layer
    values: int  #: numbers for each token
    window: int = 0  #: tokens that it looks back; 0: the whole context
    state_bytes: int = 0  #: of a recurrent layer, whatever the context


class ModelShape(Frozen):
    """A model as its memory sees it."""

    name: str
    weights_bytes: Bytes  #: of all its files, the projector of a model that sees images included
    architecture: str = ""  #: '' where the server does not tell
    embeds: bool = False  #: it makes vectors and no text
    layers: tuple[Layer, ...] = ()  #: () where the server does not tell enough
    compute_floats: int = 0  #: that each token of a batch holds while it is computed
    trained_tokens: int = 0  #: context that it was trained for; 0: not told
    default_tokens: int = 0  #: num_ctx of its Modelfile; 0: the server's own

    @property
    def alone(self) -> bool:
        """Whether Ollama runs one invocation of it at a time, whatever OLLAMA_NUM_PARALLEL says."""
        return self.embeds or self.architecture in ALONE or self.architecture.startswith(ALONE_FAMILY)

    def context(self, num_ctx: int, default: int = 0) -> int:
        """Tokens of one slot where `num_ctx` is asked for (0: nothing), at most what it was trained for."""
        asked = num_ctx or self.default_tokens or default
        return min(asked, self.trained_tokens) if self.trained_tokens else asked


def is_cut(model_info: Mapping[str, Any]) -> bool:
    """Whether the server left an array out that decides about memory: ask again, verbosely."""
    architecture = str(model_info.get("general.architecture") or "")
    return any(model_info.get(f"{architecture}.{name}", 0) in ([], None) for name in ARRAYS)


def read_shape(
    name: str,
    weights_bytes: int,
    model_info: Mapping[str, Any],
    *,
    embeds: bool = False,
    family: str = "",
    parameters: str = "",
) -> ModelShape:
    """The shape that a server's words describe; without layers where they do not tell enough.

    `weights_bytes` is `size` of /api/tags; the rest is of /api/show: `model_info`, and `parameters`, the text
    of the Modelfile. `family` stands in where `model_info` names no architecture.
    """
    read = _Reader(model_info)
    own_context = re.search(r"(?m)^\s*num_ctx\s+(\d{1,9})\s*$", parameters)
    layers: tuple[Layer, ...] = ()
    trained = floats = 0
    try:
        trained = read.number("context_length", 0)
        floats = read.compute_floats()
        layers = read.layers(embeds=embeds)
    except _Untold:
        pass  # without layers the rest is not looked at
    return ModelShape(
        name=name,
        weights_bytes=weights_bytes,
        architecture=read.architecture or family,
        embeds=embeds,
        layers=layers,
        compute_floats=floats,
        trained_tokens=trained,
        default_tokens=int(own_context[1]) if own_context else 0,
    )


class _Untold(Exception):
    """A size is missing, or is none."""


class _Reader:
    """The sizes of one model by their names without the architecture."""

    def __init__(self, model_info: Mapping[str, Any]) -> None:
        self.architecture = str(model_info.get("general.architecture") or "")
        self._info = model_info

    def number(self, name: str, default: int | None = None) -> int:
        """One size; the largest where it differs by layer. Raises _Untold where it is missing or is none."""
        found = self._of(name)
        if isinstance(found, list) and found:
            return max(_size(one) for one in found)
        if found is None or found == []:
            if default is None:
                raise _Untold
            return default
        return _size(found)

    def layers(self, *, embeds: bool) -> tuple[Layer, ...]:
        """Every layer in its order. Raises _Untold."""
        count = self.number("block_count")
        if not 0 < count <= MOST_LAYERS or self.architecture.startswith(FOREIGN_STATES):
            raise _Untold
        if embeds and (self._of("attention.causal") is False or "bert" in self.architecture):
            return (Layer(0, 0),) * count  # an encoder reads its text at once and keeps nothing
        heads, windowed = self._heads_kv(count), self._windowed(count)
        if not any(heads) and not self._has_state():
            raise _Untold
        window = self.number("attention.sliding_window", 0)
        return tuple(
            self._layer(kv, window if small else 0) for kv, small in zip(heads, windowed, strict=True)
        )

    def compute_floats(self) -> int:
        """Floats that each token of a batch holds while it is computed. Raises _Untold."""
        width = self.number("embedding_length")
        experts = self.number("expert_used_count", 0)
        dense = self.number("feed_forward_length", 0)
        sparse = experts * self.number("expert_feed_forward_length", dense)
        # each expert that a token uses hands in a whole row, and the rows are weighed
        per_feed_forward, per_width = PLAIN if self.architecture == "bert" else GATED
        return per_feed_forward * max(dense, sparse) + (per_width + 2 * experts) * width

    def _layer(self, heads: int, window: int) -> Layer:
        if not heads:
            return Layer(0, 0, state_bytes=self._state_bytes())
        default = 0
        if not self._of("attention.key_length") or not self._of("attention.value_length"):
            default = self.number("embedding_length") // max(1, self.number("attention.head_count"))
        key, value = (self.number(f"attention.{kind}_length", default) for kind in ("key", "value"))
        if window:
            key = self.number("attention.key_length_swa", key)
            value = self.number("attention.value_length_swa", value)
        return Layer(heads * key, heads * value, window)

    def _heads_kv(self, count: int) -> list[int]:
        """KV heads of each layer; 0 in a recurrent one."""
        if self._of("attention.head_count_kv") is None:
            heads: Any = self._of("attention.head_count")
        else:
            heads = self._of("attention.head_count_kv")
        if heads is None and self._has_state():
            heads = 0
        told = [_size(one) for one in heads] if isinstance(heads, list) else [_size(heads)] * count
        if len(told) < count:
            raise _Untold
        every = self.number("full_attention_interval", 0)
        if every and self._has_state():  # the others are recurrent, though they name heads too
            return [one if (at + 1) % every == 0 else 0 for at, one in enumerate(told[:count])]
        return told[:count]

    def _windowed(self, count: int) -> list[bool]:
        """Which layers look at a window only; none where nobody tells, which is never too little."""
        pattern = self._of("attention.sliding_window_pattern")
        if isinstance(pattern, list):
            if not pattern:
                return [False] * count
            return [bool(pattern[at % len(pattern)]) for at in range(count)]
        period = WINDOW_PERIODS.get(self.architecture, 1) if pattern is None else _size(pattern)
        return [period == 0 or at % period < period - 1 for at in range(count)]

    def _has_state(self) -> bool:
        return bool(self.number("ssm.state_size", 0) or self.number("shortconv.l_cache", 0))

    def _state_bytes(self) -> int:
        """Of one recurrent layer: its convolution's last inputs and its state."""
        short = self.number("shortconv.l_cache", 0)
        if short:
            return F32_BYTES * (short - 1) * self.number("embedding_length")
        inner, state = self.number("ssm.inner_size", 0), self.number("ssm.state_size", 0)
        groups, kernel = self.number("ssm.group_count", 0), self.number("ssm.conv_kernel", 1)
        return F32_BYTES * (max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner)

    def _of(self, name: str) -> Any:
        return self._info.get(f"{self.architecture}.{name}")


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST:
        raise _Untold
    return value
