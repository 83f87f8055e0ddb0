"""Every test starts from a scrubbed environment; fixtures of real servers live in tests/support."""

import os
import signal
from tempfile import TemporaryDirectory

import hypothesis
import pytest

for _name in tuple(os.environ):
    ours = _name.startswith(("GAELP_", "OLLAMA_", "CELERY_", "FLOWER_", "OTEL_"))
    if ours and not _name.startswith("GAELP_TEST_"):
        del os.environ[_name]

# what a shell starts in the background ignores Ctrl-C, and so would every program that a test starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: what programs keep for their user stays out of the home of whoever runs the tests
_state = TemporaryDirectory(prefix="gaelp-state-")
os.environ["XDG_STATE_HOME"] = _state.name

from gaelp_tasks.celery_app import app
from gaelp_tasks.settings import Settings, load_settings
from support.ports import free_port

pytest_plugins = ["support.fixtures", "support.databases", "support.api"]


# how long a draw takes says what else the machine is doing
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


def pytest_unconfigure() -> None:
    _state.cleanup()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="the long forms of the fault tests")


#: the app of this process talks to the session's own Redis, which the fixture `broker` starts
app._given = Settings(broker_url=f"redis://127.0.0.1:{free_port()}/0", connect_timeout_s=2.0)


@pytest.fixture(autouse=True)
def _forget_settings():
    """A test that changes the environment must not leave its settings behind."""
    yield
    load_settings.cache_clear()
