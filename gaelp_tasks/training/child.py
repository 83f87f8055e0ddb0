"""What a local job's process is before it becomes the job: `python child.py PARENT LIMITS COMMAND...`.

On Linux the kernel kills it when the worker's thread that started it ends, by SIGKILL of the worker too; that
holds on behind the exec. LIMITS is a JSON object, resource name -> number. Run by its file, isolated: it
starts in milliseconds because it imports nothing of ours.
"""

import ctypes
import json
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main(parent: str, limits: str, *command: str) -> None:
    """Become COMMAND; returns only where the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name, value in json.loads(limits).items():
        number = getattr(resource, name, None)
        if number is not None:
            _, most = resource.getrlimit(number)
            value = value if most == resource.RLIM_INFINITY else min(value, most)  # noqa: PLW2901  the same
            resource.setrlimit(number, (value, value))
    if os.getppid() == int(parent):  # else it died before the tether held
        os.execvp(command[0], command)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
