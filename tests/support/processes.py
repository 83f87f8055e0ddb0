"""Which processes live in a folder: what was started there, through however many hands."""

from pathlib import Path


def running_in(folder: Path) -> dict[int, str]:
    """Pid and command line of every process whose working directory is in `folder`; zombies have none."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            at = (process / "cwd").readlink()
            if at.is_relative_to(folder.resolve()):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has just ended, or is not ours
    return found
