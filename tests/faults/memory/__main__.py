"""The long form: `PYTHONPATH=tests python -m faults.memory --runs 50 --seed 0`.

Each run is lived twice on real memory: by the design's first formula, which the kernel is to kill, and by our
worker. Prints a line for each, the sums, and a sentence for each broken promise; exit status 1 if any.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from faults.memory.check import Findings, broken, check
from faults.memory.naive import naively
from faults.memory.node import node
from faults.memory.ours import ours
from faults.memory.trace import trace
from gaelp_tasks.celery_app import app
from gaelp_tasks.settings import Settings
from support.redis_server import RedisServer

MIB = 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m faults.memory", description="Live traces, and judge.")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others follow")
    parser.add_argument("--only", choices=("ours", "naive"), help="live one of the two sides only")
    parser.add_argument("--keep", type=Path, help="folder for logs and records; default: none are kept")
    asked = parser.parse_args()
    for name in tuple(os.environ):
        if name.startswith(("GAELP_", "OLLAMA_", "CELERY_")):
            del os.environ[name]  # nobody's own settings count here
    all_found: list[Findings] = []
    killed_s: list[float | None] = []
    with RedisServer() as server:
        app._given = Settings(broker_url=server.url)
        for seed in range(asked.seed, asked.seed + asked.runs):
            if asked.only != "ours":
                killed_s.append(naive_run(seed))
                say(
                    f"{seed} naive: " + (f"killed after {at:.1f} s" if (at := killed_s[-1]) else "not killed")
                )
            if asked.only != "naive":
                all_found.append(our_run(seed, asked.keep))
                say(row(all_found[-1]))
    sentences = [sentence for found in all_found for sentence in broken(found)]
    say(*sums(killed_s, all_found), *sentences)
    sys.exit(bool(sentences))


def naive_run(seed: int) -> float | None:
    """After how many seconds the formula was killed."""
    lived = trace(seed)
    with tempfile.TemporaryDirectory(prefix="memory-") as folder, node(lived, Path(folder)) as place:
        return naively(lived, place)


def our_run(seed: int, keep: Path | None) -> Findings:
    """The same trace by our worker; kept in a folder of its own where that is asked for."""
    lived = trace(seed)
    with tempfile.TemporaryDirectory(prefix="memory-") as made:
        folder = keep / str(seed) if keep else Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        with node(lived, folder) as place:
            record = ours(lived, place, folder)
        (folder / "record.json").write_text(json.dumps(asdict(record)))
    return check(record)


def row(found: Findings) -> str:
    """One run in a line."""
    done = found.asked - len(found.unfinished)
    return (
        f"{found.seed} ours: {found.kills} kills, {done} of {found.asked} done, "
        f"{len(found.evicted)} evicted, "
        f"{found.loads} loads, back in {found.slowest_back_s:.2f} s, below the reserve for "
        f"{found.longest_below_s:.2f} s, least free {found.least_free_bytes // MIB} MiB, {found.took_s:.0f} s"
    )


def sums(killed_s: Sequence[float | None], all_found: Sequence[Findings]) -> list[str]:
    """All runs together."""
    told = []
    if killed_s:
        killed = sum(at is not None for at in killed_s)
        told.append(f"The formula: killed in {killed} of {len(killed_s)} runs.")
    if all_found:
        told.append(
            f"Our worker: {sum(found.kills for found in all_found)} kills in {len(all_found)} runs, "
            f"{sum(found.asked for found in all_found)} invocations, "
            f"{sum(len(found.unfinished) for found in all_found)} without their whole answer, "
            f"{sum(len(found.evicted) for found in all_found)} evicted, "
            f"{sum(found.unloads for found in all_found)} unloads, "
            f"{sum(found.spared for found in all_found)} of them beside an interactive run, "
            f"memory back within {max(found.slowest_back_s for found in all_found):.2f} s, below the reserve "
            f"for at most {max(found.longest_below_s for found in all_found):.2f} s, least free "
            f"{min(found.least_free_bytes for found in all_found) // MIB} MiB, load {os.getloadavg()[0]:.1f}."
        )
    return told


def say(*lines: str) -> None:
    """At once: a run takes a while."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
