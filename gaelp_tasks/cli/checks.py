"""What `gaelp doctor` looks at: one small check each, every finding with its advice."""

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from gaelp_tasks import dead_letters
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cli.database import database
from gaelp_tasks.cli.findings import Check
from gaelp_tasks.cli.planning import UNSEEN, memory_of, reserve_bytes
from gaelp_tasks.cli.server import Away, Server
from gaelp_tasks.connections import eviction_policy, worded
from gaelp_tasks.errors import GaelpError, NodeError, SettingsError
from gaelp_tasks.footprints import OLLAMAS_CONTEXT, ModelShape, in_words, memory_model, needed_bytes, unusual
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.registry import AGENTS, PARSERS, TOOLS
from gaelp_tasks.settings import Settings

__all__ = ["all_checks", "broker", "letters", "machines_of", "versions", "worker"]

GIB = 1024**3


def all_checks(app: GaelpApp) -> Iterator[Check]:
    """Every check, in the order in which trouble is best looked for. Raises SettingsError."""
    yield versions()
    yield from named(app)
    yield safety(app.settings.safety_factor)
    yield from broker(app)
    yield from letters(app)
    yield from database(app.settings, machines_of(_nodes(app)))
    for url in app.settings.ollama_nodes:
        yield from node(app, url)
        yield from room(app, url)
    yield from workers(app)
    yield engine()


def versions() -> Check:
    """Python and the libraries that matter."""
    names = ("gaelp-tasks", "celery", "kombu", "redis", "pydantic")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return Check("versions", "ok", f"Python {platform.python_version()}, {found}")


def named(app: GaelpApp) -> Iterator[Check]:
    """What the settings name as agents, parsers and tools can be imported."""
    for registry in (AGENTS, PARSERS, TOOLS):
        given: dict[str, str] = getattr(app.settings, f"{registry.kind}s")
        found = []
        for name in given:
            try:
                registry.find(name, app.settings)
            except SettingsError as error:
                advice = f"Correct {registry.setting}, or install what it names where workers run."
                yield Check(f"{registry.kind} {name}", "fail", str(error), advice)
            else:
                found.append(name)
        if found:
            yield Check(f"{registry.kind}s", "ok", ", ".join(found))


def safety(factor: float) -> Check:
    """Whether estimates of memory are multiplied by something usual."""
    if warning := unusual(factor):
        return Check(
            "safety factor", "warn", warning, "See docs/memory.md; `gaelp plan` shows what it costs."
        )
    return Check("safety factor", "ok", f"{factor:g}")


def broker(app: GaelpApp) -> Iterator[Check]:
    """Redis answers, keeps what it was given, and survives itself."""
    try:
        with worded(app.settings):
            app.redis.ping()
            policy = eviction_policy(app.redis) or "unknown"
            server: Any = app.redis.info()
    except GaelpError as error:
        advice = "Start Redis (`make up` brings one) or set GAELP_BROKER_URL."
        yield Check("broker", "fail", str(error), advice)
        return
    yield Check("broker", "ok", f"Redis {server['redis_version']} at {app.settings.rows()[0].value}")
    if policy == "noeviction":
        yield Check("eviction policy", "ok", policy)
    else:
        yield Check(
            "eviction policy",
            "fail",
            f"{policy}: a full Redis would silently throw queues away",
            "Set `maxmemory-policy noeviction` in redis.conf, and now by `redis-cli CONFIG SET`.",
        )
    if server.get("aof_enabled"):
        yield Check("persistence", "ok", "append-only file")
    else:
        yield Check(
            "persistence",
            "warn",
            "no append-only file: a crash of Redis loses what is queued",
            "Set `appendonly yes` in redis.conf.",
        )


def letters(app: GaelpApp) -> Iterator[Check]:
    """Whether messages wait among the dead letters; nothing without Redis."""
    try:
        number = dead_letters.count(app)
    except GaelpError:
        return
    if not number:
        yield Check("dead letters", "ok", "none")
        return
    advice = "See why: `gaelp dlq list --by reason`; then `gaelp dlq replay` or `gaelp dlq purge`."
    yield Check("dead letters", "warn", f"{number:,} messages could not run", advice)


def node(app: GaelpApp, url: str) -> Iterator[Check]:
    """An Ollama server answers and has models."""
    settings = app.settings
    server = Server(url, settings)
    try:
        told = server.version()
        release = told["version"]
        names, in_memory = server.names(), server.loaded()
    except Away as away:
        advice = f"{away.advice[0].upper()}{away.advice[1:]}; `make up` brings a small stand-in."
        yield Check(f"node {server.name}", "fail", away.reason, advice)
        return
    except (NodeError, LookupError) as error:
        why = (
            str(error)
            if isinstance(error, NodeError)
            else "does not answer as Ollama does: check GAELP_OLLAMA_NODES."
        )
        yield Check(
            f"node {server.name}",
            "fail",
            why.removeprefix(f"{server.name} "),
            "See its log; `make up` brings a small stand-in.",
        )
        return
    finally:
        server.close()
    yield Check(
        f"node {server.name}", "ok", f"version {release}, in memory: {', '.join(in_memory) or 'nothing'}"
    )
    wanted, name = settings.default_model, f"models on {server.name}"
    if not names:
        yield Check(
            name,
            "fail",
            "the node has none",
            f"Pull one there: gaelp models pull llama3.2:1b --node {server.name}.",
        )
    elif wanted and wanted not in names and f"{wanted}:latest" not in names:
        yield Check(
            name,
            "fail",
            f"{wanted} (GAELP_DEFAULT_MODEL) is not there",
            f"Pull it there: gaelp models pull {wanted} --node {server.name}.",
        )
    else:
        yield Check(name, "ok", ", ".join(names))
    yield parallelism(settings.num_parallel, told.get("num_parallel"), at=server.name)


def room(app: GaelpApp, url: str) -> Iterator[Check]:
    """Whether the models that serve where none is named fit; nothing where no worker tells the memory."""
    settings, server = app.settings, Server(url, app.settings)
    try:
        names = [name for name in (settings.default_model, settings.embed_model) if name] or _first(server)
        shapes, running = server.shapes(names) if names else [], server.running()
        weights_bytes = {info.name: info.size_bytes for info in server.infos()}
        memory = memory_of(None, live_nodes(app))(server.name, running, weights_bytes)
        told = server.version().get("num_parallel")
    except GaelpError:  # other checks tell of it
        return
    finally:
        server.close()
    slots = told if isinstance(told, int) else settings.num_parallel
    usable_bytes = memory.free_bytes - reserve_bytes(memory, settings)
    for shape in shapes:
        yield _fits(shape, settings, slots, usable_bytes, at=server.name)


def _fits(shape: ModelShape, settings: Settings, slots: int, usable_bytes: int, *, at: str) -> Check:
    """As workers load it: with all slots of the node, or with the one that it can have."""
    count = 1 if shape.alone or settings.memory_model == "naive" else slots
    model = memory_model(
        shape,
        shape.context(settings.num_ctx, OLLAMAS_CONTEXT),
        kind=settings.memory_model,
        kv_cache_type=settings.kv_cache_type,
    )
    need_bytes = needed_bytes(model, count, settings.safety_factor)
    sizes = f"needs {in_words(need_bytes)} with {count} {'slot' if count == 1 else 'slots'}"
    usable = in_words(max(0, usable_bytes))
    if need_bytes <= usable_bytes:
        return Check(f"room on {at}", "ok", f"{shape.name} {sizes}, and {usable} are there above the reserve")
    advice = f"See `gaelp plan {shape.name} --node {at}` for the slots and the context that it could have."
    finding = f"{shape.name} does not fit: it {sizes}, and {usable} are there above the reserve"
    return Check(f"room on {at}", "warn", finding, advice)


def _first(server: Server) -> list[str]:
    """The node's own choice: its first model that writes."""
    for info in server.infos():
        if not server.shapes([info.name])[0].embeds:
            return [info.name]
    return []


def parallelism(declared: int, real: int | None, *, at: str) -> Check:
    """What we run at once on a node against what the node can."""
    name = f"parallelism on {at}"
    if real is None:
        return Check(
            name,
            "ok" if declared == 1 else "warn",
            f"GAELP_NUM_PARALLEL is {declared}; Ollama does not tell what it runs at once",
            "" if declared == 1 else f"Make sure that the server runs with OLLAMA_NUM_PARALLEL={declared}.",
        )
    if real == declared:
        return Check(name, "ok", f"{real} slots, here and on the node")
    return Check(
        name,
        "warn",
        f"the node has {real} slots and GAELP_NUM_PARALLEL is {declared}",
        f"Set GAELP_NUM_PARALLEL={real}.",
    )


def machines_of(nodes: Iterable[NodeSnapshot]) -> int:
    """On how many machines these workers run, by what stands behind the @ of their names."""
    return len({node.worker.partition("@")[2] for node in nodes})


def _nodes(app: GaelpApp) -> list[NodeSnapshot]:
    """What is announced; nothing where Redis does not tell, of which another check tells."""
    try:
        return live_nodes(app)
    except GaelpError:
        return []


def workers(app: GaelpApp) -> Iterator[Check]:
    """Workers announce themselves, with their memory."""
    try:
        nodes = live_nodes(app)
    except GaelpError:
        return
    if not nodes:
        yield Check("workers", "warn", "none is running", "Start one: `gaelp worker`.")
    for found in nodes:
        yield worker(found)


def worker(found: NodeSnapshot) -> Check:
    """One worker on one node: its slots, and the memory that it goes by."""
    memory = found.memory
    name = f"worker {found.worker} on {found.url}"
    slots = f"{found.busy} of {found.slots} slots busy"
    if memory.source == UNSEEN:
        sizes = "nothing tells the memory of its node"
    else:
        free, total = memory.free_bytes / GIB, memory.total_bytes / GIB
        sizes = f"{free:.1f} of {total:.1f} GiB free ({memory.source})"
    if not found.healthy:
        return Check(name, "fail", f"{slots}, {sizes}", found.trouble or "The node does not answer.")
    if memory.source == UNSEEN:
        advice = "Declare it where the worker runs, GAELP_MEMORY_BUDGET=24GiB."
        return Check(name, "warn", f"{slots}, {sizes}", advice)
    return Check(name, "ok", f"{slots}, {sizes}")


def engine() -> Check:
    """Whether the stand-in for Ollama could run here; only the demo needs it."""
    from gaelp_tasks.demo.model_server.check import check_engine  # noqa: PLC0415  only with the extra

    trouble = check_engine()
    if trouble is None:
        return Check("demo engine", "ok", "llama.cpp can be loaded")
    return Check("demo engine", "warn", trouble)
