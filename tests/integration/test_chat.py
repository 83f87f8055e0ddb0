"""`gaelp chat` at a real terminal and in a pipe, beside a real worker with a tiny model."""

import json
import os
import subprocess
import sys

import pytest

from gaelp_tasks import app
from support.flower import SCENE
from support.terminal import CTRL_C, CTRL_D, Terminal
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

CHAT = (sys.executable, "-m", "gaelp_tasks.cli", "chat")
SHORT = '--options={"num_predict": 20, "seed": 3}'
PROMPT = "\n> "


@pytest.fixture(scope="module")
def at(broker, node, tmp_path_factory):
    """The environment of a chat beside a worker that can echo, fail and wait, too."""
    settings = {"GAELP_BROKER_URL": broker.url, "GAELP_OLLAMA_NODES": node, **SCENE}
    app.redis.flushdb()
    with WorkerProcess(tmp_path_factory.mktemp("worker"), **settings):
        yield settings


def piped(text, at, folder, *flags):
    return subprocess.run(
        [*CHAT, *flags],
        input=text,
        env={**os.environ, **at},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_person_talks_interrupts_one_answer_and_talks_on(at, tmp_path):
    with Terminal([*CHAT, SHORT], at, tmp_path) as screen:
        screen.expect("/help lists commands")
        screen.expect(PROMPT)
        screen.enter("Hello, who are you?")
        screen.expect("who are you?")
        first = screen.expect(PROMPT).strip()
        assert first, "the model wrote something"

        screen.enter("/agent echo")
        screen.expect("Agent: echo")
        screen.expect(PROMPT)
        screen.enter("wait \\")
        screen.expect("... ")
        screen.enter("for it")
        screen.expect("You said: wait")
        screen.press(CTRL_C)
        screen.expect("Stopped.")
        screen.expect(PROMPT)

        screen.enter("/agent chat")
        screen.expect("Agent: chat")
        screen.expect(PROMPT)
        screen.enter("And a third?")
        screen.expect("third?")
        assert screen.expect(PROMPT).strip()
        screen.enter("/save talk.json")
        screen.expect("Saved in talk.json.")
        screen.expect(PROMPT)
        assert screen.ends_by(CTRL_D) == 0
    said = json.loads((tmp_path / "talk.json").read_text())["turns"]
    assert [turn["question"] for turn in said] == ["Hello, who are you?", "wait \nfor it", "And a third?"]
    assert [turn["cut"] for turn in said] == [False, True, False]
    assert said[1]["answer"] == "You said: wait \nfor it"
    assert (tmp_path / "talk.json").stat().st_mode & 0o777 == 0o600
    assert "Traceback" not in screen.screen


def test_ctrl_c_at_the_prompt_leaves(at, tmp_path):
    with Terminal(CHAT, at, tmp_path) as screen:
        screen.expect(PROMPT)
        assert screen.ends_by(CTRL_C) == 130


def test_each_line_of_a_pipe_is_answered_and_nothing_else_is_printed(at, tmp_path):
    done = piped("one\n\n//two\n", at, tmp_path, "--agent=echo")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "You said: one.\n\nYou said: /two.\n"
    assert done.stderr == ""


def test_a_turn_that_fails_is_one_sentence_and_the_next_one_works(at, tmp_path):
    wrong = "/agent fault\nhi\n/agent nobody\n/model no:such\n/agent chat\nhi\n/nonsense\n"
    done = piped(f"{wrong}/model -\n/agent echo\nhi\n/retry\n", at, tmp_path)
    assert done.returncode == 1
    assert done.stdout == "You said: hi.\n\nYou said: hi.\n"
    for words in (
        "LookupError",
        "no agent of that name",
        "No node has no:such; there are: ",
        "no command /nonsense",
    ):
        assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_with_json_each_turn_is_one_object_that_says_how_it_went(at, tmp_path):
    done = piped("hi\n/agent fault\nhi\n", at, tmp_path, "--json", SHORT, "--system=Be brief.")
    good, bad = (json.loads(line) for line in done.stdout.splitlines())
    assert (good["prompt"], good["stop_reason"], good["usage"]["completion_tokens"]) == ("hi", "length", 20)
    assert (bad["prompt"], bad["error"].partition(":")[0]) == ("hi", "LookupError")
    assert done.returncode == 1


def test_without_a_worker_it_says_so_at_once_and_ctrl_c_gives_the_question_up(broker, tmp_path):
    empty = {"GAELP_BROKER_URL": broker.url.replace("/0", "/1")}
    with Terminal(CHAT, empty, tmp_path) as screen:
        screen.expect("No worker is running")
        screen.expect(PROMPT)
        screen.enter("Anybody?")
        screen.expect("No worker is running")
        screen.press(CTRL_C)
        screen.expect("Cancelled.")
        screen.expect(PROMPT)
        screen.enter("/quit")
        assert screen.ends() == 0


def test_without_a_broker_it_is_one_sentence(tmp_path):
    done = piped("hi\n", {"GAELP_BROKER_URL": "redis://127.0.0.1:1/0"}, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("gaelp: Redis at redis://127.0.0.1:1/0 does not serve us")
    assert len(done.stderr.strip().splitlines()) == 1
