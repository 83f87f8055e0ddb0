"""A process that takes and gives back memory as it is told: `python -I -S pages.py [FILE]`.

It joins the cgroup whose cgroup.procs FILE is; without one it stays in its parent's. Each line of its input
is one step, answered by a line: `take BYTES SECONDS` touches new pages, evenly over that time; `give` returns
the block that was taken first; `wait SECONDS`. It ends with its input.
"""

import mmap
import sys
import time

STEP = 1 << 20
ONES = b"\1" * STEP


def take(size: int, seconds: float) -> mmap.mmap:
    """A block of this size, all of it touched."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    began = time.monotonic()
    for at in range(0, size, STEP):
        early_s = began + seconds * at / size - time.monotonic()
        if early_s > 0:
            time.sleep(early_s)
        part = min(STEP, size - at)
        block[at : at + part] = ONES[:part]
    return block


def main() -> None:
    """Do what is told."""
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w") as door:  # noqa: PTH123  pathlib would be memory of its own
            door.write("0")
    held: list[mmap.mmap] = []
    for line in sys.stdin:
        step, *figures = line.split()
        if step == "take":
            held.append(take(int(figures[0]), float(figures[1])))
        elif step == "give":
            held.pop(0).close()
        elif step == "wait":
            time.sleep(float(figures[0]))
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
