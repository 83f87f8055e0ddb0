"""The wheel with its base dependencies only, in an environment of its own: what a producer installs."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS_ONLY = (
    *("aiohttp", "psutil", "typer", "rich", "requests", "numpy", "xllamacpp", "flower", "pynvml"),
    *("structlog", "opentelemetry"),
)
NOWHERE = "redis://127.0.0.1:1/0"  # publishing there would fail with another error than the one we expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # it installs, on whatever network there is


def run(*command, cwd):
    """Run away from the checkout, so that only what is installed can be imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "GAELP_BROKER_URL": NOWHERE},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    built = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder
    )
    assert built.returncode == 0, built.stderr + built.stdout
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of the programs of the new environment."""
    home = tmp_path_factory.mktemp("base")
    venv.create(home, with_pip=True, symlinks=True)
    pip = (home / "bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps")
    for arguments in (("--no-compile", "--require-hashes", "-r", ROOT / "requirements/base.txt"), (wheel,)):
        done = run(*pip, *arguments, cwd=home)
        assert done.returncode == 0, done.stderr
    return home / "bin"


def python(installed, source):
    return run(installed / "python", "-W", "error", "-c", source, cwd=installed)


def test_the_wheel_ships_three_typed_packages_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("gaelp_tasks", "gaelp_workers", "gaelp_beat"):
        assert f"{package}/py.typed" in names
        assert f"{package}/__init__.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "gaelp_tasks",
        "gaelp_workers",
        "gaelp_beat",
    }


def test_the_wheel_ships_everything_that_lies_beside_the_sources(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    homes = {"gaelp_tasks": ROOT, "gaelp_workers": ROOT / "workers", "gaelp_beat": ROOT / "beat"}
    for package, above in homes.items():
        for path in (above / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert path.relative_to(above).as_posix() in names


def test_the_base_dependencies_are_enough_for_each_other(installed):
    checked = run(installed / "python", "-m", "pip", "check", cwd=installed)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("library", EXTRAS_ONLY)
def test_the_base_install_brings_no_library_of_an_extra(installed, library):
    found = python(installed, f"import importlib.util as u; print(u.find_spec({library!r}))")
    assert found.stdout.strip() == "None"


def test_the_public_surface_imports_without_an_extra(installed):
    done = python(installed, "import gaelp_tasks; [getattr(gaelp_tasks, n) for n in gaelp_tasks.__all__]")
    assert done.returncode == 0, done.stderr


def test_an_invocation_can_be_described(installed):
    done = python(
        installed,
        "from gaelp_tasks import invoke_agent\n"
        "s = invoke_agent.s('hi', tier='batch')\n"
        "print(s.task, s.args, s.kwargs)",
    )
    assert done.stdout.split(maxsplit=1)[0] == "gaelp.invoke_agent", done.stderr


def test_bad_input_is_refused_before_anything_is_published(installed):
    done = python(
        installed,
        "from gaelp_tasks import errors, invoke_agent\n"
        "try:\n"
        "    invoke_agent.delay('hi', tier='nonsense')\n"
        "except errors.InvalidInvocation as error:\n"
        "    print(error)",
    )
    assert "tier" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_a_broker_that_is_away_is_one_sentence(installed):
    done = python(
        installed,
        "from gaelp_tasks import errors, invoke_agent\n"
        "try:\n"
        "    invoke_agent.delay('hi')\n"
        "except errors.BrokerUnavailable as error:\n"
        "    print(error)",
    )
    assert "127.0.0.1:1" in done.stdout, done.stderr


def test_the_command_says_in_one_sentence_what_to_install(installed):
    done = run(installed / "gaelp", "status", cwd=installed)
    assert done.returncode == 1
    assert "gaelp-tasks[worker]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
