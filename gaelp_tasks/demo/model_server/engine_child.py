"""The child process that holds one loaded model: llama.cpp's own HTTP server on a free loopback port.

Run as a plain script (it must not import the package, whose base classes it has no use for). argv[1] is the
EngineSpec as JSON; stdout gets one JSON line, {"url": ...} or {"error": ...}; it dies when stdin closes.
"""

import ctypes
import json
import os
import signal
import sys
from importlib import import_module
from typing import Any

PR_SET_PDEATHSIG = 1


def main() -> int:
    """Load the model, say where it listens, and stay until the parent goes."""
    spec = json.loads(sys.argv[1])
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends us in order
    _die_with(spec["parent_pid"])
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever C++ prints is a log
    try:
        server = _serve(spec)
    except (ImportError, RuntimeError, ValueError) as error:
        report.write(json.dumps({"error": str(error)}) + "\n")
        report.close()
        return 1
    report.write(json.dumps({"url": server.listening_address}) + "\n")
    report.close()
    while os.read(0, 1024):
        pass
    os._exit(0)  # no orderly unload: requests may still be running, and the memory goes with the process


def _serve(spec: dict[str, Any]) -> Any:
    xllamacpp = import_module("xllamacpp")  # here, so that a failing import is reported like a failing load

    params = xllamacpp.CommonParams()
    params.model.path = spec["path"]
    params.n_parallel = spec["slots"]
    params.n_ctx = spec["slots"] * spec["num_ctx"]
    params.n_threads_http = 2 * spec["slots"] + 4
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec["threads"]
    params.embedding = spec["embed"]
    # A text to embed is one batch; a prompt is read in small ones, between which a hang-up is noticed.
    params.n_batch = params.n_ubatch = spec["num_ctx"] if spec["embed"] else 128
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.fit_params = False
    params.warmup = False
    params.ui = False
    params.cors_origins = ""
    params.verbosity = spec["verbosity"]
    return xllamacpp.Server(params)


def _die_with(parent_pid: int) -> None:
    """On Linux ask the kernel for a SIGKILL when the parent dies; elsewhere the end of stdin does it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before we asked
            os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
