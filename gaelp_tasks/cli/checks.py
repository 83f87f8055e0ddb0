"""What `gaelp doctor` looks at: one small check each, every finding with its advice."""

import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

import requests

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.overview import live_nodes

__all__ = ["Check", "all_checks"]

ASK_S = 5.0
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
    yield from broker(app)
    for url in app.settings.ollama_nodes:
        yield from node(app, url)
    yield from workers(app)
    yield engine()


def versions() -> Check:
    """Python and the libraries that matter."""
    names = ("gaelp-tasks", "celery", "kombu", "redis", "pydantic")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return Check("versions", "ok", f"Python {platform.python_version()}, {found}")


def broker(app: GaelpApp) -> Iterator[Check]:
    """Redis answers, keeps what it was given, and survives itself."""
    try:
        app.redis.ping()
        server: Any = app.redis.info()
    except Exception as error:  # noqa: BLE001  whatever is wrong with Redis is the finding
        yield Check(
            "broker", "fail", str(error), "Start Redis (`make up` brings one) or set GAELP_BROKER_URL."
        )
        return
    yield Check("broker", "ok", f"Redis {server['redis_version']} at {app.settings.rows()[0].value}")
    policy = server.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        yield Check("eviction policy", "ok", policy)
    else:
        yield Check(
            "eviction policy",
            "fail",
            f"{policy}: a full Redis would silently throw queues away",
            "Set `maxmemory-policy noeviction` in redis.conf.",
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


def node(app: GaelpApp, url: str) -> Iterator[Check]:
    """An Ollama server answers and has models."""
    settings = app.settings
    headers = {name: value.get_secret_value() for name, value in settings.ollama_headers.items()}

    def ask(path: str) -> Any:
        reply = requests.get(
            url + path, headers=headers, timeout=ASK_S, verify=settings.ollama_ca_file or True
        )
        reply.raise_for_status()
        return reply.json()

    try:
        told = ask("/api/version")
        server = told["version"]
        names = [model["name"] for model in ask("/api/tags")["models"]]
        in_memory = [model["name"] for model in ask("/api/ps")["models"]]
    except (requests.RequestException, ValueError, LookupError, TypeError) as error:
        yield Check(
            f"node {url}",
            "fail",
            f"does not answer as Ollama does ({type(error).__name__})",
            "Start it (`ollama serve`), or set GAELP_OLLAMA_NODES; `make up` brings a small stand-in.",
        )
        return
    yield Check(f"node {url}", "ok", f"version {server}, in memory: {', '.join(in_memory) or 'nothing'}")
    wanted = settings.default_model
    if not names:
        yield Check("models", "fail", "the node has none", "Pull one: `ollama pull llama3.2:1b`.")
    elif wanted and wanted not in names and f"{wanted}:latest" not in names:
        yield Check(
            "models", "fail", f"{wanted} (GAELP_DEFAULT_MODEL) is not there", f"Run `ollama pull {wanted}`."
        )
    else:
        yield Check("models", "ok", ", ".join(names))
    yield parallelism(settings.num_parallel, told.get("num_parallel"))


def parallelism(declared: int, real: int | None) -> Check:
    """What we run at once on the node against what the node can."""
    if real is None:
        return Check(
            "parallelism",
            "ok" if declared == 1 else "warn",
            f"GAELP_NUM_PARALLEL is {declared}; Ollama does not tell what it runs at once",
            "" if declared == 1 else f"Make sure that the server runs with OLLAMA_NUM_PARALLEL={declared}.",
        )
    if real == declared:
        return Check("parallelism", "ok", f"{real} slots, here and on the node")
    return Check(
        "parallelism",
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
            f"worker {found.worker}",
            "ok" if found.healthy else "fail",
            f"{len(found.running)} of {found.slots} slots busy, {memory.free_bytes / GIB:.1f} of "
            f"{memory.total_bytes / GIB:.1f} GiB free ({memory.source})",
            "" if found.healthy else f"Its node {found.url} does not answer.",
        )


def engine() -> Check:
    """Whether the stand-in for Ollama could run here; only the demo needs it."""
    from gaelp_tasks.demo.model_server.check import check_engine  # noqa: PLC0415  only with the extra

    trouble = check_engine()
    if trouble is None:
        return Check("demo engine", "ok", "llama.cpp can be loaded")
    return Check("demo engine", "warn", trouble)
