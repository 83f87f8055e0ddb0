"""A folder that the real pip takes for the package index, and the wheels published there."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from gaelp_tasks.demo.wheels import Wheel


class WheelIndex:
    """The only place that pip downloads from, until the end of the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self._folder = folder
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def publish(self, wheel: Wheel, files: Mapping[str, bytes]) -> Wheel:
        """Offer that release with these files in it; the answer is pinned to what was published."""
        name = f"{wheel.package.replace('-', '_')}-{wheel.version}"
        path = self._folder / f"{name}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for member, content in files.items():
                archive.writestr(member, content)
            about = f"Metadata-Version: 2.1\nName: {wheel.package}\nVersion: {wheel.version}\n"
            archive.writestr(f"{name}.dist-info/METADATA", about)
            archive.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            archive.writestr(f"{name}.dist-info/RECORD", "")
        return replace(wheel, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    def withdraw(self) -> None:
        """Offer nothing any more."""
        for path in self._folder.iterdir():
            path.unlink()
