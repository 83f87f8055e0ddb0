"""Which NUM_PARALLEL and num_ctx a node should have for some models, and why, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gaelp_tasks.footprints.memory_models import (
    KvCacheType,
    KvMemoryModel,
    MemoryModel,
    MemoryModelName,
    NaiveMemoryModel,
    Room,
    memory_model,
    needed_bytes,
    slots,
)
from gaelp_tasks.footprints.shapes import ModelShape

__all__ = ["ModelPlan", "NodePlan", "in_words", "plan_node"]

OLLAMAS_CONTEXT = 4096  #: its default below 23 GiB of VRAM; with more it takes a longer one
LEAST_CONTEXT = 2048  #: a shorter one is never advised
MOST_PARALLEL = 8  #: never advised more: they share one decoder, and each gets slower
MOST_SLOTS = 1024  #: as GAELP_NUM_PARALLEL takes
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class ModelPlan(NamedTuple):
    """What one model takes on the node, and how many of its slots fit there by itself."""

    name: str
    num_ctx: int  #: tokens of one slot; 0: nobody tells
    weights_bytes: int
    kv_slot_bytes: int | None  #: None where the server tells no shape
    compute_bytes: int | None
    kv_slots: int  #: as many as fit when nothing else is loaded
    naive_slots: int
    num_parallel: int  #: slots that it should be loaded with; 0: it does not fit
    needed_bytes: int  #: with these, the safety factor included; with one where it does not fit
    embeds: bool


class NodePlan(NamedTuple):
    """What a node should have."""

    models: tuple[ModelPlan, ...]
    num_parallel: int  #: 0 where no model fits
    num_ctx: int  #: 0 where no model writes text
    together: bool  #: all that fit at all may stay in memory at once
    why: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Node:
    """Sizes models up for one room."""

    room: Room
    kv_cache_type: KvCacheType
    kind: MemoryModelName

    def model(self, shape: ModelShape, num_ctx: int) -> MemoryModel:
        """What decides: of the kind that was chosen."""
        return memory_model(shape, num_ctx, kind=self.kind, kv_cache_type=self.kv_cache_type)

    def fits(self, shape: ModelShape, num_ctx: int) -> int:
        """Slots by itself."""
        return slots(self.model(shape, num_ctx), self.room, _most(shape))

    def needs(self, shape: ModelShape, num_ctx: int, count: int) -> int:
        """Bytes with so many slots, or with the one that it can have."""
        return needed_bytes(self.model(shape, num_ctx), min(count, _most(shape)), self.room.safety_factor)


def plan_node(
    shapes: Sequence[ModelShape],
    room: Room,
    *,
    num_ctx: int = 0,
    kind: MemoryModelName = "kv",
    kv_cache_type: KvCacheType = "f16",
) -> NodePlan:
    """What a node with that room should have for these models; `num_ctx` 0 asks for no context.

    The number of slots is the largest with which all that fit may stay in memory together, for a swap costs
    seconds; where not even one slot each allows that, the largest with which each of them fits alone.
    """
    node = _Node(room=room, kv_cache_type=kv_cache_type, kind=kind)
    context, able = _context(node, shapes, num_ctx)
    contexts = {shape.name: _tokens(shape, context) for shape in shapes}
    parallel, together = _parallel(node, able, contexts)
    models = tuple(_model_plan(node, shape, contexts[shape.name], parallel) for shape in shapes)
    why = [
        *_why_context(shapes, models, context, num_ctx),
        *_why_parallel(node, able, models, contexts, parallel, together=together),
        *(
            sentence
            for shape, one in zip(shapes, models, strict=True)
            for sentence in _why_model(node, shape, one)
        ),
    ]
    return NodePlan(models=models, num_parallel=parallel, num_ctx=context, together=together, why=tuple(why))


def _context(node: _Node, shapes: Sequence[ModelShape], asked: int) -> tuple[int, list[ModelShape]]:
    """Tokens for all models that write, halved until each that can fit does; and all models that then fit."""
    steps = [_wanted(shapes, asked)]
    while steps[-1] // 2 >= LEAST_CONTEXT:
        steps.append(steps[-1] // 2)

    def fit(tokens: int) -> list[ModelShape]:
        return [shape for shape in shapes if node.fits(shape, _tokens(shape, tokens))]

    able = fit(steps[-1])
    return next(tokens for tokens in steps if len(fit(tokens)) == len(able)), able


def _wanted(shapes: Sequence[ModelShape], asked: int) -> int:
    """Tokens before memory is looked at; where nobody asks, what no model would have to grow to."""
    if asked:
        return max((shape.context(asked) for shape in shapes if not shape.embeds), default=0)
    return min((shape.context(0, OLLAMAS_CONTEXT) for shape in shapes if not shape.embeds), default=0)


def _parallel(node: _Node, able: Sequence[ModelShape], contexts: dict[str, int]) -> tuple[int, bool]:
    def together(count: int) -> bool:
        needs = sum(node.needs(shape, contexts[shape.name], count) for shape in able)
        return needs <= node.room.usable_bytes

    if not able:
        return 0, False
    if all(shape.alone for shape in able):
        return 1, together(1)
    if together(1):
        return max(count for count in range(1, MOST_PARALLEL + 1) if together(count)), True
    fits = (node.fits(shape, contexts[shape.name]) for shape in able if not shape.alone)
    return min(MOST_PARALLEL, *fits), False


def _model_plan(node: _Node, shape: ModelShape, num_ctx: int, parallel: int) -> ModelPlan:
    by_kv = memory_model(shape, num_ctx, kv_cache_type=node.kv_cache_type)
    told = isinstance(by_kv, KvMemoryModel)
    fits = node.fits(shape, num_ctx)
    count = min(parallel, _most(shape)) if fits else 0
    return ModelPlan(
        name=shape.name,
        num_ctx=num_ctx,
        weights_bytes=shape.weights_bytes,
        kv_slot_bytes=by_kv.per_slot_bytes if told else None,
        compute_bytes=by_kv.compute_bytes if isinstance(by_kv, KvMemoryModel) else None,
        kv_slots=slots(by_kv, node.room, _most(shape)),
        naive_slots=slots(NaiveMemoryModel(model_bytes=shape.weights_bytes), node.room, MOST_SLOTS),
        num_parallel=count,
        needed_bytes=node.needs(shape, num_ctx, count or 1),
        embeds=shape.embeds,
    )


def _why_context(
    shapes: Sequence[ModelShape], models: Sequence[ModelPlan], context: int, asked: int
) -> list[str]:
    writers = [shape for shape in shapes if not shape.embeds]
    if not writers:
        return []
    wanted = _wanted(shapes, asked)
    if context < wanted:
        reason = f"with {wanted} some model has no slot, with {context} each has one that can have one"
    elif not asked:
        who = "a Modelfile sets it" if any(shape.default_tokens for shape in writers) else "Ollama takes it"
        reason = (
            f"{who} where nobody asks for another, and naming it keeps callers from changing it, which loads "
            "the model anew"
        )
    elif wanted < asked:
        reason = f"no model here was trained for the {asked} asked for"
    else:
        reason = "as asked for, and it fits"
    short = [one.name for one in models if not one.embeds and one.num_ctx < context]
    capped = f"; {' and '.join(short)} was trained for less" if short else ""
    return [f"num_ctx {context}: {reason}{capped}."]


def _why_parallel(
    node: _Node,
    able: Sequence[ModelShape],
    models: Sequence[ModelPlan],
    contexts: dict[str, int],
    parallel: int,
    *,
    together: bool,
) -> list[str]:
    usable = in_words(node.room.usable_bytes)
    if not able:
        return [f"NUM_PARALLEL: no model fits into the {usable} above the reserve."]
    need = sum(one.needed_bytes for one in models if one.num_parallel)
    if together:
        reason = f"{_all(able)} then {in_words(need)} of {usable}, safety factor included"
    else:
        reason = (
            f"each fits alone, but all together do not ({in_words(need)} of {usable}), so they take turns, "
            "and each swap loads a model anew"
        )
    if all(shape.alone for shape in able):
        limit = "more would change nothing here"
    elif parallel == MOST_PARALLEL:
        limit = f"more than {MOST_PARALLEL} would share one decoder and make each slower"
    else:
        more = sum(node.needs(shape, contexts[shape.name], parallel + 1) for shape in able)
        least = min(able, key=lambda shape: (shape.alone, node.fits(shape, contexts[shape.name])))
        limit = f"one more would need {in_words(more)}" if together else f"{least.name} has no room for more"
    return [f"NUM_PARALLEL {parallel}: {reason}; {limit}."]


def _all(able: Sequence[ModelShape]) -> str:
    if len(able) == 1:
        return f"{able[0].name} takes"
    return f"all {len(able)} models may stay in memory together and take"


def _why_model(node: _Node, shape: ModelShape, told: ModelPlan) -> list[str]:
    found = []
    if not told.num_parallel:
        found.append(
            f"{shape.name} does not fit: one slot of {told.num_ctx} tokens needs "
            f"{in_words(told.needed_bytes)}, above the reserve there are {in_words(node.room.usable_bytes)}."
        )
    if told.kv_slot_bytes is None:
        found.append(
            f"{shape.name}: the server tells no shape of it, so each slot is charged the whole file (naive)."
        )
    if shape.embeds and told.num_parallel:
        found.append(f"{shape.name} embeds: one call at a time, which many texts share; it takes no slot.")
    elif shape.alone and told.num_parallel:
        found.append(
            f"{shape.name}: Ollama runs {shape.architecture} one at a time, whatever NUM_PARALLEL is."
        )
    return found


def _tokens(shape: ModelShape, context: int) -> int:
    """Of one slot of this model where all shall have that context; 0: nobody says."""
    return shape.context(context, OLLAMAS_CONTEXT)


def _most(shape: ModelShape) -> int:
    return 1 if shape.alone else MOST_SLOTS


def in_words(size_bytes: int) -> str:
    """As in '4.60 GiB'."""
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(UNITS) - 1:  # noqa: PLR2004  the step between two of UNITS
        size, unit = size / 1024, unit + 1
    return f"{size:.{0 if size >= 100 or not unit else 1 if size >= 10 else 2}f} {UNITS[unit]}"  # noqa: PLR2004  three digits
