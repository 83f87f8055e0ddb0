"""What each model of a node takes: by its shape, then as its load was measured; kept across restarts."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gaelp_tasks.clients.base import ModelInfo
from gaelp_tasks.clients.local import LocalOllamaClient
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.connections import AsyncRedis, unavailable
from gaelp_tasks.errors import NodeError
from gaelp_tasks.footprints import OLLAMAS_CONTEXT, KvMemoryModel, MemoryModel, ModelShape, Room, memory_model
from gaelp_tasks.footprints import slots as fitting
from gaelp_tasks.models.capacity import MemorySnapshot
from gaelp_tasks.settings import Settings
from gaelp_workers.ledger import Footprint

__all__ = ["Footprints", "Lesson", "footprint"]

logger = logging.getLogger(__name__)

KEPT_S = 30 * 86_400.0
AT_ONCE = 32  #: models whose shape is asked for at one look


class Lesson(NamedTuple):
    """What was learned of a model: it holds only while file, context and slots are the same."""

    digest: str
    num_ctx: int
    num_parallel: int
    measured_bytes: int  #: 0: never measured
    ours: bool  #: loaded by this worker, and in memory when that was written


def footprint(
    model: MemoryModel, *, slots: int, loaded_with: int, embeds: bool, seats: int, naive: bool, room: Room
) -> Footprint:
    """The ledger's terms; `loaded_with` slots are in memory, `slots` of them are given out.

    Embeddings share the calls of one slot: any number of them, up to `seats`, costs the same. `naive` charges
    each slot the whole model, and gives as many as `room` has for, one at least; else a model of which only
    the size is known is charged once.
    """
    if not slots:  # loaded all the same for what was claimed before
        return Footprint(model.shared_bytes + loaded_with * model.per_slot_bytes, 0, 0)
    if embeds:
        return Footprint(model.shared_bytes + model.per_slot_bytes, 0, seats)
    if naive:
        return Footprint(0, model.per_slot_bytes, max(min(slots, 1), fitting(model, room, slots)))
    if not isinstance(model, KvMemoryModel):
        return Footprint(model.per_slot_bytes, 0, slots)
    caches_bytes = loaded_with * model.per_slot_bytes
    return Footprint(model.shared_bytes + caches_bytes % max(1, slots), caches_bytes // max(1, slots), slots)


class Footprints:
    """The footprints of one node's models by canonical name; `slots` tells how many each may have now."""

    def __init__(
        self,
        client: LocalOllamaClient,
        settings: Settings,
        redis: AsyncRedis,
        key: str,
        slots: Callable[[], int],
    ) -> None:
        self._client = client
        self._settings = settings
        self._redis = redis
        self._key = key
        self._slots = slots
        self._shapes: dict[str, ModelShape] = {}
        self._digests: dict[str, str] = {}
        self._untold: set[str] = set()  # models of which only the size is known, until the server tells more
        self.changed: frozenset[str] = frozenset()  #: models whose file was another one at the look before
        self._lessons: dict[str, Lesson] = {}

    async def recall(self) -> None:
        """What an earlier worker has learned of this node; nothing where Redis does not tell."""
        told: Any = {}
        with suppress(*unavailable):
            told = await self._redis.hgetall(self._key)
        for model, text in told.items():
            with suppress(ValueError, TypeError):  # of another release
                self._lessons[model] = Lesson(*json.loads(text))

    async def look(self, models: Sequence[ModelInfo]) -> None:
        """Learn the shapes of what the node has; a few at each look."""
        before, self._digests = self._digests, {canonical(model.name): model.digest for model in models}
        self.changed = frozenset(
            model for model, digest in self._digests.items() if before.get(model, digest) != digest
        )
        for gone in (self._shapes.keys() - self._digests.keys()) | (self._shapes.keys() & self.changed):
            del self._shapes[gone]
        new = [
            model
            for model in models
            if (name := canonical(model.name)) not in self._shapes or name in self._untold
        ]
        for model in new[:AT_ONCE]:
            try:
                shape = await self._client.shape(model.name)
            except NodeError as error:
                logger.warning("%s does not tell the shape of %s: %s", self._client.node, model.name, error)
                shape = ModelShape(name=model.name, weights_bytes=model.size_bytes)
                self._untold.add(canonical(model.name))
            else:
                self._untold.discard(canonical(model.name))
            self._shapes[canonical(model.name)] = shape

    def all(
        self, memory: MemorySnapshot, resident: Mapping[str, int], line_bytes: int
    ) -> dict[str, Footprint]:
        """Of every model whose shape is known.

        `resident` tells what each in memory holds, `line_bytes` what a load must leave free.
        """
        settings, slots = self._settings, self._slots()
        found = {}
        for model, shape in self._shapes.items():
            kind = memory_model(
                shape,
                self._context(shape),
                kind=settings.memory_model,
                kv_cache_type=settings.kv_cache_type,
            )
            most = min(slots, 1) if shape.alone and not shape.embeds else slots
            found[model] = footprint(
                kind,
                slots=most,
                loaded_with=1 if shape.alone else settings.num_parallel,
                embeds=shape.embeds,
                seats=settings.embed_seats if slots else 0,
                naive=settings.memory_model == "naive",
                room=Room(
                    free_bytes=memory.free_bytes + resident.get(model, 0),
                    reserve_bytes=line_bytes,
                    safety_factor=settings.safety_factor,
                ),
            )
        return found

    def embeds(self, model: str) -> bool:
        """Whether it makes vectors and no text."""
        shape = self._shapes.get(model)
        return shape is not None and shape.embeds

    def _context(self, shape: ModelShape) -> int:
        return shape.context(self._settings.num_ctx, OLLAMAS_CONTEXT)

    def measured(self) -> dict[str, int]:
        """Bytes by model, of those measured as they would be loaded now."""
        return {
            model: lesson.measured_bytes
            for model, lesson in self._lessons.items()
            if lesson.measured_bytes
            and self._lesson(model, lesson.measured_bytes, ours=lesson.ours) == lesson
        }

    def ours(self) -> frozenset[str]:
        """Models that this worker had loaded when it was last here."""
        return frozenset(model for model, lesson in self._lessons.items() if lesson.ours)

    async def keep(self, measured: Mapping[str, int], ours: frozenset[str]) -> None:
        """Remember, where anything has changed."""
        changed = {}
        for model in self._shapes.keys() & (measured.keys() | ours | self._lessons.keys()):
            lesson = self._lesson(model, measured.get(model, 0), ours=model in ours)
            if lesson is not None and lesson != self._lessons.get(model):
                changed[model] = lesson
        if not changed:
            return
        with suppress(*unavailable):  # the next change tries again
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hset(self._key, mapping={model: json.dumps(lesson) for model, lesson in changed.items()})
                pipe.pexpire(self._key, int(KEPT_S * 1000))
                await pipe.execute()
            self._lessons |= changed

    def _lesson(self, model: str, measured_bytes: int, *, ours: bool) -> Lesson | None:
        shape = self._shapes.get(model)
        if shape is None:
            return None
        slots = 1 if shape.alone else self._settings.num_parallel
        return Lesson(self._digests.get(model, ""), self._context(shape), slots, measured_bytes, ours)
