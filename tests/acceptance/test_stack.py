"""`gaelp demo up` and `gaelp demo run` as real programs beside a real small model."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest

from gaelp_tasks.demo.upfile import read_upfile
from support.eventually import eventually
from support.processes import running_in
from support.redis_server import RedisServer, redis_binary

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

START_S = 90.0  # five Python programs on a busy machine
STOP_S = 40.0


class Program:
    """`gaelp demo ...` in a folder of its own, as a shell would start it; ended whatever happens."""

    def __init__(self, root: Path, verb: str, node: str, **env: str) -> None:
        self.root = root
        self.output = root / "output"
        path = f"{redis_binary().parent}:{os.environ['PATH']}"
        settings = {"GAELP_OLLAMA_NODES": node, "GAELP_NUM_PARALLEL": "4", **env}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gaelp_tasks.cli", "demo", verb],
                cwd=root,
                env={**os.environ, "PATH": path, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.output.read_text()

    def up(self) -> dict:
        """The content of up.json, once there is one."""

        def look():
            assert self.process.poll() is None, self.said()
            return read_upfile(self.root)

        eventually(look, within_s=START_S, what="the system is up")
        return json.loads((self.root / ".run/up.json").read_text())

    def ends(self, within_s: float = STOP_S) -> int:
        return self.process.wait(within_s)

    def left_running(self) -> dict[int, str]:
        return running_in(self.root)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def listens(url: str) -> bool:
    parts = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname, parts.port)) == 0


def test_it_comes_up_whole_tells_where_everything_is_and_goes_whole(tmp_path, node):
    with Program(tmp_path, "up", node) as program:
        up = program.up()
        assert [part["name"] for part in up["parts"]] == ["broker", "worker", "beat", "flower", "api"]
        assert up["pid"] == program.process.pid
        assert up["ollama_nodes"] == [node]
        assert up["env"]["GAELP_BROKER_URL"] == up["broker_url"]
        assert f"  export GAELP_OLLAMA_NODES={node}\n" in program.said()
        running = program.left_running()
        for part in up["parts"]:
            assert part["pid"] in running
            assert Path(part["log"]).is_file()
            assert f"{part['name']:<12}" in program.said()
            assert f".run/logs/{part['name']}.log" in program.said()
        assert listens(up["broker_url"])
        assert listens(up["flower_url"])
        token = (tmp_path / ".run/api.token").read_text().strip()
        with urlopen(Request(f"{up['api_url']}/api/v1/status", headers=bearer(token)), timeout=10) as answer:  # noqa: S310  ours
            assert json.load(answer)["cluster_resources"]["nodes"]["healthy"] == 1
        assert f"  curl http://{up['env']['GAELP_METRICS_ADDRESS']}/metrics\n" in program.said()
        for name in ("api.token", "jwt.secret", "secret.key"):
            assert (tmp_path / ".run" / name).stat().st_mode & 0o077 == 0

        shell = {name: value for name, value in os.environ.items() if name != "GAELP_BROKER_URL"}
        status = subprocess.run(
            [sys.executable, "-m", "gaelp_tasks.cli", "status"],
            cwd=tmp_path,
            env=shell,
            capture_output=True,
            text=True,
            check=False,
        )
        assert status.returncode == 0, status.stderr
        assert node in status.stdout

        with Program(tmp_path, "up", node) as second:
            assert second.ends(START_S) == 1
        assert "The system is up already" in second.said()
        assert read_upfile(tmp_path), "the first one goes on"

        program.process.send_signal(signal.SIGINT)
        assert program.ends() == 0
        assert "Everything has stopped." in program.said()
        assert program.left_running() == {}
        assert not listens(up["broker_url"])
        assert read_upfile(tmp_path) is None
        assert not (tmp_path / ".run/up.json").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".run", "output"]


def test_when_a_part_dies_all_but_a_named_broker_stops(tmp_path, node):
    with RedisServer() as server:
        with Program(tmp_path, "up", node, GAELP_BROKER_URL=server.url) as program:
            up = program.up()
            assert up["broker_url"] == server.url
            assert [part["name"] for part in up["parts"]] == ["worker", "beat", "flower", "api"]
            os.kill(up["parts"][1]["pid"], signal.SIGKILL)
            assert program.ends() == 1
            assert "gaelp: The beat ended by itself" in program.said()
            assert "Traceback" not in program.said()
            assert program.left_running() == {}
        with server.client() as client:
            assert client.info("server")["process_id"] == server.pid


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_killing_the_supervisor_orphans_nothing_and_leaves_no_living_file(tmp_path, node):
    with Program(tmp_path, "up", node) as program:
        broker = program.up()["broker_url"]
        program.process.kill()
        program.ends()
        eventually(lambda: not program.left_running(), what="every part has gone")
        assert not listens(broker)
        assert (tmp_path / ".run/up.json").exists()
        assert read_upfile(tmp_path) is None


def test_a_broker_that_is_named_and_away_is_one_sentence(tmp_path, node):
    with Program(tmp_path, "up", node, GAELP_BROKER_URL="redis://127.0.0.1:1/0") as program:
        assert program.ends(START_S) == 1
        assert program.said().startswith("gaelp: Redis at redis://127.0.0.1:1/0 does not serve us")
        assert len(program.said().splitlines()) == 1
        assert program.left_running() == {}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, node):
    (tmp_path / ".run").write_text("a file in the way")
    for verb in ("up", "run"):
        with Program(tmp_path, verb, node) as program:
            assert program.ends(START_S) == 1
    lines = program.said().splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"gaelp: The system cannot run in {tmp_path}: ") for line in lines)


def test_the_demo_shows_all_three_tiers_and_leaves_nothing(tmp_path, node):
    with Program(tmp_path, "run", node) as program:
        assert program.ends(START_S * 2) == 0, program.said()
    said = program.said()
    for word in ("interactive", "batch", "background", "cancelled", "slots", "memory", "tokens/s", "cosine"):
        assert word in said
    assert "failed" not in said
    assert program.left_running() == {}
    assert list((tmp_path / ".run").iterdir()) == []


def test_interrupting_the_demo_stops_everything(tmp_path, node):
    with Program(tmp_path, "run", node) as program:
        eventually(lambda: "Embeddings" in program.said(), within_s=START_S, what="the story has begun")
        program.process.send_signal(signal.SIGINT)
        assert program.ends() == 130, program.said()
        assert "Traceback" not in program.said()
        assert program.left_running() == {}
        assert list((tmp_path / ".run").iterdir()) == []
