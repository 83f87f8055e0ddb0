"""`make bench`: measures this machine, prints a table and keeps the figures in .run/bench.json.

    benchmarks/run.py [--quick] [--only tasks|streams|clients|mixed|nodes|api] [--seconds 60]

`mixed` takes its ten minutes, `nodes` its five and `api` its one only where they are asked for.

Ours and what it is compared with take turns in every round, and a ratio or difference is taken within the
round: neighbours on the machine disturb both alike. The median of the rounds counts.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / ".run" / "bench.json"
FOLDER = ROOT / ".run" / "bench"  #: logs and data of the last run
PACKAGES = ("celery", "kombu", "redis", "hiredis", "aiohttp", "pydantic")


def cpu_ticks() -> tuple[int, int]:
    """All CPU time of this machine so far, and what of it the host gave to others."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    return sum(ticks), ticks[7]


def scrub() -> None:
    """Nobody's own settings count here. CELERY_BROKER_URL would even redirect both sides."""
    for name in list(os.environ):
        if name.startswith(("GAELP_", "OLLAMA_", "CELERY_")):
            del os.environ[name]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="40 s instead of 3 minutes")
    parts = ("tasks", "streams", "clients", "mixed", "nodes", "api")
    parser.add_argument("--only", choices=parts, help="one part")
    parser.add_argument(
        "--seconds", type=float, help="of mixed load, nodes or the API, for each case in a round"
    )
    parser.add_argument(
        "--database", help="of the API: the address of an empty one; a file of SQLite without"
    )
    asked = parser.parse_args()
    scrub()
    shutil.rmtree(FOLDER, ignore_errors=True)

    import api  # noqa: PLC0415  reads the environment that scrub() has cleaned
    import clients  # noqa: PLC0415  reads the environment that scrub() has cleaned
    import mixed_load  # noqa: PLC0415
    import nodes  # noqa: PLC0415
    import streams  # noqa: PLC0415  reads the environment that scrub() has cleaned
    import tasks  # noqa: PLC0415
    from figures import table  # noqa: PLC0415
    from parts import start_redis  # noqa: PLC0415

    from gaelp_tasks.demo.stack import Stack  # noqa: PLC0415
    from gaelp_tasks.errors import GaelpError  # noqa: PLC0415

    started, ticks_before = time.monotonic(), cpu_ticks()
    figures = []
    try:
        with Stack() as stack:
            if asked.only != "clients":
                start_redis(stack, FOLDER, ROOT / ".cache")
            if asked.only in {None, "tasks"}:
                figures += tasks.measure_tasks(FOLDER, tasks.QUICK if asked.quick else tasks.FULL)
            if asked.only in {None, "streams"}:
                figures += streams.measure_streams(FOLDER, streams.QUICK if asked.quick else streams.FULL)
            if asked.only in {None, "clients"}:
                figures += clients.measure_clients(FOLDER, clients.QUICK if asked.quick else clients.FULL)
            alone = {
                "mixed": (mixed_load, mixed_load.measure_mixed),
                "nodes": (nodes, nodes.measure_nodes),
                "api": (api, partial(api.measure_api, stack, database=asked.database)),
            }
            if asked.only in alone:
                module, measure = alone[asked.only]
                plan = module.QUICK if asked.quick else module.FULL
                seconds = plan.seconds if asked.seconds is None else asked.seconds
                figures += measure(FOLDER, replace(plan, seconds=seconds))
    except GaelpError as error:
        sys.exit(f"make bench: {error}")
    print(table(figures))
    ticks, stolen = (after - before for after, before in zip(cpu_ticks(), ticks_before, strict=True))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    record = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine,
        "load": os.getloadavg(),
        "stolen": round(stolen / ticks, 3),
        "took_s": round(time.monotonic() - started),
        "quick": asked.quick,
        "packages": {package: version(package) for package in PACKAGES},
        "figures": [figure.record() for figure in figures],
    }
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(record, indent=1) + "\n")
    print(
        f"\n{machine}, load {os.getloadavg()[0]:.1f}, {stolen / ticks:.0%} of its CPU taken by the host,",
        end=" ",
    )
    print(f"{record['took_s']} s.", end=" ")
    print(f"Kept in {KEPT.relative_to(ROOT)}; logs in {FOLDER.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
