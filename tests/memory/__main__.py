"""`PYTHONPATH=tests python -m memory --traces 1000 --seed 7`; `--only SEED` shows one at work as a timeline.

`--three HOURS` runs so many hours of each kind in which three models do not fit together.

Exit status 1 where a promise is broken.
"""

import argparse
import sys

from memory.judge import Sum, Verdict
from memory.simulate import SHARE, judge, judge_all, promises
from memory.table import three


def main() -> None:
    """Judge as many traces as asked for, or show one."""
    parser = argparse.ArgumentParser(
        prog="python -m memory",
        description="Run the memory controller over traces that a seed decides, and judge.",
    )
    parser.add_argument("--traces", type=int, default=100, help="how many")
    parser.add_argument("--seed", type=int, default=7, help="of the first of them")
    parser.add_argument("--only", type=int, metavar="SEED", help="this one only, and tell all that happens")
    parser.add_argument("--three", type=int, metavar="HOURS", help="three models that do not fit together")
    asked = parser.parse_args()
    if asked.three is not None:
        sys.exit(three(asked.seed, asked.three, say))
    sys.exit(one(asked.only) if asked.only is not None else many(asked.seed, asked.traces))


def say(*lines: str) -> None:
    """To the terminal."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def one(seed: int) -> int:
    """A timeline."""
    verdict = judge(seed, say)
    told(verdict)
    return int(bool(verdict.broken))


def told(verdict: Verdict) -> None:
    """Figures of one trace."""
    for name, tally in (("ours", verdict.ours), ("formula", verdict.formula)):
        total = Sum()
        total.add(tally)
        say(f"{name:8}{total}")
    say(f"packer  {verdict.packer_s:.0f} s of work")
    say(*verdict.broken)


def many(seed: int, count: int) -> int:
    """Figures of many traces."""
    ours, formula, packer_s = Sum(), Sum(), 0.0
    for verdict in judge_all(range(seed, seed + count)):
        ours.add(verdict.ours)
        formula.add(verdict.formula)
        packer_s += verdict.packer_s
        if verdict.broken:
            say(f"seed {verdict.seed}: {'; '.join(verdict.broken)}")
    say(f"ours    {ours}", f"formula {formula}", f"packer  {packer_s:.0f} s of work")
    say(
        f"ours did {ours.work_s / packer_s:.1%} of the packer's work ({SHARE:.0%} is kept) and "
        f"{ours.work_s / formula.work_s:.1%} of the formula's"
    )
    broken = promises(ours, formula, packer_s)
    say(*broken)
    return int(bool(broken))


if __name__ == "__main__":
    main()
