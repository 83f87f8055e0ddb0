"""The commands of Docker that the cluster is run by, as lists of words, and the one place that runs them."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROFILE = "sim"
BRIEF_S = 60.0  #: for what should take a moment


class Failed(Exception):
    """A command failed; the message is its last words."""


class Engine:
    """One project on this machine's engine, and the variables that compose.yaml gets."""

    def __init__(self, project: str, variables: Mapping[str, str]) -> None:
        self.project = project
        self._env = {**os.environ, "COMPOSE_PROJECT_NAME": project, **variables}

    def compose(self, *words: str) -> list[str]:
        """A command of Compose."""
        return ["docker", "compose", "-p", self.project, "-f", str(ROOT / "compose.yaml"), *at_profile(words)]

    def container(self, service: str, number: int) -> str:
        """The name of a container, as Compose gives it."""
        return f"{self.project}-{service}-{number}"

    def network(self, name: str) -> str:
        """The name of a network."""
        return f"{self.project}_{name}"

    def run(self, words: Sequence[str], *, within_s: float = BRIEF_S) -> str:
        """What a command says. Raises Failed."""
        try:
            done = subprocess.run(
                words,
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=within_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"`{' '.join(words)}` has not ended within {within_s:g} s.") from None
        if done.returncode:
            raise Failed(f"`{' '.join(words)}` failed: {last_words(done.stderr or done.stdout)}")
        return done.stdout

    def begin(self, words: Sequence[str], log: Path) -> "subprocess.Popen[str]":
        """A command that goes on meanwhile; what it says of itself goes into `log`."""
        with log.open("ab") as errors:
            return subprocess.Popen(
                words,
                env=self._env,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )


def at_profile(words: Sequence[str]) -> list[str]:
    """Words of Compose with our profile before them."""
    return ["--profile", PROFILE, *words]


def last_words(text: str) -> str:
    """The end of what a command said, for people."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return " / ".join(lines[-5:]) or "it said nothing"


def no_engine() -> str:
    """Why no cluster can be run here, in one sentence; '' where one can."""
    for words, why in (
        (["docker", "info"], "there is no Docker engine here"),
        (["docker", "compose", "version"], "this Docker has no Compose"),
    ):
        try:
            done = subprocess.run(words, capture_output=True, timeout=30, check=False)
        except FileNotFoundError:
            return "The cluster was not tried: there is no program docker here."
        except subprocess.TimeoutExpired:
            return f"The cluster was not tried: `{' '.join(words)}` does not answer."
        if done.returncode:
            return f"The cluster was not tried: {why} (`{' '.join(words)}` says why)."
    return ""


def objects(text: str) -> list[dict[str, Any]]:
    """What `docker compose ps --format json` lists: an array, or an object a line, by its release."""
    text = text.strip()
    if text.startswith("["):
        found: list[dict[str, Any]] = json.loads(text)
        return found
    return [json.loads(line) for line in text.splitlines() if line.strip()]
