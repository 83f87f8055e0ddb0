"""`make up` and `make demo`: the whole system in the foreground, for as long as you like or for one story."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

from gaelp_tasks.demo import tether
from gaelp_tasks.demo.api import TOKEN_FILE
from gaelp_tasks.demo.broker import port_is_free
from gaelp_tasks.demo.parts import PartFailed
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.demo.system import find_needs, shown_path, start_system
from gaelp_tasks.demo.upfile import RUN_FOLDER, AlreadyUp, claimed, write_upfile
from gaelp_tasks.errors import GaelpError

__all__ = ["run_demo", "run_up"]

CACHE_FOLDER = ".cache"
REDIS_PORT = 6379

DEMO_DEFAULTS = {"GAELP_POLL_INTERVAL_S": "0.2"}  # nodes announce themselves while one looks

Say = Callable[[str], None]


def run_up(root: Path, say: Say) -> None:
    """Keep the system running until Ctrl-C, SIGTERM or the end of the terminal; then stop all of it.

    Raises GaelpError, after everything was stopped, where a part cannot be had or ends by itself.
    """
    began = time.monotonic()
    with _worded(root), claimed(root) as folder, Stack() as stack:
        try:
            needs = find_needs(root / CACHE_FOLDER, say)
            port = REDIS_PORT if port_is_free(REDIS_PORT) else None
            system = start_system(stack, needs, folder, partial(_tell, say), broker_port=port, with_api=True)
            write_upfile(folder, system.upfile())
            say(f"Ready after {time.monotonic() - began:.1f} s. In another shell, in this folder:")
            say('  .venv/bin/gaelp run "Why is the sky blue?"')
            say(f"The API is at {system.api_url}, for you as an admin; metrics need no token:")
            say(f"  export TOKEN=$(cat {shown_path(folder / TOKEN_FILE)})")
            say(f'  curl -H "Authorization: Bearer $TOKEN" {system.api_url}/api/v1/status')
            say(f"  curl http://{system.env['GAELP_METRICS_ADDRESS']}/metrics")
            say("Programs of your own that ask the model servers themselves need")
            say(f"  export GAELP_OLLAMA_NODES={system.shown_nodes()}")
            say("Ctrl-C stops everything.")
            stack.watch()
        except KeyboardInterrupt:
            say("Stopping.")
    say("Everything has stopped.")


def run_demo(root: Path, say: Say) -> None:
    """Start the system in a folder of its own, let the story run against it, stop and remove all of it.

    Raises GaelpError, after everything was stopped, where a part fails or anything in the story does;
    KeyboardInterrupt likewise.
    """
    with _worded(root), _own_folder(root / RUN_FOLDER, say) as folder, Stack() as stack:
        needs = find_needs(root / CACHE_FOLDER, say)
        system = start_system(stack, needs, folder, partial(_tell_briefly, say), defaults=DEMO_DEFAULTS)
        say("")
        _run_story(stack, system.env)


def _tell(say: Say, name: str, what: str, log: Path | None) -> None:
    say(f"{name:<12}{what}" + (f" (log {shown_path(log)})" if log else ""))


def _tell_briefly(say: Say, name: str, what: str, _log: Path | None) -> None:
    say(f"{name:<12}{what}")


def _run_story(stack: Stack, env: Mapping[str, str]) -> None:
    """As a user's program would run: a process that knows the system by its environment only."""
    command = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
    command += [sys.executable, "-m", "gaelp_tasks.demo.story"]
    with subprocess.Popen(command, env={**os.environ, **env}) as story:  # noqa: S603  our own module
        try:
            while story.poll() is None:
                stack.check()
                time.sleep(0.1)
        except BaseException:
            story.kill()
            raise
    if story.returncode:
        raise PartFailed("Something in the demo failed, as told above.")


@contextmanager
def _own_folder(runs: Path, say: Say) -> Iterator[Path]:
    """A fresh folder, gone afterwards; kept, and named, only where its logs tell why something failed."""
    runs.mkdir(exist_ok=True)
    folder = Path(mkdtemp(prefix="demo-", dir=runs))
    keep = False
    try:
        yield folder
    except GaelpError:
        keep = (folder / "logs").exists()
        raise
    finally:
        if keep:
            say(f"The logs are in {shown_path(folder / 'logs')}.")
        else:
            shutil.rmtree(folder)


@contextmanager
def _worded(root: Path) -> Iterator[None]:
    """What the machine refuses, as a sentence."""
    try:
        yield
    except GaelpError:
        raise  # some are OSErrors too, and have their sentence
    except AlreadyUp:
        raise PartFailed(f"The system is up already, out of {root}: Ctrl-C in its shell stops it.") from None
    except OSError as error:
        raise PartFailed(f"The system cannot run in {root}: {error}.") from error
