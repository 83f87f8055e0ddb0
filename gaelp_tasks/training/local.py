"""Jobs as processes of this machine, each in a session and a folder of its own."""

import json
import os
import sys
from pathlib import Path

from gaelp_tasks.training import child
from gaelp_tasks.training.runner import Launch, Spec, environment

__all__ = ["LocalRunner"]

PROGRAMS = "/usr/local/bin:/usr/bin:/bin"
LEAST_DATA = 128 * 1024**2  #: bytes; with less an interpreter hardly starts


class LocalRunner:
    """The default: it isolates no more than a user of the machine is; docker does."""

    name = "local"

    def launch(self, spec: Spec) -> Launch:
        """The command of the settings' list, with both files as arguments."""
        limits = {"RLIMIT_CORE": 0}
        if spec.needs.memory_bytes:
            limits["RLIMIT_DATA"] = max(spec.needs.memory_bytes, LEAST_DATA)
        if spec.needs.storage_bytes:
            limits["RLIMIT_FSIZE"] = spec.needs.storage_bytes
        files = ("--config", f"{spec.folder}/config.json", "--hyperparams", f"{spec.folder}/hyperparams.json")
        tether = (sys.executable, "-I", "-S", str(Path(child.__file__)), str(os.getpid()), json.dumps(limits))
        env = environment(spec, spec.folder) | {"PATH": PROGRAMS}
        return Launch((*tether, *spec.command, *files), env, spec.folder)
