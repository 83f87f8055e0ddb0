"""Parts, the stack that holds them, the file that tells of them, and which model node is taken."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gaelp_tasks.demo import commands, model_node, tether
from gaelp_tasks.demo.model_node import demo_env, demo_part, listening_at, models_at
from gaelp_tasks.demo.parts import Child, Part, PartFailed
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.demo.upfile import AlreadyUp, claimed, read_upfile, write_upfile
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.settings import Settings
from support.eventually import eventually


@pytest.fixture
def shell(tmp_path):
    """Describes a part that is a shell script; its log is NAME.log in the test's folder."""

    def part(name: str, script: str, **limits: float) -> Part:
        return Part(name=name, command=("/bin/sh", "-c", script), log=tmp_path / f"{name}.log", **limits)

    return part


def said(word: str):
    """A probe: true once the part has printed the word."""
    return lambda child: word in child.output() or None


def is_alive(pid: int) -> bool:
    """False for a zombie too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


FOREVER = "while :; do sleep 60 & wait $!; done"


def test_parts_are_stopped_in_the_reverse_of_their_order(tmp_path, shell):
    order = tmp_path / "order"
    with Stack() as stack:
        for name in ("first", "second", "third"):
            stops = f"trap 'echo {name} >> {order}; exit' TERM; echo up; {FOREVER}"
            stack.wait_for(stack.start(shell(name, stops)), said("up"))
    assert order.read_text().split() == ["third", "second", "first"]


def test_a_part_that_ignores_the_request_to_end_is_killed(shell):
    with Stack() as stack:
        child = stack.start(shell("stubborn", f"trap '' TERM; echo up; {FOREVER}", stop_within_s=0.1))
        stack.wait_for(child, said("up"))
    assert not child.alive


def test_a_second_signal_ends_the_waiting_for_a_slow_part(shell):
    asks_us_to_hurry = f"trap 'kill -INT $PPID' TERM; echo up; {FOREVER}"
    with Stack() as stack:
        child = stack.start(shell("slow", asks_us_to_hurry, stop_within_s=3600))
        stack.wait_for(child, said("up"))
    assert not child.alive


def test_what_a_part_leaves_behind_in_its_group_goes_with_it(shell):
    with Stack() as stack:
        child = stack.start(shell("parent", f"sleep 3600 & echo pid $!; trap 'exit' TERM; {FOREVER}"))
        stack.wait_for(child, said("pid"))
        grandchild = int(child.output().split()[1])
    eventually(lambda: not is_alive(grandchild), what="the grandchild is gone")


def test_a_part_does_not_hear_the_terminals_ctrl_c(shell):
    with Stack() as stack:
        child = stack.start(shell("deaf", f"echo up; {FOREVER}"))
        stack.wait_for(child, said("up"))
        assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
        assert os.getsid(child.pid) == child.pid


def test_a_part_that_dies_while_it_starts_is_told_with_the_last_line_of_its_log(shell):
    with Stack() as stack:
        child = stack.start(shell("engine", "echo loading; echo 'no fuel.' >&2; exit 3"))
        with pytest.raises(
            PartFailed, match=r"^The engine ended while it started: no fuel\. Its log is .*engine\.log\.$"
        ):
            child.wait_for(lambda _: None)


def test_a_part_that_is_not_ready_in_time_is_told(shell):
    with Stack() as stack:
        child = stack.start(shell("sleeper", FOREVER, start_within_s=0.05))
        with pytest.raises(PartFailed, match=r"^The sleeper was not ready within 0\.05 s\."):
            stack.wait_for(child, lambda _: None)


def test_waiting_for_one_part_notices_the_end_of_another(shell):
    with Stack() as stack:
        stack.start(shell("broker", "exit 1"))
        waiting = stack.start(shell("worker", FOREVER))
        with pytest.raises(PartFailed, match="The broker ended by itself"):
            stack.wait_for(waiting, lambda _: None)


def test_watching_ends_when_a_part_does_and_all_others_are_stopped(shell):
    with Stack() as stack:
        others = [stack.start(shell(name, FOREVER)) for name in ("a", "b")]
        stack.start(shell("brief", "echo 'out of paper'; exit 2"))
        with pytest.raises(PartFailed, match="The brief ended by itself: out of paper"):
            stack.watch()
    assert not any(child.alive for child in others)


def test_the_last_words_of_a_part_that_simply_ended_are_not_given_as_a_reason(shell):
    with Stack() as stack:
        stack.start(shell("worker", "echo 'Warm shutdown (MainProcess)'; exit 0"))
        with pytest.raises(PartFailed, match=r"^The worker ended by itself\. Its log is .*worker\.log\.$"):
            stack.watch()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_that_means_the_end_interrupts_the_watch(tmp_path, shell, number):
    if signal.getsignal(number) is signal.SIG_IGN:  # the tests themselves run under nohup
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    stack = Stack()

    def run_until_told() -> None:
        with stack:
            stack.start(shell("part", f"echo $$; kill -{int(number)} $PPID; {FOREVER}"))
            stack.watch()

    with pytest.raises(KeyboardInterrupt):
        run_until_told()
    assert stack.children == []
    assert not is_alive(int((tmp_path / "part.log").read_text()))
    assert signal.getsignal(number) is before


def test_each_start_begins_a_fresh_log(shell):
    for word in ("one", "two"):
        with Stack() as stack:
            child = stack.start(shell("part", f"echo {word}; {FOREVER}"))
            stack.wait_for(child, said(word))
    assert child.part.log.read_text() == "two\n"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "logs").write_text("a file in the way")
    part = Part(name="broker", command=("true",), log=tmp_path / "logs" / "broker.log")
    with pytest.raises(PartFailed, match=r"^The broker could not be started: .*logs"):
        Child(part)


def test_stopping_twice_is_harmless(shell):
    child = Child(shell("part", FOREVER))
    child.stop()
    child.stop()
    assert not child.alive


def test_the_tether_runs_nothing_once_the_parent_is_gone(tmp_path):
    mark = tmp_path / "mark"
    not_my_parent = str(os.getpid() + 1)
    subprocess.run([sys.executable, tether.__file__, not_my_parent, "touch", str(mark)], check=True)
    assert not mark.exists()


def test_the_tether_becomes_its_command():
    printed = subprocess.run(
        [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), "echo", "two words"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert printed.stdout == "two words\n"


CONTENT = {"pid": 1, "env": {"GAELP_BROKER_URL": "redis://127.0.0.1:1/0"}}


def test_a_running_system_is_found_by_its_file_and_only_while_it_runs(tmp_path):
    assert read_upfile(tmp_path) is None
    with claimed(tmp_path) as folder:
        assert read_upfile(tmp_path) is None, "it is still starting"
        write_upfile(folder, CONTENT)
        assert read_upfile(tmp_path) == CONTENT["env"]
    assert read_upfile(tmp_path) is None
    assert not (folder / "up.json").exists()


def test_the_file_of_a_dead_system_is_ignored_and_replaced(tmp_path):
    (tmp_path / ".run").mkdir()
    write_upfile(tmp_path / ".run", CONTENT | {"pid": os.getpid()})
    assert read_upfile(tmp_path) is None
    with claimed(tmp_path) as folder:
        assert not (folder / "up.json").exists()


def test_a_file_that_makes_no_sense_is_ignored(tmp_path):
    with claimed(tmp_path) as folder:
        for nonsense in ("", "[]", '{"env": 7}', "{"):
            (folder / "up.json").write_text(nonsense)
            assert read_upfile(tmp_path) is None


def test_only_its_owner_may_read_the_file(tmp_path):
    with claimed(tmp_path) as folder:
        write_upfile(folder, CONTENT)
        assert stat.S_IMODE((folder / "up.json").stat().st_mode) == 0o600


def test_two_systems_cannot_run_out_of_one_folder(tmp_path):
    with claimed(tmp_path), pytest.raises(AlreadyUp), claimed(tmp_path):
        pass


def test_the_file_is_read_without_importing_anything_heavy():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1]);"
        "print([name for name in ('celery', 'pydantic', 'gaelp_tasks') if name in sys.modules])"
    )
    module = Path(model_node.__file__).with_name("upfile.py")
    printed = subprocess.run(
        [sys.executable, "-c", code, str(module)], check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == "[]"


@contextmanager
def ollama(answer: bytes, status: int = 200):
    """A server that gives one answer to everything; yields its address and the requests it saw."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, dict(self.headers)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


def test_the_models_of_a_real_node_are_named():
    tags = {"models": [{"name": "llama3.2:1b", "size": 1}, {"name": "all-minilm:latest", "size": 2}]}
    settings = Settings(ollama_headers={"X-Key": "secret"})
    with ollama(json.dumps(tags).encode()) as (url, seen):
        assert models_at(url, settings) == ("llama3.2:1b", "all-minilm:latest")
    assert seen[0][0] == "/api/tags"
    assert seen[0][1]["X-Key"] == "secret"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'{"models": []}', 200),
        (b'{"models": null}', 200),
        (b"<html>", 200),
        (b"[]", 200),
        (b"{}", 200),
        (b"", 500),
    ],
)
def test_a_server_without_models_or_that_is_no_ollama_is_no_node(answer, status):
    with ollama(answer, status) as (url, _):
        assert models_at(url, Settings()) == ()


def test_a_server_that_is_not_there_is_no_node_whatever_proxy_is_set(monkeypatch):
    with ollama(b'{"models": [{"name": "of the proxy"}]}') as (proxy, seen):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "")
        assert models_at("http://127.0.0.1:1", Settings()) == ()
    assert seen == []


def test_the_demo_server_is_found_by_the_line_it_prints_among_others(shell):
    script = f'echo warning: old CPU; echo \'{{"url": "http://127.0.0.1:4711", "pid": 1}}\'; {FOREVER}'
    with Stack() as stack:
        assert (
            stack.wait_for(stack.start(shell("model node", script)), listening_at) == "http://127.0.0.1:4711"
        )


def test_the_demo_server_takes_a_free_port_and_its_worker_as_many_slots(tmp_path):
    models = model_node.DemoModels(chat=tmp_path / "chat.gguf", embed=tmp_path / "embed.gguf")
    command = demo_part(models, log=tmp_path / "log").command
    assert command[command.index("--port") + 1] == "0"
    settings = demo_env("http://127.0.0.1:4711")
    assert command[command.index("--num-parallel") + 1] == settings["GAELP_NUM_PARALLEL"]
    assert f"{settings['GAELP_DEFAULT_MODEL']}={tmp_path}/chat.gguf:chat" in command
    assert f"{settings['GAELP_EMBED_MODEL']}={tmp_path}/embed.gguf:embed" in command


def test_an_engine_that_cannot_run_is_one_sentence_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        model_node, "check_engine", lambda: "the engine needs libgomp.so.1: apt-get install libgomp1"
    )
    with pytest.raises(
        PartFailed, match=r"cannot run here: the engine needs libgomp\.so\.1: apt-get install libgomp1\."
    ):
        model_node.DemoModels.fetch(tmp_path, pytest.fail)
    assert list(tmp_path.iterdir()) == []


def test_the_logs_of_a_demo_that_failed_are_kept_and_named(tmp_path):
    heard = []

    def fail() -> None:
        with commands._own_folder(tmp_path / ".run", heard.append) as folder:
            (folder / "logs").mkdir()
            raise PartFailed("The worker ended by itself.")

    with pytest.raises(PartFailed):
        fail()
    [folder] = (tmp_path / ".run").iterdir()
    assert heard == [f"The logs are in {folder}/logs."]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, PartFailed])
def test_a_demo_without_a_story_of_failure_leaves_no_folder(tmp_path, error):
    with suppress(*filter(None, [error])), commands._own_folder(tmp_path / ".run", pytest.fail) as folder:
        assert folder.is_dir()
        if error is not None:
            raise error
    assert list((tmp_path / ".run").iterdir()) == []


def test_a_full_disk_is_one_sentence():
    with (
        pytest.raises(PartFailed, match=r"^The system cannot run in here: .*No space left on device\.$"),
        commands._worded(Path("here")),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_that_has_its_sentence_keeps_it():
    with pytest.raises(BrokerUnavailable, match=r"^Redis is away$"), commands._worded(Path("here")):
        raise BrokerUnavailable("Redis is away")
