"""The long form: `PYTHONPATH=tests python -m faults.mutations --messages 10000 --seed 7`.

Prints how the messages ended by what was done to them, then a sentence for each broken promise; exit status
1 if any.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

from faults.mutations.judge import Verdict
from faults.mutations.run import run
from gaelp_tasks.celery_app import app
from gaelp_tasks.settings import Settings
from support.redis_server import RedisServer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m faults.mutations", description="Feed a worker with wrong messages."
    )
    parser.add_argument("--messages", type=int, default=10_000, help="mutated ones; a tenth more are good")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="folder for the worker's log; default: it is not kept")
    asked = parser.parse_args()
    for name in tuple(os.environ):
        if name.startswith(("GAELP_", "OLLAMA_", "CELERY_")):
            del os.environ[name]  # nobody's own settings count here
    began = monotonic()
    with ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutations-")))
        folder.mkdir(parents=True, exist_ok=True)
        server = stack.enter_context(RedisServer())
        app._given = Settings(broker_url=server.url)
        verdict = run(asked.messages, asked.seed, server, folder)
    lines = (*report(verdict), f"{monotonic() - began:.0f} s", *verdict.broken)
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(bool(verdict.broken))


def report(verdict: Verdict) -> list[str]:
    """A table of ends by level."""
    ends = sorted({end for count in verdict.counts.values() for end in count})
    rows = [("mutated at", *ends), ("---", *("---:" for _ in ends))]
    for level, count in [*sorted(verdict.counts.items()), ("all", sum(verdict.counts.values(), Counter()))]:
        rows.append((level, *(str(count[end]) for end in ends)))
    return ["| " + " | ".join(row) + " |" for row in rows]


if __name__ == "__main__":
    main()
