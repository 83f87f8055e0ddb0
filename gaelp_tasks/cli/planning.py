"""`gaelp plan`: what fits on a node, and which NUM_PARALLEL and num_ctx it should have."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from socket import gethostname
from typing import Annotated, Any, NamedTuple, get_args

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.output import Json, note, out, print_json
from gaelp_tasks.cli.server import Away, Server, chosen
from gaelp_tasks.clients.wire import Running
from gaelp_tasks.errors import BrokerUnavailable, NodeError
from gaelp_tasks.footprints import (
    KvCacheType,
    ModelPlan,
    ModelShape,
    NodePlan,
    Room,
    in_words,
    memory_model,
    plan_node,
    unusual,
)
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.settings import Settings

__all__ = ["memory_of", "plan", "reserve_bytes"]

NO_MEMORY = (
    "No worker tells the memory of {node}: start one with `gaelp worker`, or say how much, --memory 24GiB."
)
UNSEEN = "unknown"  #: a worker's word for memory that no probe sees

_size = TypeAdapter(ByteSize)


MOST_BYTES = 2**60
MOST_FACTOR = 100.0
MOST_TOKENS = 2**40
MANY_TELL = "Several workers tell of a node {node}: {names}. Say how much memory yours has: --memory 24GiB."


class Memory(NamedTuple):
    """What a node has for models and for the reserve."""

    free_bytes: int  #: with nothing loaded
    given_back_bytes: int  #: of these, what the models in memory would give back
    source: str  #: who says so


class Planned(NamedTuple):
    """One node, and what it should have."""

    node: str
    memory: Memory
    running: tuple[Running, ...]
    shapes: dict[str, ModelShape]  #: of the models asked for
    num_parallel: int  #: it has now, as it tells or as GAELP_NUM_PARALLEL declares
    plan: NodePlan
    troubles: tuple[str, ...]  #: a sentence for each model that could not be planned


#: of a node with these models in memory, and these sizes of files
FindMemory = Callable[[str, Iterable[Running], Mapping[str, int]], Memory]


def _bytes(text: str) -> int:
    try:
        size = int(_size.validate_python(text))
    except ValidationError:
        size = MOST_BYTES + 1
    if size > MOST_BYTES:
        raise typer.BadParameter(f"{text} is no size, such as 24GiB or 512MiB.")
    return size


def _factor(text: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 1 <= factor <= MOST_FACTOR:
        raise typer.BadParameter(
            f"{text} is no number from 1 to {MOST_FACTOR:g}: less would promise memory that is not there."
        )
    return factor


def _cache_type(text: str) -> str:
    if text not in get_args(KvCacheType):
        raise typer.BadParameter(f"{text} is none of {', '.join(get_args(KvCacheType))}.")
    return text


Models = Annotated[
    list[str] | None,
    typer.Argument(metavar="MODEL", help="As in llama3.2:1b; default: every one of the node."),
]
MemoryOption = Annotated[
    int | None,
    typer.Option(
        parser=_bytes, metavar="SIZE", help="What the node has free; default: as its worker announces."
    ),
]
Reserve = Annotated[
    int | None,
    typer.Option(parser=_bytes, metavar="SIZE", help="Left to the system; default: GAELP_OS_RESERVE."),
]
Factor = Annotated[
    float | None,
    typer.Option(
        parser=_factor, metavar="NUMBER", help="Estimates times this; default: GAELP_SAFETY_FACTOR."
    ),
]
Context = Annotated[
    int | None, typer.Option(min=0, max=MOST_TOKENS, help="Tokens of one slot; default: GAELP_NUM_CTX.")
]
CacheType = Annotated[
    str | None,
    typer.Option(
        parser=_cache_type, metavar="TYPE", help="f16 bf16 q8_0 q4_0 f32; default: GAELP_KV_CACHE_TYPE."
    ),
]
OnNode = Annotated[
    str,
    typer.Option("--node", metavar="URL", help="Only this node; default: every one of GAELP_OLLAMA_NODES."),
]


def plan(
    models: Models = None,
    *,
    memory: MemoryOption = None,
    reserve: Reserve = None,
    safety_factor: Factor = None,
    num_ctx: Context = None,
    kv_cache_type: CacheType = None,
    node: OnNode = "",
    as_json: Json = False,
) -> None:
    """What fits on each node: weights, KV per slot, slots, and which NUM_PARALLEL and num_ctx it should have.

    Slots are told by two memory models: kv charges weights once and each slot its context, as Ollama does,
    naive charges the whole model to every slot. GAELP_MEMORY_MODEL decides which of them advises.

    Example: gaelp plan llama3.1:8b nomic-embed-text --memory 24GiB --num-ctx 8192
    """
    given: dict[str, Any] = {
        "os_reserve": reserve,
        "safety_factor": safety_factor,
        "num_ctx": num_ctx,
        "kv_cache_type": kv_cache_type,
    }
    settings = app.settings.model_copy(
        update={name: value for name, value in given.items() if value is not None}
    )
    nodes = [] if memory is not None else _announced()
    planned: list[Planned] = []
    troubles: list[dict[str, str]] = []
    with chosen(node, settings) as servers:
        for server in servers:
            try:
                found = _planned(server, settings, models or (), memory_of(memory, nodes))
            except NodeError as error:
                troubles.append({"node": server.name, "trouble": str(error)})
            else:
                planned.append(found)
                troubles += [{"node": server.name, "trouble": trouble} for trouble in found.troubles]
    if warning := unusual(settings.safety_factor):
        note(warning)
    if as_json:
        print_json({"nodes": [_document(one, settings) for one in planned], "troubles": troubles})
    else:
        for one in planned:
            _print(one, settings)
        for trouble in troubles:
            note(trouble["trouble"])
    if troubles:
        raise typer.Exit(1)


def _announced() -> list[NodeSnapshot]:
    try:
        return live_nodes(app)
    except BrokerUnavailable as error:
        raise BrokerUnavailable(
            f"{error} Without it, say how much memory there is: --memory 24GiB."
        ) from None


def memory_of(said: int | None, nodes: Sequence[NodeSnapshot]) -> FindMemory:
    """How to find a node's memory: what was said, else what its worker announces. Raises NodeError."""

    def find(node: str, running: Iterable[Running], weights_bytes: Mapping[str, int]) -> Memory:
        if said is not None:
            return Memory(said, 0, "as said")
        telling = [found for found in nodes if found.url == node and found.memory.source != UNSEEN]
        if len(telling) > 1:  # 127.0.0.1 means another machine to each worker
            here = f"@{gethostname()}"
            own = [found for found in telling if found.worker.endswith(here)]
            if len(own) != 1:
                names = ", ".join(found.worker for found in telling)
                raise NodeError(MANY_TELL.format(node=node, names=names), node=node)
            telling = own
        if not telling:
            raise NodeError(NO_MEMORY.format(node=node), node=node)
        [found] = telling
        models = list(running)
        held = _given_back(models, weights_bytes, found.memory.source)
        whole = min(found.memory.total_bytes, found.memory.free_bytes + held)
        return Memory(whole, whole - found.memory.free_bytes, found.memory.source)

    return find


def _given_back(models: Sequence[Running], weights_bytes: Mapping[str, int], source: str) -> int:
    """Bytes that become free, as that probe sees them, when these models are unloaded."""
    in_vram = sum(model.size_vram for model in models)
    if source == "gpu" or (source == "budget" and in_vram):  # a budget is of VRAM where models lie there
        return in_vram
    if source == "budget":
        return sum(model.size for model in models)
    # weights in RAM are a mapped file, which hosts count as free all the time
    return sum(
        max(0, model.size - model.size_vram - weights_bytes.get(model.name, model.size)) for model in models
    )


def reserve_bytes(memory: Memory, settings: Settings) -> int:
    """What is left to the system; nothing of a declared budget, which is for models alone."""
    return 0 if memory.source == "budget" else int(settings.os_reserve)


def _planned(
    server: Server,
    settings: Settings,
    names: Sequence[str],
    find: FindMemory,
) -> Planned:
    shapes, troubles = _shapes(server, names)
    running = server.running()
    memory = find(server.name, running, {info.name: info.size_bytes for info in server.infos()})
    room = Room(
        free_bytes=memory.free_bytes,
        reserve_bytes=reserve_bytes(memory, settings),
        safety_factor=settings.safety_factor,
    )
    told = server.version().get("num_parallel")
    advised = plan_node(
        shapes,
        room,
        num_ctx=settings.num_ctx,
        kind=settings.memory_model,
        kv_cache_type=settings.kv_cache_type,
    )
    return Planned(
        node=server.name,
        memory=memory,
        running=running,
        shapes={shape.name: shape for shape in shapes},
        num_parallel=told if isinstance(told, int) else settings.num_parallel,
        plan=advised,
        troubles=troubles,
    )


def _shapes(server: Server, names: Sequence[str]) -> tuple[list[ModelShape], tuple[str, ...]]:
    """The shapes of these models, and a sentence for each that the server does not tell.

    Raises NodeError where it tells none.
    """
    try:
        return server.shapes(names), ()
    except Away:
        raise
    except NodeError as error:
        first = error
    shapes: list[ModelShape] = []
    troubles = []
    for name in names or [info.name for info in server.infos()]:
        try:
            shapes += server.shapes([name])
        except NodeError as error:
            troubles.append(str(error))
    if not shapes:
        raise first
    return shapes, tuple(troubles)


def _document(planned: Planned, settings: Settings) -> dict[str, Any]:
    """For programs."""
    plan = planned.plan
    return {
        "node": planned.node,
        "memory": planned.memory._asdict(),
        "reserve_bytes": int(settings.os_reserve),
        "safety_factor": settings.safety_factor,
        "memory_model": settings.memory_model,
        "kv_cache_type": settings.kv_cache_type,
        "num_parallel": {"now": planned.num_parallel, "advised": plan.num_parallel},
        "num_ctx": {"now": settings.num_ctx, "advised": plan.num_ctx},
        "together": plan.together,
        "why": list(plan.why),
        "models": [{**one._asdict(), **_in_memory(planned, one, settings)} for one in plan.models],
    }


def _in_memory(planned: Planned, asked: ModelPlan, settings: Settings) -> dict[str, int]:
    """What a model takes now, measured and estimated for the slots and the context that it runs with."""
    found = next((one for one in planned.running if one.name == asked.name and one.size), None)
    if found is None:
        return {"measured_bytes": 0, "estimated_bytes": 0}
    shape = planned.shapes[asked.name]
    model = memory_model(shape, found.context_length or asked.num_ctx, kv_cache_type=settings.kv_cache_type)
    slots = 1 if shape.alone else planned.num_parallel
    return {
        "measured_bytes": found.size,
        "estimated_bytes": model.shared_bytes + slots * model.per_slot_bytes,
    }


def _print(planned: Planned, settings: Settings) -> None:
    plan, memory = planned.plan, planned.memory
    back = (
        f", {in_words(memory.given_back_bytes)} of it held by models now" if memory.given_back_bytes else ""
    )
    table = Table(title=escape(planned.node), title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("model", overflow="fold")
    for name in ("weights", "KV per slot", "compute", "context", "slots", "naive", "needs", "in memory"):
        table.add_column(name, justify="right")
    for one in plan.models:
        table.add_row(*_row(one, _in_memory(planned, one, settings)))
    out.print(table)
    out.print(
        escape(
            f"Memory: {in_words(memory.free_bytes)} ({memory.source}){back}; "
            f"{in_words(reserve_bytes(memory, settings))} are "
            f"the system's; estimates times {settings.safety_factor:g}; {settings.kv_cache_type} KV cache."
        )
    )
    for sentence in plan.why:
        out.print(escape(sentence))
    if advice := _advice(planned):
        out.print(escape(f"-> {advice}"))


def _row(one: ModelPlan, now: dict[str, int]) -> list[str]:
    measured, estimated = now["measured_bytes"], now["estimated_bytes"]
    return [
        escape(one.name),
        in_words(one.weights_bytes),
        "?" if one.kv_slot_bytes is None else in_words(one.kv_slot_bytes),
        "?" if one.compute_bytes is None else in_words(one.compute_bytes),
        str(one.num_ctx or "?"),
        str(one.kv_slots),
        str(one.naive_slots),
        in_words(one.needed_bytes) if one.num_parallel else "-",
        f"{in_words(measured)} (estimate {in_words(estimated)})" if measured else "-",
    ]


def _advice(planned: Planned) -> str:
    """What to set, and where; '' where all is as it should be, or nothing fits."""
    plan = planned.plan
    todo = []
    shared = any(not one.embeds for one in plan.models)  # models that embed have one slot whatever is set
    if shared and plan.num_parallel and plan.num_parallel != planned.num_parallel:
        todo.append(
            f"start the server with OLLAMA_NUM_PARALLEL={plan.num_parallel} (now {planned.num_parallel}) and "
            f"its worker with GAELP_NUM_PARALLEL={plan.num_parallel}"
        )
    if plan.num_parallel and plan.num_ctx and plan.num_ctx != app.settings.num_ctx:
        todo.append(f"set GAELP_NUM_CTX={plan.num_ctx} everywhere")
    words = "; ".join(todo)
    return f"{words[0].upper()}{words[1:]}." if words else ""
