"""Notes when a processor of this machine stood still: `witness.py CPU` prints when each halt began and ended.

The host of a virtual machine takes processors away, for a quarter of a second sometimes, and what is timed
meanwhile tells of the host. A witness goes before every other program, so none of them can hold it up.
"""

import os
import sys
import time
from collections.abc import Iterable

__all__ = ["FORBIDDEN", "HALT_S", "halts", "main"]

LOOK_S = 0.004
HALT_S = 0.012  #: less than this is no halt
FORBIDDEN = "may not go before other programs"


def main(cpu: int) -> None:
    """Watch until ended."""
    os.sched_setaffinity(0, {cpu})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_max(os.SCHED_FIFO)))
    except PermissionError:
        print(FORBIDDEN)
        return
    print("watching", flush=True)
    while True:
        before = time.monotonic()
        time.sleep(LOOK_S)
        after = time.monotonic()
        if after - before >= LOOK_S + HALT_S:
            print(before, after, flush=True)


def halts(told: Iterable[str]) -> list[tuple[float, float]]:
    """Begin and end of each, by the monotonic clock, from all that witnesses have printed."""
    lines = (line.split() for text in told for line in text.splitlines()[1:])
    return sorted((float(begun), float(ended)) for begun, ended in lines)


if __name__ == "__main__":
    main(int(sys.argv[1]))
