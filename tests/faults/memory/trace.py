"""What happens in one run, by its seed: models, who asks for what and when, and what a neighbour takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from gaelp_tasks.footprints import KvMemoryModel, Layer, ModelShape
from support.paging_server import PagedModel

__all__ = ["LIMIT_BYTES", "NUM_CTX", "NUM_PARALLEL", "RESERVE_BYTES", "Ask", "Burst", "Trace", "trace"]

MIB = 1024**2
LIMIT_BYTES = 1024 * MIB  #: of the cgroup
RESERVE_BYTES = 128 * MIB
NUM_CTX, NUM_PARALLEL = 1024, 2
MODELS = 3
BURSTS = 2
ASKED_S = 5.0  #: within which everything is asked for
LEAST_BURST_BYTES, MOST_BURST_BYTES = (
    350 * MIB,
    650 * MIB,
)  #: beside them a node without models has its reserve
KV_HEADS, HEAD_SIZE, WIDTH, FEED_FORWARD = 4, 64, 128, 256

TierName = Literal["interactive", "batch", "background"]


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One invocation."""

    id: str
    at_s: float
    model: str
    tier: TierName
    tokens: int
    pace_s: float


@dataclass(frozen=True, kw_only=True)
class Burst:
    """The neighbour waits, takes memory within a time, holds it, and gives it back."""

    wait_s: float
    size_bytes: int
    ramp_s: float
    hold_s: float


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All of one run."""

    seed: int
    models: tuple[PagedModel, ...]
    asks: tuple[Ask, ...]
    bursts: tuple[Burst, ...]


def trace(seed: int) -> Trace:
    """The trace of this seed."""
    rng = Random(seed)
    models = tuple(_model(rng, f"m{number}:latest") for number in range(MODELS))
    return Trace(seed=seed, models=models, asks=_asks(rng, seed, models), bursts=_bursts(rng))


def _model(rng: Random, name: str) -> PagedModel:
    weights = rng.randint(80, 220) * MIB
    layers = rng.randint(8, 40)
    shape = ModelShape(
        name=name,
        weights_bytes=weights,
        layers=(Layer(KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE),) * layers,
        compute_floats=3 * FEED_FORWARD + 5 * WIDTH,
    )
    told = KvMemoryModel(shape=shape, num_ctx=NUM_CTX)
    kv = NUM_PARALLEL * told.per_slot_bytes
    wrong = rng.uniform(0.7, 1.6)  # by which the truth differs from what is told
    return PagedModel(
        name=name,
        weights_bytes=weights,
        layers=layers,
        kv_heads=KV_HEADS,
        head_size=HEAD_SIZE,
        width=WIDTH,
        feed_forward=FEED_FORWARD,
        estimate_bytes=told.shared_bytes + kv,
        true_weights_bytes=int(told.shared_bytes * wrong),
        true_kv_bytes=int(kv * wrong),
        load_s=rng.uniform(0.2, 1.2),
        call_bytes=rng.randint(1, 3) * MIB,
        calls_bytes=20 * MIB,
    )


def _asks(rng: Random, seed: int, models: Sequence[PagedModel]) -> tuple[Ask, ...]:
    """Background and batch work at first, so that there is something to give way; the rest as it comes."""
    tiers: list[TierName] = ["background"] * 3 + ["batch"] * 4 + ["interactive"] * 5
    asks = []
    for number, tier in enumerate(tiers):
        early = tier != "interactive" and rng.random() < 0.6
        asks.append(
            Ask(
                id=f"trace-{seed}-{number}",
                at_s=rng.uniform(0.0, 0.5 if early else ASKED_S),
                model=rng.choice(models).name,
                tier=tier,
                tokens=rng.randint(20, 60) if tier == "interactive" else rng.randint(80, 180),
                pace_s=1.0 / rng.uniform(30.0, 60.0),
            )
        )
    return tuple(sorted(asks, key=lambda ask: ask.at_s))


def _bursts(rng: Random) -> tuple[Burst, ...]:
    return tuple(
        Burst(
            wait_s=rng.uniform(0.5, 2.0),
            size_bytes=(size := rng.randint(LEAST_BURST_BYTES, MOST_BURST_BYTES)),
            ramp_s=size / (rng.uniform(150, 300) * MIB),
            hold_s=rng.uniform(0.2, 0.8),
        )
        for _ in range(BURSTS)
    )
