"""`gaelp top` on a real terminal: draws, follows Redis away and back, leaves the terminal as it was."""

import signal
import sys
import termios
import time

import pytest

from gaelp_tasks.keys import Keys
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import ModelSlots
from support.redis_server import RedisServer
from support.terminal import CTRL_C, Terminal

pytestmark = [pytest.mark.redis]

NODE = "http://127.0.0.1:11434"
ALTERNATE, ORDINARY, CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[?25h"
AWAY = "does not serve us"


@pytest.fixture
def server():
    with RedisServer() as server:
        announce(server)
        yield server


def announce(server, **facts):
    """As a worker does."""
    snapshot = NodeSnapshot(
        **{
            "worker": "w@h", "pid": 1, "url": NODE, "healthy": True, "slots": 2, "running": ("0123456789",),
            "started_at": 1.0, "seen_at": time.time(),
            "memory": MemorySnapshot(total_bytes=2, free_bytes=1, source="test"),
        }
        | facts
    )  # fmt: skip
    with server.client() as client:
        client.set(Keys().node("w@h", NODE), snapshot.model_dump_json())


@pytest.fixture
def terminal(server, tmp_path):
    env = {"GAELP_BROKER_URL": server.url, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    with Terminal([sys.executable, "-m", "gaelp_tasks.cli", "top"], env, tmp_path) as started:
        started.before = termios.tcgetattr(started._end)
        started.expect("01234567")
        yield started


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda terminal: terminal.press("xq"), 0),
        (lambda terminal: terminal.press(CTRL_C), 130),
        (lambda terminal: terminal.process.send_signal(signal.SIGTERM), 143),
    ],
    ids=["q", "Ctrl-C", "SIGTERM"],
)
def test_whichever_way_it_is_left_the_terminal_is_as_it_was(terminal, leave, code):
    assert termios.tcgetattr(terminal._end) != terminal.before, "it reads single keys"
    assert NODE in terminal.screen
    leave(terminal)
    terminal.expect(ORDINARY)
    assert terminal.ends() == code
    assert termios.tcgetattr(terminal._end) == terminal.before
    assert terminal.screen.count(ALTERNATE) == terminal.screen.count(ORDINARY) == 1
    assert terminal.screen.rstrip().endswith((CURSOR, ORDINARY)), (
        "the cursor is there again, and no word more"
    )


def test_it_follows_redis_away_and_back(terminal, server):
    server.stop()
    terminal.expect(AWAY)
    terminal.expect(NODE)  # what was last seen stays
    server.start()
    announce(server)
    while AWAY in frame(terminal):
        pass
    assert "01234567" in frame(terminal)
    terminal.press("q")
    assert terminal.ends() == 0


def frame(terminal):
    """The next frame from its head to its end."""
    terminal.expect("tokens/s")
    return terminal.expect("gaelp")


def test_slots_that_memory_cuts_and_gives_back_are_seen_while_it_happens(terminal, server):
    def tells(count, busy, why=""):
        told = ModelSlots(model="big:1b", slots=count, busy=busy, phase="loaded", why=why)
        announce(server, by_model=(told,), loaded=("big:1b",))

    tells(2, 1)
    terminal.expect("1/2")
    tells(0, 1, "Memory is short: nothing starts.")
    terminal.expect("1/0")
    terminal.expect("Memory is short: nothing starts.")
    tells(2, 2)
    terminal.expect("2/2")
