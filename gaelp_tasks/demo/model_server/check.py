"""Can the engine run on this machine? Asked before anything depends on it, answered in words."""

import signal
import subprocess
import sys

_IMPORT_LIMIT_S = 60.0


def check_engine() -> str | None:
    """None when llama.cpp can be loaded here, else one sentence that says why not and what to do.

    Tries the import in a process of its own, which costs 0.1 s, keeps the engine out of this one, and
    survives a CPU that lacks the instructions of the wheel.
    """
    command = [sys.executable, "-P", "-c", "import xllamacpp"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_IMPORT_LIMIT_S, check=False)  # noqa: S603  our own interpreter
    except subprocess.TimeoutExpired:
        return (
            f"the engine did not load within {_IMPORT_LIMIT_S:.0f} s; try again when the machine is less busy"
        )
    return None if done.returncode == 0 else explain(done.returncode, done.stderr)


def explain(returncode: int, stderr: str) -> str:
    """The sentence for a failed import, from how its process ended."""
    if returncode == -signal.SIGILL:
        return "this CPU lacks AVX2, FMA or F16C, which the engine's package needs; use a real Ollama instead"
    if "libgomp.so.1" in stderr:
        return "the engine needs the system library libgomp.so.1; install it: apt-get install libgomp1"
    if "No module named 'xllamacpp'" in stderr:
        return "the engine is not installed: pip install 'gaelp-tasks[demo]'"
    last = stderr.strip().rpartition("\n")[2] or f"its process ended with status {returncode}"
    return f"the engine cannot be loaded here: {last}"
