"""The whole system with embedded defaults: what it needs is found first, then it is started, part by part."""

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

from gaelp_tasks.connections import connect, worded
from gaelp_tasks.demo import api
from gaelp_tasks.demo.broker import (
    broker_url,
    find_server,
    free_port,
    port_is_free,
    server_version,
    start_broker,
)
from gaelp_tasks.demo.model_node import (
    CHAT_MODEL,
    EMBED_MODEL,
    NODE_DEFAULTS,
    DemoModels,
    demo_env,
    demo_part,
    listening_at,
    models_at,
)
from gaelp_tasks.demo.parts import Child
from gaelp_tasks.demo.programs import (
    announced,
    answering,
    api_part,
    beat_part,
    flower_part,
    ticking,
    worker_part,
)
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.demo.upfile import write_private
from gaelp_tasks.settings import Settings, load_settings, masked

__all__ = ["Needs", "System", "find_needs", "shown_path", "start_system"]

FLOWER_PORT = 5555
FLOWER_USER = "gaelp"
LOGIN_FILE = "flower.login"
DEFAULTS = {"GAELP_DRAIN_GRACE_S": "5"}  # Ctrl-C must not take half a minute; what is cut is queued again

Say = Callable[[str], None]
Tell = Callable[[str, str, Path | None], None]  #: name of a part, what it is, its log (None: not ours)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What the parts will run on; None where the environment or the machine offers its own."""

    settings: Settings
    redis_server: Path | None  #: the program to start; None: GAELP_BROKER_URL names a broker
    demo_models: DemoModels | None  #: None: a real Ollama has models
    node_models: tuple[str, ...] = ()  #: what that Ollama has


@dataclass(kw_only=True)
class System:
    """A started system: the GAELP_ variables by which everything in it and around it finds it."""

    env: dict[str, str]
    flower_url: str = ""
    api_url: str = ""  #: of none where it was not asked for
    parts: list[Child] = field(default_factory=list)

    def shown_nodes(self) -> str:
        """GAELP_OLLAMA_NODES without passwords."""
        return ",".join(map(masked, self.env["GAELP_OLLAMA_NODES"].split(",")))

    def upfile(self) -> Mapping[str, object]:
        """The content of .run/up.json."""
        return {
            "broker_url": self.env["GAELP_BROKER_URL"],
            "ollama_nodes": self.env["GAELP_OLLAMA_NODES"].split(","),
            "flower_url": self.flower_url,
            "api_url": self.api_url,
            "pid": os.getpid(),
            "parts": [
                {"name": child.part.name, "pid": child.pid, "log": str(child.part.log)}
                for child in self.parts
            ],
            "env": self.env,
        }


def find_needs(cache: Path, say: Say) -> Needs:
    """Look at the environment and fetch what is missing into `cache`; nothing is started.

    Raises GaelpError: one sentence on what is missing and what to do.
    """
    settings = load_settings()
    if os.environ.get("GAELP_BROKER_URL"):
        redis_server = None
        with worded(settings), connect(settings) as client:
            client.ping()
    else:
        redis_server = find_server(cache, report=say)
    node_models = tuple(name for url in settings.ollama_nodes for name in models_at(url, settings))
    if not node_models and os.environ.get("GAELP_OLLAMA_NODES"):
        say(f"No Ollama with a model answers at {','.join(map(masked, settings.ollama_nodes))}.")
    return Needs(
        settings=settings,
        redis_server=redis_server,
        demo_models=None if node_models else DemoModels.fetch(cache, say),
        node_models=node_models,
    )


def start_system(
    stack: Stack,
    needs: Needs,
    folder: Path,
    tell: Tell,
    *,
    broker_port: int | None = None,
    defaults: Mapping[str, str] | None = None,
    with_api: bool = False,
) -> System:
    """Start every part below `folder` and wait until it is ready; `tell` hears of each.

    `broker_port` None: any free one; `defaults`: GAELP_ variables that the environment may override. Raises
    PartFailed; what was started is the stack's to stop.
    """
    given = {name: value for name, value in os.environ.items() if name.startswith("GAELP_")}
    database = {
        "GAELP_DATABASE_URL": f"sqlite:///{quote(str(folder.absolute()))}/gaelp.db",
        "GAELP_TRAINING_DIR": str(folder.absolute() / "training"),
    }
    apis = api.settings_of(folder, given) if with_api else {}
    system = System(env=DEFAULTS | database | apis | dict(defaults or {}) | given)
    system.api_url = system.env["GAELP_API_URL"] if with_api else ""
    # The model server needs nobody and takes its time: it comes up while Redis does.
    models = needs.demo_models
    server = stack.start(demo_part(models, log=folder / "logs" / "model-server.log")) if models else None
    _open_broker(stack, needs, folder, system, tell, broker_port)
    _open_models(stack, needs, server, system, tell)
    _open_programs(stack, needs, folder, system, tell)
    system.parts = list(stack.children)
    return system


def _open_broker(
    stack: Stack, needs: Needs, folder: Path, system: System, tell: Tell, port: int | None
) -> None:
    if needs.redis_server is None:
        tell("broker", f"{masked(needs.settings.broker_url)}, named by GAELP_BROKER_URL", None)
        return
    log = folder / "logs" / "broker.log"
    log.unlink(missing_ok=True)
    broker, port = start_broker(needs.redis_server, folder / "redis", log=log, port=port)
    stack.adopt(broker)
    system.env["GAELP_BROKER_URL"] = broker_url(port)
    version = ".".join(map(str, server_version(needs.redis_server) or ()))
    tell("broker", f"Redis {version} at {broker_url(port)}", log)


def _open_models(stack: Stack, needs: Needs, server: Child | None, system: System, tell: Tell) -> None:
    if server is None:
        nodes = needs.settings.ollama_nodes
        system.env["GAELP_OLLAMA_NODES"] = ",".join(nodes)
        have = ", ".join(needs.node_models)
        tell("model node", f"Ollama at {', '.join(map(masked, nodes))} with {have}", None)
        return
    system.env = {**NODE_DEFAULTS, **system.env, **demo_env(stack.wait_for(server, listening_at))}
    at = system.env["GAELP_OLLAMA_NODES"]
    tell("model node", f"{CHAT_MODEL} and {EMBED_MODEL} at {at}, in place of an Ollama", server.part.log)


def _open_programs(stack: Stack, needs: Needs, folder: Path, system: System, tell: Tell) -> None:
    logs = folder / "logs"
    settings = needs.settings.model_copy(update={"broker_url": system.env["GAELP_BROKER_URL"]})
    login = f"{FLOWER_USER}:{secrets.token_urlsafe(12)}"
    write_private(folder / LOGIN_FILE, login + "\n")
    port = FLOWER_PORT if port_is_free(FLOWER_PORT) else free_port()
    system.flower_url = f"http://127.0.0.1:{port}"
    worker = stack.start(worker_part(system.env, log=logs / "worker.log"))
    beat = stack.start(beat_part(system.env, folder, log=logs / "beat.log"))
    flower = stack.start(flower_part(system.env, folder, port=port, login=login, log=logs / "flower.log"))
    served = stack.start(api_part(system.env, log=logs / "api.log")) if system.api_url else None
    node = stack.wait_for(worker, partial(announced, settings=settings))
    tell("worker", f"{node.worker} with {node.slots} slots", worker.part.log)
    stack.wait_for(beat, ticking)
    tell("beat", "publishes what is due", beat.part.log)
    stack.wait_for(flower, partial(answering, url=f"{system.flower_url}/healthcheck"))
    tell("flower", f"{system.flower_url}, login in {shown_path(folder / LOGIN_FILE)}", flower.part.log)
    if served is not None:
        stack.wait_for(served, partial(answering, url=f"{system.api_url}/health"))
        tell("api", f"{system.api_url}, its pages at {system.api_url}/docs", served.part.log)


def shown_path(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
