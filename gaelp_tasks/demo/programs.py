"""The programs as parts: worker, beat, Flower, the API; and how one sees that each is ready."""

import sys
from collections.abc import Mapping
from pathlib import Path

import requests

from gaelp_tasks.connections import connect, unavailable
from gaelp_tasks.demo.parts import Child, Part
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.settings import Settings

__all__ = ["announced", "answering", "api_part", "beat_part", "flower_part", "ticking", "worker_part"]

STOP_MARGIN_S = 5.0  # what a worker takes to leave after its grace for running work
PROBE_S = 2.0


def worker_part(env: Mapping[str, str], *, log: Path) -> Part:
    """The worker; it runs in our folder, where agents named by GAELP_AGENTS are found."""
    command = _gaelp("worker", "--without-mingle")  # a second less: there is rarely anybody to ask
    stop_within_s = float(env["GAELP_DRAIN_GRACE_S"]) + STOP_MARGIN_S
    return Part(name="worker", command=command, env=env, log=log, stop_within_s=stop_within_s)


def announced(worker: Child, settings: Settings) -> NodeSnapshot | None:
    """What that worker says of its node in Redis; None before it does."""
    with connect(settings) as client:
        try:
            for key in client.scan_iter(Keys(settings.namespace).node("*"), count=1000):
                said = client.get(key)
                if said is not None:
                    node = NodeSnapshot.model_validate_json(said)
                    if node.pid == worker.pid:
                        return node
        except unavailable:
            pass
    return None


def beat_part(env: Mapping[str, str], folder: Path, *, log: Path) -> Part:
    """Beat; what it keeps on disk goes into `folder`."""
    return Part(name="beat", command=_gaelp("beat"), env=env, cwd=folder, log=log)


def ticking(beat: Child) -> bool | None:
    """True once beat says in its log that it has started."""
    return "beat: Starting" in beat.output() or None


def flower_part(env: Mapping[str, str], folder: Path, *, port: int, login: str, log: Path) -> Part:
    """Flower, for whoever has the login, `user:password`."""
    command = _gaelp("flower", f"--port={port}")
    return Part(name="flower", command=command, env={**env, "GAELP_FLOWER_LOGIN": login}, cwd=folder, log=log)


def api_part(env: Mapping[str, str], *, log: Path) -> Part:
    """The HTTP API."""
    stop_within_s = float(env["GAELP_DRAIN_GRACE_S"]) + STOP_MARGIN_S
    return Part(name="api", command=_gaelp("api"), env=env, log=log, stop_within_s=stop_within_s)


def answering(_child: Child, url: str) -> bool | None:
    """True once a page answers that needs no password: /healthcheck of Flower, /health of the API."""
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.get(url, timeout=PROBE_S).ok or None
        except requests.RequestException:
            return None


def _gaelp(*words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "gaelp_tasks.cli", *words)
