"""Tie a program's life to its parent's: `python tether.py PARENT_PID COMMAND...` becomes COMMAND.

On Linux the kernel then kills COMMAND when the parent dies, by SIGKILL too. It is the parent's *thread* that
the kernel watches, so start parts from a thread that lives as long as they should. Elsewhere it runs untied.
Run by its file, not as a module: it starts in milliseconds because it imports nothing of ours.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main(parent: str, *command: str) -> None:
    """Become COMMAND; returns only where the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == int(parent):  # else it died before the tether held
        os.execvp(command[0], command)  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
