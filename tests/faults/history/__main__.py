"""The long form: `PYTHONPATH=tests python -m faults.history threads --kills 200 --tasks 20000 --seed 7`.

Prints a line of docs/reliability.md's table, then a sentence for each broken promise; exit status 1 if any.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from faults.history.check import Findings, Promise, broken, check
from faults.history.cluster import journal_in
from faults.history.faults import FAULTS, lasting
from faults.history.model_server import model_server
from faults.history.record import History
from faults.history.run import Plan, run
from faults.history.subjects import OurNoops, Ours, Plain, Subject
from gaelp_tasks.celery_app import app
from gaelp_tasks.settings import Settings
from support.redis_server import RedisServer

SUBJECTS = ("threads", "prefork", "noops", "invocations")
FOR_HELP = "seconds that a freeze, an outage of Redis or a partition lasts; a freeze: least and most"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m faults.history", description="Strike a subject, and judge."
    )
    parser.add_argument("subject", choices=SUBJECTS, help="plain Celery's pool, or what our worker runs")
    parser.add_argument("--fault", choices=FAULTS, action="append", help="repeatable; default: kill")
    parser.add_argument("--strikes", "--kills", type=int, default=25)
    parser.add_argument("--tasks", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[0.0], help="that tasks take; several: in turn"
    )
    parser.add_argument("--pace", type=float, default=0.02, help="seconds between two tokens")
    parser.add_argument("--spread", type=float, default=0.2, help="seconds within which a strike comes")
    parser.add_argument("--for", type=float, nargs="+", default=[], dest="for_s", metavar="S", help=FOR_HELP)
    parser.add_argument("--at-once", type=int, default=1, help="workers frozen, or stopping, at a time")
    parser.add_argument("--settle", type=float, default=0.0, help="seconds that all were ready before")
    parser.add_argument("--lease", type=float, default=5.0, help="seconds; our worker's GAELP_LEASE_TTL_S")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds; our worker's GAELP_DRAIN_GRACE_S")
    parser.add_argument("--chained", action="store_true", help="each task is followed by a second one")
    parser.add_argument("--quiet", type=float, default=30.0, help="seconds of silence that end the drain")
    parser.add_argument("--restart-p99", type=float, metavar="S", help="promise this time to restart, too")
    parser.add_argument("--stop-within", type=float, metavar="S", help="promise this time from SIGTERM, too")
    parser.add_argument("--keep", type=Path, help="folder for logs and history; default: none are kept")
    asked = parser.parse_args()
    for name in tuple(os.environ):
        if name.startswith(("GAELP_", "OLLAMA_", "CELERY_")):
            del os.environ[name]  # nobody's own settings count here
    plan = Plan(
        faults=[lasting(FAULTS[name], *asked.for_s) for name in asked.fault or ["kill"]],
        strikes=asked.strikes,
        tasks=asked.tasks,
        seed=asked.seed,
        seconds=asked.seconds,
        workers=asked.workers,
        at_once=asked.at_once,
        settle_s=asked.settle,
        patience_s=asked.lease / 2,
        spread_s=asked.spread,
        tell=lambda words: sys.stderr.write(words + "\n"),
        quiet_s=asked.quiet,
    )
    with ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="history-")))
        folder.mkdir(parents=True, exist_ok=True)
        journal_in(folder).unlink(missing_ok=True)  # of an earlier run
        server = stack.enter_context(RedisServer())
        app._given = Settings(broker_url=server.url)
        subject = stack.enter_context(_subject(asked, folder))
        history = run(subject, plan, server, folder)
        (folder / "history.json").write_text(json.dumps(asdict(history), default=list))
    findings = check(history)
    promise = Promise(restart_p99_s=asked.restart_p99, stop_s=asked.stop_within)
    sentences = broken(findings, promise)
    lines = (" ".join(sys.argv[1:]), report(subject.name, history, findings), *sentences)
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(bool(sentences))


@contextmanager
def _subject(asked: argparse.Namespace, folder: Path) -> Iterator[Subject]:
    settings = (("GAELP_LEASE_TTL_S", f"{asked.lease:g}"), ("GAELP_DRAIN_GRACE_S", f"{asked.grace:g}"))
    match asked.subject:
        case "noops":
            yield OurNoops(slots=asked.slots, chained=asked.chained, settings=settings)
        case "invocations":
            with model_server(folder, journal_in(folder)) as node:
                yield Ours(
                    node=node, slots=asked.slots, chained=asked.chained, pace_s=asked.pace, settings=settings
                )
        case pool:
            yield Plain(pool=pool, slots=asked.slots, chained=asked.chained)


def report(name: str, history: History, found: Findings) -> str:
    """A line of docs/reliability.md's table, and what it leaves out.

    The last three columns: dead letters; attempts spent; refused / overtaken runs, where they are counted.
    """
    restart = f"{found.restart_s(50):.1f} / {found.restart_s(99):.1f} ({len(found.restarts_s)})"
    row = (
        name,
        ", ".join(f"{count} {fault}" for fault, count in history.strikes.items()) or "none",
        found.tasks,
        len(found.lost),
        len(found.stranded),
        len(found.started_twice),
        len(found.needless),
        len(found.again),
        len(found.accepted_twice),
        len(found.failed),
        restart if found.restarts_s else "",
        f"{found.stops_s[-1]:.1f}" if found.stops_s else "",
        len(found.quit),
        len(found.buried),
        len(found.spent),
        "" if found.refused is None else f"{found.refused} / {len(found.overtaken)}",
    )
    more = f"{history.idle} strikes on an empty queue, {len(history.doubtful)} publishes in doubt, "
    more += f"{len(found.ghosts)} ghosts, {history.suspects} suspects, {len(found.thawed)} called at a thaw, "
    more += f"{history.took_s:.0f} s, "
    more += f"load {os.getloadavg()[0]:.1f}"
    return "| " + " | ".join(map(str, row)) + " |\n" + more


if __name__ == "__main__":
    main()
