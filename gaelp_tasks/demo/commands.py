"""`make up` and `make demo`: the whole system in the foreground, for as long as you like or for one story."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp

from gaelp_tasks.demo import tether
from gaelp_tasks.demo.broker import port_is_free
from gaelp_tasks.demo.parts import PartFailed
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.demo.system import find_needs, shown_path, start_system
from gaelp_tasks.demo.upfile import RUN_FOLDER, AlreadyUp, claimed, write_upfile

__all__ = ["run_demo", "run_up"]

CACHE_FOLDER = ".cache"
REDIS_PORT = 6379

Report = Callable[[str], None]


def run_up(root: Path, report: Report) -> None:
    """Keep the system running until Ctrl-C, SIGTERM or the end of the terminal; then stop all of it.

    Raises GaelpError, after everything was stopped, where a part cannot be had or ends by itself.
    """
    began = time.monotonic()
    try:
        with claimed(root) as folder, Stack() as stack:
            needs = find_needs(root / CACHE_FOLDER, report)
            port = REDIS_PORT if port_is_free(REDIS_PORT) else None
            try:
                system = start_system(stack, needs, folder, report, broker_port=port)
                write_upfile(folder, system.upfile())
                report(f"Ready after {time.monotonic() - began:.1f} s. In another shell, in this folder:")
                report('  .venv/bin/gaelp run "Why is the sky blue?"')
                report("Ctrl-C stops everything.")
                stack.watch()
            except KeyboardInterrupt:
                report("Stopping.")
    except AlreadyUp:
        raise PartFailed(
            f"The system is up already, out of {root / RUN_FOLDER}; Ctrl-C there stops it."
        ) from None
    except OSError as error:
        raise PartFailed(f"The system cannot run in {root}: {error}.") from error
    report("Everything has stopped.")


def run_demo(root: Path, report: Report) -> int:
    """Start the system in a folder of its own, let the story run against it, stop and remove all of it.

    Returns the story's exit status; where it is not 0 the folder with the logs is kept, and named. Raises
    GaelpError as `run_up` does, KeyboardInterrupt after everything was stopped.
    """
    try:
        runs = root / RUN_FOLDER
        runs.mkdir(exist_ok=True)
        folder = Path(mkdtemp(prefix="demo-", dir=runs))
        status = 1
        try:
            with Stack() as stack:
                system = start_system(
                    stack, find_needs(root / CACHE_FOLDER, report), folder, report, broker_port=None
                )
                report("")
                status = _story(stack, system.env)
        finally:
            if status == 0:
                shutil.rmtree(folder)
            else:
                report(f"The logs are in {shown_path(folder / 'logs')}.")
    except OSError as error:
        raise PartFailed(f"The demo cannot run in {root}: {error}.") from error
    return status


def _story(stack: Stack, env: Mapping[str, str]) -> int:
    """Run it as a user's program would run: a process that knows the system by its environment only."""
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
    return story.returncode
