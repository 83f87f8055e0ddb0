"""A real trainer for `gaelp jobs submit examples/job-config.json`, with nothing but Python.

It fits a campaign's response curve, conversions = a * spend ** b, to noisy observations by stochastic
gradient descent, writes a checkpoint every few steps, tells its metrics, and goes on from its last
checkpoint where it was ended in between.
"""

import argparse
import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

TRUE_A, TRUE_B = 3.0, 0.6  #: what is to be found


def parameters(path: str) -> dict[str, float]:
    """The hyperparameters of the file; those of the environment (HYPERPARAM_...) say the same."""
    return json.loads(Path(path).read_text())


def observe(chance: random.Random) -> tuple[float, float]:
    """What was spent, and the conversions that came of it: both as logarithms."""
    spend = chance.uniform(0.1, 10.0)
    return math.log(spend), math.log(TRUE_A) + TRUE_B * math.log(spend) + chance.gauss(0.0, 0.05)


def load(path: str | None) -> dict[str, float]:
    """Where to begin."""
    if path:
        state = json.loads(Path(path).read_text())
        print(f"going on from step {state['step']} ({Path(path).name})")
        return state
    return {"step": 0, "a": 0.0, "b": 0.0, "loss": 1.0}


def save(state: dict[str, float], folder: Path) -> None:
    """Write a whole checkpoint, or none: under another name first."""
    name = f"step-{state['step']:06d}.json"
    unfinished = folder / f".{name}"
    unfinished.write_text(json.dumps(state))
    unfinished.rename(folder / name)


def tell(state: dict[str, float], steps: int) -> None:
    """Metrics, as a line of JSON that the runner records."""
    told = {"step": state["step"], "loss": round(state["loss"], 6), "progress": state["step"] / steps}
    print("GAELP_METRICS " + json.dumps(told))


def main() -> None:
    """Train until the last step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--hyperparams", required=True)
    given = parser.parse_args()
    config, hyper = json.loads(Path(given.config).read_text()), parameters(given.hyperparams)
    steps, every = int(config.get("steps", 200)), int(config.get("checkpoint_every", 20))
    pause_s, rate = float(config.get("step_s", 0.01)), float(hyper.get("learning_rate", 0.05))
    folder = Path(os.environ["GAELP_CHECKPOINT_DIR"])
    state = load(os.environ.get("GAELP_RESUME_FROM"))
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    while state["step"] < steps:
        state["step"] += 1
        chance = random.Random(int(hyper.get("seed", 1)) * 1_000_003 + int(state["step"]))  # noqa: S311
        x, y = observe(chance)
        error = state["a"] + state["b"] * x - y
        state["a"] -= rate * error
        state["b"] -= rate * error * x
        state["loss"] = 0.95 * state["loss"] + 0.05 * error * error
        if state["step"] % every == 0 or state["step"] == steps or asked:
            save(state, folder)
            tell(state, steps)
        if asked:
            print(f"asked to end: saved at step {state['step']}")
            sys.exit(0)
        time.sleep(pause_s)
    print(f"conversions = {math.exp(state['a']):.3f} * spend ** {state['b']:.3f}")


if __name__ == "__main__":
    main()
