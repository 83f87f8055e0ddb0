"""Slots from memory: what a model takes once, what each slot takes, and how many slots fit.

`kv` is how Ollama behaves: weights are loaded once, and the KV cache of all slots is set aside at load.
`naive` is the formula of the first design, which charges the weights to every slot (docs/memory.md).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from gaelp_tasks.footprints.shapes import Layer, ModelShape

__all__ = [
    "KvCacheType",
    "KvMemoryModel",
    "MemoryModel",
    "MemoryModelName",
    "NaiveMemoryModel",
    "Room",
    "memory_model",
    "needed_bytes",
    "slots",
    "unusual",
]

KvCacheType = Literal["f16", "bf16", "q8_0", "q4_0", "f32"]
MemoryModelName = Literal["kv", "naive"]

#: bytes of 32 numbers in each type of KV cache; the quantised ones keep a scale beside them
BYTES_OF_32: dict[KvCacheType, int] = {"f16": 64, "bf16": 64, "q8_0": 34, "q4_0": 18, "f32": 128}
NUMBERS = 32
CELLS = 256  #: a KV cache is made in steps of so many tokens
BATCH_TOKENS = 512  #: of a prompt that Ollama's engine reads at once; an embedding model reads a text at once
F32_BYTES = 4
MASK_BYTES = 2  #: for each token of a batch and each of the context
#: what the engine's process takes beside weights, cache and buffers: its code, the vocabulary, its threads.
#: Measured on a CPU with two models: 38-56 MiB, 28 of them the Python around the embedded engine.
PROCESS_BYTES = 32 * 1024**2

USUAL_SAFETY_FACTORS = (1.5, 2.0)


class MemoryModel(Protocol):
    """What one model takes on a node."""

    @property
    def shared_bytes(self) -> int:
        """Once, for as long as the model is in memory."""

    @property
    def per_slot_bytes(self) -> int:
        """For each invocation that may run at the same time; 0 where another one costs nothing."""


@dataclass(frozen=True, kw_only=True)
class NaiveMemoryModel:
    """Every slot takes the whole model: right only where each invocation has a process of its own.

    Also what is left where a server tells nothing of a model but the size of its files.
    """

    model_bytes: int

    @property
    def shared_bytes(self) -> int:
        """Nothing is shared."""
        return 0

    @property
    def per_slot_bytes(self) -> int:
        """The model."""
        return self.model_bytes


@dataclass(frozen=True, kw_only=True)
class KvMemoryModel:
    """Weights and buffers once, and for each slot the keys and values of its whole context."""

    shape: ModelShape
    num_ctx: int  #: tokens of one slot
    kv_cache_type: KvCacheType = "f16"

    @property
    def weights_bytes(self) -> int:
        """The files; /api/tags counts a projector for images among them."""
        return self.shape.weights_bytes

    @property
    def compute_bytes(self) -> int:
        """The process, and the buffers of one batch; they do not grow with the slots."""
        context = _padded(self.num_ctx)
        batch = context if self.shape.embeds else min(context, BATCH_TOKENS)
        return PROCESS_BYTES + batch * (F32_BYTES * self.shape.compute_floats + MASK_BYTES * context)

    @property
    def shared_bytes(self) -> int:
        """Weights and buffers."""
        return self.weights_bytes + self.compute_bytes

    @property
    def per_slot_bytes(self) -> int:
        """The KV cache of one slot, set aside in full at load; for latent attention (MLA) an upper bound."""
        return sum(self._layer_bytes(layer) for layer in self.shape.layers)

    def _layer_bytes(self, layer: Layer) -> int:
        tokens = self.num_ctx
        if layer.window:
            tokens = min(tokens, layer.window + BATCH_TOKENS)
        bytes_of_32 = BYTES_OF_32[self.kv_cache_type]
        rows = sum(_up(numbers * bytes_of_32, NUMBERS) for numbers in (layer.keys, layer.values))
        return _padded(tokens) * rows + layer.state_bytes


@dataclass(frozen=True, kw_only=True)
class Room:
    """The memory that a node may give to models. Raises ValueError for a safety factor below 1."""

    free_bytes: int  #: nothing loaded
    reserve_bytes: int  #: left to the system, the safety floor
    safety_factor: float  #: every estimate is taken so many times; below 1 it is refused

    def __post_init__(self) -> None:
        if not self.safety_factor >= 1:  # NaN too
            raise ValueError(f"the safety factor must be 1 or more, and is {self.safety_factor}")

    @property
    def usable_bytes(self) -> int:
        """What is left for models; 0 below the reserve."""
        return max(0, self.free_bytes - self.reserve_bytes)


def memory_model(
    shape: ModelShape, num_ctx: int, *, kind: MemoryModelName = "kv", kv_cache_type: KvCacheType = "f16"
) -> MemoryModel:
    """The model of that kind; the naive one too where the server tells no shape or no context."""
    if kind == "naive" or not shape.layers or not num_ctx:
        return NaiveMemoryModel(model_bytes=shape.weights_bytes)
    return KvMemoryModel(shape=shape, num_ctx=num_ctx, kv_cache_type=kv_cache_type)


def slots(model: MemoryModel, room: Room, most: int) -> int:
    """Invocations that fit: floor((free - reserve - factor * shared) / (factor * per slot)), 0 to `most`.

    Reckoned in whole numbers: a rounded quotient could be one too many. `most` is what a node runs at once.
    """
    numerator, denominator = room.safety_factor.as_integer_ratio()
    left = room.usable_bytes * denominator - model.shared_bytes * numerator
    if left < 0 or model.shared_bytes + model.per_slot_bytes <= 0:
        return 0
    if not model.per_slot_bytes:
        return most
    return min(most, left // (model.per_slot_bytes * numerator))


def needed_bytes(model: MemoryModel, count: int, safety_factor: float) -> int:
    """What must be free above the reserve to load the model with `count` slots."""
    numerator, denominator = safety_factor.as_integer_ratio()
    return _up((model.shared_bytes + count * model.per_slot_bytes) * numerator, denominator)


def unusual(safety_factor: float) -> str:
    """A sentence on a safety factor outside the usual range; '' for one inside."""
    least, most = USUAL_SAFETY_FACTORS
    if least <= safety_factor <= most:
        return ""
    risk = "models may take more than was counted" if safety_factor < least else "much memory stays unused"
    return (
        f"The safety factor {safety_factor:g} is outside {least:g} to {most:g}: {risk} (GAELP_SAFETY_FACTOR)."
    )


def _padded(tokens: int) -> int:
    return _up(tokens, CELLS) * CELLS


def _up(number: int, by: int) -> int:
    """The quotient, rounded up."""
    return -(-number // by)
