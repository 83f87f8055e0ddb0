"""A model server whose models really take memory: one process for each loaded model, as Ollama has.

`python -m support.paging_server PLAN` prints its address; PLAN is a file that holds a `Plan`. It joins the
cgroup that the plan names, and notes in a journal, a JSON line each, what it does and when:

    loading, loaded {model}     its process has begun to touch pages, has touched them all
    asked, unloaded {model}     somebody wants it gone; its process has ended, its memory is back
    died {model}                its process was killed by somebody else
    chat, end, left {model, id} a call has a slot; had its answer; its client left before

Loads, and the room for them, go as in Ollama: one at a time; where less than 1 / 0.8 of the estimate is free
idle models are unloaded for it, and while none is idle it waits; who leaves before the load is done ends it.
Unloading waits for the calls that run. A call takes as many tokens as its prompt asks for (`prompt`), and
where the last message is the assistant's goes on behind it. Each call leaves some memory taken.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from support.scripted_server import Reply, Request, ScriptedServer

PAGES = Path(__file__).with_name("pages.py")
FULL_SHARE = 0.8  #: of what is free: a larger estimate makes room first
PLAIN_TOKENS, PLAIN_PACE_S = 8, 0.01  #: of a prompt that `prompt` has not made


@dataclass(frozen=True, kw_only=True)
class PagedModel:
    """A model: what is told of it, and what it takes."""

    name: str
    weights_bytes: int  #: as /api/tags tells them
    layers: int
    kv_heads: int
    head_size: int
    width: int
    feed_forward: int
    estimate_bytes: int  #: what a server thinks that it takes, all slots included
    true_weights_bytes: int  #: touched evenly over `load_s`
    true_kv_bytes: int  #: touched at once, at the end of the load
    load_s: float
    call_bytes: int = 0  #: that each call leaves taken, up to `calls_bytes`
    calls_bytes: int = 0

    @property
    def true_bytes(self) -> int:
        """What it takes once it is loaded."""
        return self.true_weights_bytes + self.true_kv_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a server is told at its start."""

    models: tuple[PagedModel, ...]
    num_parallel: int
    num_ctx: int
    door: str  #: cgroup.procs of the cgroup to join
    limit_bytes: int  #: of it
    used: str  #: the file that tells how much of it is used
    journal: str

    def written(self, file: Path) -> Path:
        """The file with the plan in it."""
        file.write_text(json.dumps(asdict(self)))
        return file

    @classmethod
    def read(cls, file: Path) -> "Plan":
        """The plan in a file."""
        told = json.loads(file.read_text())
        return cls(**told | {"models": tuple(PagedModel(**model) for model in told["models"])})


def prompt(call_id: str, tier: str, tokens: int, pace_s: float) -> str:
    """What to ask for."""
    return json.dumps([call_id, tier, tokens, pace_s])


def answer(tokens: int) -> str:
    """What a whole answer of so many tokens says."""
    return "".join(_token(number) for number in range(tokens))


def _token(number: int) -> str:
    return f" w{number}"


@dataclass(eq=False)
class Runner:
    """The process of one loaded model."""

    model: PagedModel
    process: asyncio.subprocess.Process
    slots: asyncio.Semaphore
    users: int = 0
    calls_bytes: int = 0
    expires: bool = False  #: it goes as soon as nobody uses it
    stopped: bool = False  #: we have killed it
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    steps: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def take(self, size: int, seconds: float = 0.0) -> None:
        """Touch so many more bytes. Raises ConnectionError where the process has died."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        async with self.steps:
            self.process.stdin.write(f"take {size} {seconds}\n".encode())
            if not await self.process.stdout.readline():
                raise ConnectionError("the runner has died")


class PagingServer:
    """Ollama's API over runners that hold memory."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._models = {model.name: model for model in plan.models}
        self._runners: dict[str, Runner] = {}  # those that can be called
        self._loading: Runner | None = None
        self._one_load = asyncio.Lock()
        self._changed = asyncio.Event()
        self._journal = Path(plan.journal).open("a")  # noqa: SIM115  for as long as the process lives
        self._waits: set[asyncio.Task[None]] = set()

    def serve(self, server: ScriptedServer) -> None:
        """Answer for this server from now on."""
        answers = {
            "/api/version": self._version,
            "/api/tags": self._tags,
            "/api/show": self._show,
            "/api/ps": self._ps,
            "/api/generate": self._generate,
            "/api/chat": self._chat,
        }
        for path, handler in answers.items():
            server.on(path, handler)

    async def _version(self, _: Request, reply: Reply) -> None:
        reply.whole({"version": "0.33.0"})

    async def _tags(self, _: Request, reply: Reply) -> None:
        reply.whole(
            {
                "models": [
                    {
                        "name": model.name,
                        "model": model.name,
                        "size": model.weights_bytes,
                        "digest": model.name.encode().hex().ljust(64, "0"),
                        "details": {"family": "llama"},
                        "capabilities": ["completion"],
                    }
                    for model in self._models.values()
                ]
            }
        )

    async def _show(self, request: Request, reply: Reply) -> None:
        model = self._asked(request, reply)
        if model is None:
            return
        sizes = {
            "block_count": model.layers,
            "attention.head_count": model.kv_heads,
            "attention.head_count_kv": model.kv_heads,
            "attention.key_length": model.head_size,
            "attention.value_length": model.head_size,
            "context_length": 131072,
            "embedding_length": model.width,
            "feed_forward_length": model.feed_forward,
        }
        info = {f"llama.{name}": size for name, size in sizes.items()}
        reply.whole(
            {
                "capabilities": ["completion"],
                "details": {"family": "llama"},
                "model_info": {"general.architecture": "llama"} | info,
            }
        )

    async def _ps(self, _: Request, reply: Reply) -> None:
        reply.whole(
            {
                "models": [
                    {
                        "name": runner.model.name,
                        "model": runner.model.name,
                        "size": runner.model.true_bytes,
                        "size_vram": 0,
                        "context_length": self._plan.num_ctx,
                    }
                    for runner in self._runners.values()
                ]
            }
        )

    async def _generate(self, request: Request, reply: Reply) -> None:
        """Load, or unload; text is made by /api/chat alone."""
        model = self._asked(request, reply)
        if model is None:
            return
        if request.json().get("keep_alive") == 0:
            self._note("asked", model)
            for runner in (self._runners.get(model.name), self._loading):
                if runner is not None and runner.model is model:
                    runner.expires = True  # also one that still loads: it goes once it is there
                    self._let_go(runner)
            reply.whole({"model": model.name, "done": True, "done_reason": "unload"})
            return
        with _while_here(reply):
            try:
                async with self._used(model):
                    pass
            except ConnectionError as error:
                reply.whole({"error": f"model failed to load: {error}"}, 500)
                return
            reply.whole({"model": model.name, "done": True, "done_reason": "load"})

    async def _chat(self, request: Request, reply: Reply) -> None:
        model = self._asked(request, reply)
        if model is None:
            return
        document = request.json()
        call_id, tier, tokens, pace_s, first = _wish(document["messages"])
        limit = (document.get("options") or {}).get("num_predict", -1)
        with _while_here(reply):
            try:
                async with self._used(model) as runner, runner.slots:
                    self._note("chat", model, id=call_id, tier=tier, first=first)
                    whole = await self._stream(runner, reply, first, tokens, pace_s, limit)
                    self._note("end" if whole else "cut", model, id=call_id)
                    self._grow(runner)
            except ConnectionError as error:
                reply.whole({"error": f"model failed to load: {error}"}, 500)
            except asyncio.CancelledError:
                self._note("left", model, id=call_id)
                raise

    async def _stream(
        self, runner: Runner, reply: Reply, first: int, tokens: int, pace_s: float, limit: int
    ) -> bool:
        """Whether it came to its end."""
        reply.head()
        made = 0
        for number in range(first, tokens):
            if limit >= 0 and made >= limit:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(runner.dead.wait(), pace_s)
            if runner.dead.is_set():
                reply.line({"error": "llama runner process has terminated"})
                reply.end()
                return False
            reply.token(_token(number))
            made += 1
        reply.last(
            "stop" if first + made >= tokens else "length",
            prompt_eval_count=8 + first,
            eval_count=made,
            load_duration=0,
        )
        reply.end()
        return True

    @asynccontextmanager
    async def _used(self, model: PagedModel) -> AsyncIterator[Runner]:
        """The model's runner, loaded if need be; it is not unloaded meanwhile. Raises ConnectionError."""
        runner = self._runners.get(model.name)
        if runner is None:
            async with self._one_load:
                runner = self._runners.get(model.name) or await self._load(model)
        else:
            runner.expires = False  # whoever calls it anew wants to keep it
        runner.users += 1
        try:
            yield runner
        finally:
            runner.users -= 1
            self._let_go(runner)

    async def _load(self, model: PagedModel) -> Runner:
        await self._make_room(model)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(PAGES)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        runner = Runner(model, process, asyncio.Semaphore(self._plan.num_parallel))
        self._beside(self._until_it_ends(runner))
        self._note("loading", model)
        self._loading = runner
        runner.users += 1
        try:
            await runner.take(model.true_weights_bytes, model.load_s)
            await runner.take(model.true_kv_bytes)
        except BaseException:
            self._kill(runner)
            raise
        finally:
            self._loading = None
            runner.users -= 1
        self._runners[model.name] = runner
        self._note("loaded", model, bytes=model.true_bytes)
        return runner

    async def _make_room(self, model: PagedModel) -> None:
        """Unload idle models, the longest idle first, while too little is free; wait where none is idle."""
        while self._runners:
            used = int(Path(self._plan.used).read_text())
            if model.estimate_bytes <= FULL_SHARE * (self._plan.limit_bytes - used):
                return
            idle = next((runner for runner in self._runners.values() if not runner.users), None)
            if idle is not None:
                self._note("asked", idle.model)
                self._kill(idle)
                await idle.dead.wait()
            else:
                self._changed.clear()
                await self._changed.wait()

    def _let_go(self, runner: Runner) -> None:
        if not runner.users:
            self._changed.set()
            if runner.expires:
                self._kill(runner)

    def _kill(self, runner: Runner) -> None:
        runner.stopped = True
        if self._runners.get(runner.model.name) is runner:
            del self._runners[runner.model.name]
        with suppress(ProcessLookupError):
            runner.process.kill()

    def _grow(self, runner: Runner) -> None:
        """Keep what a call leaves behind, as a cache of prompts does."""
        grown = min(runner.model.call_bytes, runner.model.calls_bytes - runner.calls_bytes)
        if grown > 0 and not runner.stopped:
            runner.calls_bytes += grown
            self._beside(runner.take(grown))

    def _beside(self, what: Coroutine[Any, Any, None]) -> None:
        async def done() -> None:
            with suppress(ConnectionError):  # it has died meanwhile, which is noted elsewhere
                await what

        task = asyncio.get_running_loop().create_task(done())
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    async def _until_it_ends(self, runner: Runner) -> None:
        await runner.process.wait()
        runner.dead.set()
        self._note("unloaded" if runner.stopped else "died", runner.model)
        self._kill(runner)
        self._changed.set()

    def _asked(self, request: Request, reply: Reply) -> PagedModel | None:
        """The model of a request; where it is unknown the reply says so."""
        name = request.json().get("model", "")
        model = self._models.get(name)
        if model is None:
            reply.whole({"error": f"model '{name}' not found"}, 404)
        return model

    def _note(self, event: str, model: PagedModel, **more: Any) -> None:
        line = {"at": time.monotonic(), "event": event, "model": model.name, **more}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def _wish(messages: list[dict[str, Any]]) -> tuple[str, str, int, float, int]:
    """Id, tier, tokens, pace, and how many tokens are there already."""
    first = 0
    if messages[-1]["role"] == "assistant":
        first = len(messages[-1]["content"].split())
    for message in reversed(messages):
        with suppress(ValueError, TypeError):
            call_id, tier, tokens, pace_s = json.loads(message["content"])
            return call_id, tier, tokens, pace_s, first
    return "", "", PLAIN_TOKENS, PLAIN_PACE_S, first


@contextmanager
def _while_here(reply: Reply) -> Iterator[None]:
    """Cancel the block when the client leaves."""
    work = asyncio.current_task()
    assert work is not None
    watch = asyncio.get_running_loop().create_task(reply.gone.wait())
    watch.add_done_callback(lambda ended: None if ended.cancelled() else work.cancel())
    try:
        yield
    finally:
        watch.cancel()


async def main(file: Path) -> None:
    """Serve until the process is ended."""
    plan = Plan.read(file)
    Path(plan.door).write_text("0")
    async with ScriptedServer() as server:
        PagingServer(plan).serve(server)
        sys.stdout.write(server.url + "\n")
        sys.stdout.flush()
        while True:
            await asyncio.sleep(1.0)
            server.requests.clear()  # a long run would keep them all


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
