"""Programs that tests need: without one a test is skipped; in CI as root, which installs it, it fails."""

import os
import shutil
from typing import NoReturn

import pytest

INSTALLED = bool(os.environ.get("CI")) and os.geteuid() == 0 and shutil.which("apt-get") is not None


def lacking(what: str) -> NoReturn:
    """End a test that cannot go on for want of a program."""
    if INSTALLED:
        pytest.fail(f"{what}, though .ci/run should have installed it")
    pytest.skip(what)


def needs(program: str, package: str) -> pytest.MarkDecorator:
    """A mark for tests of a program that is on PATH where Debian's package is installed."""
    absent = shutil.which(program) is None and not INSTALLED
    return pytest.mark.skipif(absent, reason=f"no {program} on PATH (Debian: {package})")
