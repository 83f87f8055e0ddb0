"""`PYTHONPATH=tests python -m faults.soak`: two hours under load, with a fault every five minutes.

A small cluster works for real: Redis with its append-only file, PostgreSQL where it is installed, else
SQLite, workers beside model servers, two beats, `gaelp metrics`, and clients. Prints what was promised and
found, and keeps all figures in a file; exit status 1 if a promise is broken, 130 after Ctrl-C, which drains
and reports.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from faults.soak.check import judge
from faults.soak.plan import FAULTS, Plan
from faults.soak.report import as_json, report
from faults.soak.run import run

KEPT = Path(".run") / "soak.json"


def main() -> None:
    first, *_ = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=first)
    of = Plan()
    parser.add_argument("--seconds", type=float, default=of.seconds, help="of load")
    parser.add_argument("--every", type=float, default=of.every_s, metavar="S", help="between two faults")
    parser.add_argument("--seed", type=int, default=of.seed)
    parser.add_argument("--rate", type=float, default=of.rate, help="invocations a second")
    parser.add_argument("--workers", type=int, default=of.workers)
    parser.add_argument("--fault", choices=FAULTS, action="append", help="repeatable; default: all of them")
    parser.add_argument(
        "--schedule", type=float, default=of.schedule_s, metavar="S", help="between runs of the schedule"
    )
    parser.add_argument(
        "--batches", type=float, default=of.batch_every_s, metavar="S", help="between two batches"
    )
    parser.add_argument("--warm", type=float, default=of.warm_s, metavar="S", help="of each life, not judged")
    parser.add_argument(
        "--least", type=float, default=of.least_s, metavar="S", help="of a life after that, to be judged"
    )
    parser.add_argument(
        "--kept", type=float, default=of.kept_s, metavar="S", help="that results and streams are kept"
    )
    parser.add_argument("--sqlite", action="store_true", help="also where PostgreSQL is installed")
    parser.add_argument("--json", type=Path, default=KEPT, dest="file", help=f"default: {KEPT}")
    parser.add_argument("--keep", type=Path, help="folder for logs; default: none are kept")
    asked = parser.parse_args()
    for name in tuple(os.environ):
        if name.startswith(("GAELP_", "OLLAMA_", "CELERY_")):
            del os.environ[name]  # nobody's own settings count here
    plan = Plan(
        seconds=asked.seconds,
        every_s=asked.every,
        seed=asked.seed,
        rate=asked.rate,
        workers=asked.workers,
        faults=asked.fault or FAULTS,
        schedule_s=asked.schedule,
        batch_every_s=asked.batches,
        warm_s=asked.warm,
        least_s=asked.least,
        kept_s=asked.kept,
        postgres=not asked.sqlite,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        soak = run(plan, folder.resolve(), lambda words: sys.stderr.write(words + "\n"))
    verdict = judge(soak, plan)
    asked.file.parent.mkdir(parents=True, exist_ok=True)
    asked.file.write_text(json.dumps(as_json(soak, plan, verdict)) + "\n")
    sys.stdout.write(f"{report(soak, verdict)}\n\nAll figures: {asked.file}\n")
    sys.exit(130 if soak.interrupted else bool(verdict.broken))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before the load has begun, or for the second time
        sys.exit(130)
