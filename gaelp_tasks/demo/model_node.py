"""Which Ollama the system talks to: a real one that has a model, else our demo model server."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from gaelp_tasks.demo.model_server.check import check_engine
from gaelp_tasks.demo.parts import Child, Part, PartFailed
from gaelp_tasks.settings import Settings

__all__ = [
    "CHAT_MODEL",
    "EMBED_MODEL",
    "NODE_DEFAULTS",
    "DemoModels",
    "demo_env",
    "demo_part",
    "listening_at",
    "models_at",
]

CHAT_MODEL = "smollm2:135m"
EMBED_MODEL = "all-minilm"
SLOTS = 4
CONTEXT_TOKENS = 2048
PROBE_S = 3.0


@dataclass(frozen=True, kw_only=True)
class DemoModels:
    """The files behind the two models of the demo model server."""

    chat: Path
    embed: Path

    @classmethod
    def fetch(cls, cache: Path, report: Callable[[str], None]) -> "DemoModels":
        """From the cache, else downloaded. Raises PartFailed where the engine or a file cannot be had."""
        if problem := check_engine():
            raise PartFailed(f"The demo model server cannot run here: {problem}.")
        from gaelp_tasks.demo.weights import fetch_minilm, fetch_smollm2  # noqa: PLC0415  of the engine's extra

        folder = cache / "models"
        return cls(chat=fetch_smollm2(folder, report), embed=fetch_minilm(folder, report))


def models_at(url: str, settings: Settings) -> tuple[str, ...]:
    """Names of the models that the Ollama server at `url` has; () when it has none or does not answer."""
    headers = {name: value.get_secret_value() for name, value in settings.ollama_headers.items()}
    with requests.Session() as session:
        session.trust_env = False  # the worker takes no proxy either
        session.verify = settings.ollama_ca_file or True
        try:
            answer = session.get(f"{url}/api/tags", headers=headers, timeout=PROBE_S)
            answer.raise_for_status()
            return tuple(str(model["name"]) for model in answer.json()["models"] or ())
        except (requests.RequestException, ValueError, KeyError, TypeError):
            return ()


def demo_part(models: DemoModels, *, log: Path) -> Part:
    """The demo model server on a free port, so that a real Ollama on 11434 is never shadowed."""
    command = [sys.executable, "-m", "gaelp_tasks.demo.model_server", "--port", "0"]
    command += [
        "--model",
        f"{CHAT_MODEL}={models.chat}:chat",
        "--model",
        f"{EMBED_MODEL}={models.embed}:embed",
    ]
    command += ["--num-parallel", str(SLOTS), "--num-ctx", str(CONTEXT_TOKENS)]
    return Part(name="model server", command=tuple(command), log=log)


def listening_at(server: Child) -> str | None:
    """Its address, once it has printed its line; None before."""
    for line in server.output().splitlines():
        if line.startswith('{"url"'):
            return str(json.loads(line)["url"])
    return None


#: GAELP_ variables of the same that the environment may override: models are small, and so may the machine be
NODE_DEFAULTS: Mapping[str, str] = {"GAELP_OS_RESERVE": "256MiB"}


def demo_env(url: str) -> Mapping[str, str]:
    """GAELP_ variables of a worker beside the demo model server."""
    return {
        "GAELP_OLLAMA_NODES": url,
        "GAELP_NUM_PARALLEL": str(SLOTS),
        "GAELP_DEFAULT_MODEL": CHAT_MODEL,
        "GAELP_EMBED_MODEL": EMBED_MODEL,
    }
