"""The long form: `PYTHONPATH=tests python -m faults.parked --parked 1000000 --due 5000 --seconds 30`.

Prints what was found; exit status 1 where a promise is broken.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from faults.parked.run import Finding, run
from gaelp_tasks.celery_app import app
from gaelp_tasks.settings import Settings
from support.redis_server import RedisServer

MIB = 1024**2
GROWTH_BYTES = 10 * MIB
LATE_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m faults.parked", description="Let many tasks wait.")
    parser.add_argument("--parked", type=int, default=1_000_000, help="that wait for a month")
    parser.add_argument("--due", type=int, default=5_000, help="that come due meanwhile")
    parser.add_argument("--seconds", type=float, default=30.0, help="within which they do")
    parser.add_argument(
        "--copied", action="store_true", help="copy the record of one that the claim has parked: much faster"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder for the worker's log; default: it is not kept")
    asked = parser.parse_args()
    for name in tuple(os.environ):
        if name.startswith(("GAELP_", "OLLAMA_", "CELERY_")):
            del os.environ[name]  # nobody's own settings count here
    with ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parked-")))
        folder.mkdir(parents=True, exist_ok=True)
        server = stack.enter_context(RedisServer())
        app._given = Settings(broker_url=server.url)
        plan = (asked.parked, asked.due, asked.seconds, asked.seed)
        found = run(*plan, server, folder, copied=asked.copied)
    sys.stdout.write("\n".join([report(found), *broken(found)]) + "\n")
    sys.exit(bool(broken(found)))


def report(found: Finding) -> str:
    """One line."""
    late = " / ".join(f"{found.late(percent):.2f}" for percent in (50, 99, 100))
    return (
        f"{found.parked:,} parked in {found.parking_s:.0f} s; the worker grew by "
        f"{found.grown_bytes / MIB:.1f} MiB, Redis by {found.redis_bytes / MIB:,.0f} MiB; "
        f"{len(found.late_s):,} came due, late by {late} s (p50 / p99 / max)"
    )


def broken(found: Finding, *, late_s: float = LATE_S) -> list[str]:
    """A sentence for each broken promise."""
    promises = (
        (found.grown_bytes < GROWTH_BYTES, "the worker grew by 10 MiB or more"),
        (found.late(99) < late_s, f"one in a hundred started more than {late_s:g} s after it was due"),
        (found.late(0) > -0.05, "one started before it was due"),
        (not found.never, f"{found.never} were due and never started"),
    )
    return [sentence for kept, sentence in promises if not kept]


if __name__ == "__main__":
    main()
