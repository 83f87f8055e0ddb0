"""The long form: `PYTHONPATH=tests python -m simulation --seeds 1000 --steps 300`.

Prints what the simulations held, or the shortest history found of each seed that broke something, with the
command that repeats it; exit status 1 if there is one.
"""

import argparse
import sys
from collections import Counter
from contextlib import nullcontext
from time import monotonic

from gaelp_tasks.lifecycle import Invariant
from simulation.plants import PLANTS
from simulation.shrink import named, numbers, shrink
from simulation.world import simulate


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simulation", description="Run our code over faults that a seed decides, and judge."
    )
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--steps", type=int, default=300, help="of each, before nothing fails any more")
    parser.add_argument("--seed", type=int, help="this one only, and tell its whole history")
    parser.add_argument("--keep", type=numbers, metavar="1,4-9", help="only these steps of it")
    parser.add_argument("--plant", choices=PLANTS, help="with this bug")
    parser.add_argument("--as-found", action="store_true", help="do not look for a shorter history")
    asked = parser.parse_args()
    with PLANTS[asked.plant].bug() if asked.plant else nullcontext():
        sys.exit(one(asked) if asked.seed is not None else many(asked))


def say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def one(asked: argparse.Namespace) -> int:
    verdict = simulate(asked.seed, asked.steps, keep=asked.keep)
    say(*verdict.history, str(verdict.broken or "Everything held."))
    return int(verdict.broken is not None)


def many(asked: argparse.Namespace) -> int:
    began_s, counts, broken = monotonic(), Counter[str](), Counter[Invariant]()
    for seed in range(asked.first, asked.first + asked.seeds):
        verdict = simulate(seed, asked.steps)
        counts += verdict.counts
        if verdict.broken is None:
            continue
        broken[verdict.broken.invariant] += 1
        repeat = f"PYTHONPATH=tests .venv/bin/python -m simulation --seed {seed} --steps {asked.steps}"
        if asked.plant:
            repeat += f" --plant '{asked.plant}'"
        if not asked.as_found:
            kept, verdict = shrink(seed, asked.steps, verdict)
            repeat += f" --keep {named(kept)}"
            say(*verdict.history)
        say(f"seed {seed}: {verdict.broken}", repeat, "")
    told = ", ".join(f"{count} {what}" for what, count in counts.most_common())
    say(f"{asked.seeds} seeds of {asked.steps} steps in {monotonic() - began_s:.0f} s: {told}")
    say(*(f"{count} x {invariant.name}: {invariant}" for invariant, count in broken.items()))
    return int(bool(broken))


if __name__ == "__main__":
    main()
