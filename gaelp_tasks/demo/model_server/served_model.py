"""A model by name: its file, its waiting line, and the engine that comes and goes with demand."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import aiohttp

from gaelp_tasks.demo.model_server.engine import Engine, EngineSpec
from gaelp_tasks.demo.model_server.faults import ApiError
from gaelp_tasks.demo.model_server.gguf_info import GgufInfo
from gaelp_tasks.demo.model_server.seats import Seats


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the command line allows each model; `num_ctx` in tokens per slot, `keep_alive_s` inf for ever."""

    num_parallel: int = 4
    num_ctx: int = 2048
    max_queue: int = 64
    threads: int = 1
    keep_alive_s: float = 300.0


@dataclass(frozen=True, kw_only=True)
class Use:
    """One request's hold on a loaded engine; `load_ns` is how long it waited for the model to load."""

    engine: Engine
    load_ns: int


class ServedModel:
    """Loads on the first request, unloads when nobody has wanted it for its keep-alive."""

    def __init__(
        self, name: str, info: GgufInfo, *, embed: bool, limits: Limits, http: aiohttp.ClientSession
    ) -> None:
        self.name = name
        self.info = info
        self.embed = embed
        self.num_ctx = min(limits.num_ctx, info.context_length)
        self.seats = Seats(limits.num_parallel, limits.max_queue)
        self._http = http
        self._spec = EngineSpec(
            path=str(info.path),
            embed=embed,
            slots=limits.num_parallel,
            num_ctx=self.num_ctx,
            threads=limits.threads,
        )
        self._default_keep_alive_s = self._keep_alive_s = limits.keep_alive_s
        self._uses = 0
        self._engine: Engine | None = None
        self._loading: asyncio.Task[Engine] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def engine(self) -> Engine | None:
        """The loaded engine; None while there is none."""
        return self._engine if self._engine and self._engine.is_alive else None

    @property
    def expires_at(self) -> datetime:
        """When it will be unloaded if nobody asks for it again; a far year for never."""
        if self._expiry is not None:
            left_s = self._expiry.when() - asyncio.get_running_loop().time()
        else:
            left_s = self._keep_alive_s
        if math.isinf(left_s):
            return datetime(2318, 1, 1, tzinfo=UTC)
        return datetime.now(UTC) + timedelta(seconds=left_s)

    def require(self, *, embed: bool) -> None:
        """Raise ApiError 400 unless the model can embed (or write, for `embed=False`)."""
        if embed and not self.embed:
            raise ApiError(400, f'"{self.name}" does not support embeddings: it is a chat model')
        if self.embed and not embed:
            raise ApiError(400, f'"{self.name}" does not support generate or chat: it is an embedding model')

    @contextlib.asynccontextmanager
    async def use(self, keep_alive_s: float | None) -> AsyncIterator[Use]:
        """Wait for a seat and for the loaded engine, hold both. Raises ServerBusy, EngineFailed.

        The use counts before the child is spawned, so that no expiry can end a child that is still loading.
        """
        self._uses += 1
        self._cancel_expiry()
        self._keep_alive_s = self._default_keep_alive_s if keep_alive_s is None else keep_alive_s
        try:
            async with self.seats.take():
                since = time.perf_counter_ns()
                engine = await self._loaded()
                yield Use(engine=engine, load_ns=time.perf_counter_ns() - since)
        finally:
            self._uses -= 1
            if self._uses == 0:
                self._expire_later()

    def unload(self) -> None:
        """Unload now, or as soon as the running requests are done."""
        self._keep_alive_s = 0
        if self._uses == 0:
            self._expire_later()

    async def close(self) -> None:
        """End the child whatever it does."""
        self._cancel_expiry()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._engine is not None:
            await self._engine.stop()
        if self._chores:
            await asyncio.wait(self._chores)

    async def _loaded(self) -> Engine:
        if self.engine is not None:
            return self.engine
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        # One load for all who wait, and it goes on when the first of them hangs up.
        return await asyncio.shield(self._loading)

    async def _load(self) -> Engine:
        try:
            if self._engine is not None:  # it died or fell silent
                await self._engine.stop()
            self._engine = await Engine.start(self._spec, self._http)
        finally:
            self._loading = None
        if self._uses == 0:  # all who waited have hung up
            self._expire_later()
        return self._engine

    def _expire_later(self) -> None:
        self._cancel_expiry()
        if not math.isinf(self._keep_alive_s):
            self._expiry = asyncio.get_running_loop().call_later(self._keep_alive_s, self._expire)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        self._expiry = None
        engine, self._engine = self._engine, None
        if engine is not None:
            chore = asyncio.create_task(engine.stop())
            self._chores.add(chore)
            chore.add_done_callback(self._chores.discard)
