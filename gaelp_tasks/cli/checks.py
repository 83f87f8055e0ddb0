"""What `gaelp doctor` looks at: one small check each, every finding with its advice."""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from gaelp_tasks import dead_letters
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cli.server import Away, Server
from gaelp_tasks.connections import eviction_policy, worded
from gaelp_tasks.errors import GaelpError, NodeError, SettingsError
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.registry import AGENTS, PARSERS, TOOLS

__all__ = ["Check", "all_checks"]

GIB = 1024**3


class Check(NamedTuple):
    """One finding."""

    name: str
    verdict: Literal["ok", "warn", "fail"]
    finding: str
    advice: str = ""


def all_checks(app: GaelpApp) -> Iterator[Check]:
    """Every check, in the order in which trouble is best looked for. Raises SettingsError."""
    yield versions()
    yield from named(app)
    yield from broker(app)
    yield from letters(app)
    for url in app.settings.ollama_nodes:
        yield from node(app, url)
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


def workers(app: GaelpApp) -> Iterator[Check]:
    """Workers announce themselves, with their memory."""
    try:
        nodes = live_nodes(app)
    except GaelpError:
        return
    if not nodes:
        yield Check("workers", "warn", "none is running", "Start one: `gaelp worker`.")
    for found in nodes:
        memory = found.memory
        yield Check(
            f"worker {found.worker} on {found.url}",
            "ok" if found.healthy else "fail",
            f"{found.busy} of {found.slots} slots busy, {memory.free_bytes / GIB:.1f} of "
            f"{memory.total_bytes / GIB:.1f} GiB free ({memory.source})",
            "" if found.healthy else found.trouble or "The node does not answer.",
        )


def engine() -> Check:
    """Whether the stand-in for Ollama could run here; only the demo needs it."""
    from gaelp_tasks.demo.model_server.check import check_engine  # noqa: PLC0415  only with the extra

    trouble = check_engine()
    if trouble is None:
        return Check("demo engine", "ok", "llama.cpp can be loaded")
    return Check("demo engine", "warn", trouble)
