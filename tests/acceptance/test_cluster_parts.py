"""The parts of compose.yaml as real programs: Redis with its rules, each program with its user.

Every program finds what it is told where a container would: passwords in a folder of files, the rest in the
environment that compose.yaml gives it. Only names of hosts are others.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest
import redis as redis_py
import requests
from ruamel.yaml import YAML
from websockets.sync.client import connect

from cluster import judge
from support.eventually import eventually
from support.exporter import scrape
from support.needs import needs
from support.ports import free_port
from support.postgres_server import PostgresServer
from support.prometheus import Alertmanager, Prometheus
from support.redis_server import redis_7_binary

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
SERVICES = YAML(typ="safe").load(ROOT / "compose.yaml")["services"]
SUBMIT = (ROOT / "tests/cluster/submit.py").read_text()
GAELP = (sys.executable, "-m", "gaelp_tasks.cli")
MANY, TOKENS = 2, 6
#: what is done without: a worker asks INFO where CONFIG is refused, redis-py tells its name in vain
HARMLESS = {"config|get", "config", "client", "client|setinfo"}
ONLOOKER = "user onlooker on nopass -@all +acl|log\n"  #: for the test alone
#: in place of compose's variables that hold a place on this machine, or have no default
HERE = {"GAELP_OLLAMA_NODES", "GAELP_METRICS_ADDRESS", "GAELP_METRICS_PORT", "GAELP_API_ADDRESS"}


class Told:
    """What programs have said, read when a wait has failed."""

    def __init__(self, cluster, *names):
        self._look = lambda: "\n".join(cluster.log(name) for name in names)

    def __str__(self):
        return self._look()


class Cluster:
    """Redis and PostgreSQL that answer, and programs started as compose.yaml says."""

    def __init__(self, folder, stack):
        self._folder = folder
        self._stack = stack
        self.secrets = folder / "secrets"
        subprocess.run([ROOT / "docker/secrets.sh", self.secrets], check=True, capture_output=True)
        self._redis_port = free_port()
        self._start_redis()
        self._database = stack.enter_context(PostgresServer()).new_database()
        self.ports = {name: free_port() for name in ("metrics", "worker", "flower", "api", "api page")}
        node = ("demo", "scripted", "--num-parallel", "2", "--token-s", "0.001")
        process = self.begin("sim", [*GAELP, *node], stdout=subprocess.PIPE)
        self._node = json.loads(process.stdout.readline())["url"]

    def _start_redis(self):
        rules = self._folder / "rules.acl"
        rules.write_text((self.secrets / "redis_users").read_text() + ONLOOKER)
        words = [
            rules if word == "/run/secrets/redis_users" else word for word in SERVICES["redis"]["command"]
        ]
        data = self._folder / "redis"
        data.mkdir()
        place = ("--port", str(self._redis_port), "--bind", "127.0.0.1", "--dir", str(data))
        self.begin("redis", [redis_7_binary(), *words[1:], *place])
        eventually(self._redis_is_up, within_s=20, what=Told(self, "redis"))

    def _redis_is_up(self):
        with suppress(redis_py.ConnectionError):
            return "aof_last_write_status" in self.health()
        return False

    def client(self, user, password):
        return redis_py.Redis(port=self._redis_port, username=user, password=password, decode_responses=True)

    def health(self):
        with self.client("health", (self.secrets / "redis_health").read_text().strip()) as client:
            return client.info("persistence")

    def log(self, name):
        return (self._folder / f"{name}.log").read_text()

    def begin(self, name, words, env=None, **how):
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                words, env=env or os.environ, cwd=self._folder, stderr=log, **{"stdout": log, **how}
            )
        self._stack.callback(self._end, process)
        return process

    def _end(self, process):
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def env(self, service):
        """What a container of it would have."""
        folder = self._folder / f"run-{service}"
        folder.mkdir(exist_ok=True)
        for one in SERVICES[service]["secrets"]:
            source, target = (one, one) if isinstance(one, str) else (one["source"], one["target"])
            source = source.replace("${GAELP_FLOWER_USER:-reader}", "reader")
            text = (self.secrets / source).read_text()
            text = text.replace("@redis:6379/", f"@127.0.0.1:{self._redis_port}/")
            (folder / target).write_text(self._database if source == "database_url" else text)
        given = {
            name: re.sub(r"\$\{\w+:-(?:\$\{\w+:-(\w*)\}|(\w*))\}", r"\1\2", str(value))
            for name, value in SERVICES[service]["environment"].items()
            if name not in HERE
        }
        here = {
            "GAELP_SECRETS_DIR": str(folder),
            "GAELP_OLLAMA_NODES": self._node,
            "GAELP_METRICS_ADDRESS": f"127.0.0.1:{self.ports['metrics']}",
            "GAELP_POLL_INTERVAL_S": "0.2",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        if service == "api":
            here["GAELP_API_ADDRESS"] = f"127.0.0.1:{self.ports['api']}"
            here["GAELP_METRICS_ADDRESS"] = f"127.0.0.1:{self.ports['api page']}"
        if service == "worker":
            here["GAELP_METRICS_PORT"] = str(self.ports["worker"])
        return {"PATH": os.environ["PATH"], "XDG_STATE_HOME": str(self._folder)} | given | here

    def start(self, service, *words, name="", **more):
        return self.begin(name or service, [*GAELP, *words], env=self.env(service) | more)

    def ask(self, service, *words):
        return subprocess.run(
            words,
            env=self.env(service),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ExitStack() as stack:
        made = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        for name in ("beat", "beat-2"):
            made.start("beat", *SERVICES["beat"]["command"], name=name)
        login = (made.secrets / "flower_login").read_text().strip()
        words = ("flower", "--port", str(made.ports["flower"]))
        for service, how in (
            ("worker", SERVICES["worker"]["command"]),
            ("metrics", SERVICES["metrics"]["command"]),
            ("flower", words),
            ("api", SERVICES["api"]["command"]),
        ):
            made.start(service, *how, GAELP_FLOWER_LOGIN=login)
            # one after the other: a small machine is not asked for all of them at once
            listens = partial(answers, made.ports[service])
            eventually(listens, within_s=100, what=Told(made, service))
        yield made


def is_well(cluster, service):
    kind, *words = SERVICES[service]["healthcheck"]["test"]
    assert (kind, words[0]) == ("CMD", "gaelp")
    return cluster.ask(service, *GAELP, *words[1:])


@pytest.mark.parametrize("service", ["worker", "beat", "metrics", "api"])
def test_each_program_says_that_it_makes_progress(cluster, service):
    def well():
        done = is_well(cluster, service)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode == 0

    eventually(well, within_s=60, what=Told(cluster, service))


def test_three_tiers_are_submitted_by_the_producer_and_answered(cluster):
    done = cluster.ask("producer", sys.executable, "-c", SUBMIT, str(MANY), str(TOKENS))
    assert done.returncode == 0, done.stderr
    asked = {
        f"{tier} question {number:04d}": tier
        for tier in ("interactive", "batch", "background")
        for number in range(MANY)
    }
    assert judge.answers(asked, json.loads(done.stdout), TOKENS) == []


def test_the_api_takes_an_agent_its_secret_and_a_call_of_it_and_shows_what_happens(cluster):
    made = cluster.ask("api", *GAELP, "token", "create", "--user", "me", "--role", "admin")
    token = made.stdout.strip()
    url, headers = f"http://127.0.0.1:{cluster.ports['api']}/api/v1", {"Authorization": f"Bearer {token}"}
    with requests.Session() as me:
        me.headers.update(headers)
        body = {"name": "a", "type": "research", "secrets": {"KEY": "hidden"}}
        agent = me.post(f"{url}/agents", json=body, timeout=20).json()
        assert agent["secrets"] == ["KEY"], agent
        ticket = me.post(f"{url}/tickets", timeout=20).json()["ticket"]
        place = f"ws://127.0.0.1:{cluster.ports['api']}/ws/{agent['id']}?ticket={ticket}"
        with connect(place, proxy=None) as socket:
            assert json.loads(socket.recv(timeout=20))["event"] == "snapshot"
            me.post(f"{url}/agents/{agent['id']}/metrics", json={"reward": 0.5}, timeout=20)
            assert json.loads(socket.recv(timeout=20))["data"]["values"] == {"reward": 0.5}
        body = {"prompt": "Say this again", "agent_id": agent["id"]}
        call = me.post(f"{url}/invocations", json=body, timeout=20).json()
        stream = me.get(f"{url}/invocations/{call['id']}/stream", timeout=60).text
        assert "event: end" in stream, stream
        assert me.get(f"{url}/nodes", timeout=20).json()
        assert me.get(f"{url}/status", timeout=20).json()["agent_counts"]["total"] == 1
    own = scrape(cluster.ports["api page"])
    assert ("gaelp_sql_up", frozenset()) in own
    assert ("gaelp_redis_up", frozenset()) not in own, "the exporter tells of that"


def test_one_of_two_beats_leads_and_postgresql_keeps_the_history(cluster):
    eventually(
        lambda: (cluster.log("beat") + cluster.log("beat-2")).count("This beat leads") == 1,
        within_s=40,
        what="a leader",
    )

    def told():
        done = cluster.ask("worker", *GAELP, "history", "--json")
        assert done.returncode == 0, done.stderr
        tiers = Counter(row["tier"] for row in json.loads(done.stdout))
        # the API's call is interactive, too, and may be there by now
        return tiers["batch"] == tiers["background"] == MANY <= tiers["interactive"]

    eventually(told, within_s=40, what="the history is in SQL")
    assert not list(cluster.secrets.parent.glob("**/gaelp.db"))


def test_the_pages_of_the_exporter_and_of_the_worker_answer(cluster):
    eventually(lambda: ("gaelp_redis_up", frozenset()) in scrape(cluster.ports["metrics"]), within_s=30)
    assert any(name == "gaelp_node_open" for name, _ in scrape(cluster.ports["metrics"]))
    assert any(name == "gaelp_worker_runs" for name, _ in scrape(cluster.ports["worker"]))


def test_flower_sees_the_worker_and_wants_its_login(cluster):
    page = f"http://127.0.0.1:{cluster.ports['flower']}/workers?json=1"
    login = tuple((cluster.secrets / "flower_login").read_text().strip().split(":"))

    def seen():
        with suppress(requests.ConnectionError, requests.Timeout):
            return f"gaelp@{socket.gethostname()}" in requests.get(page, auth=login, timeout=10).text
        return False

    eventually(seen, within_s=60, what=Told(cluster, "flower"))
    assert requests.get(page, timeout=10).status_code == 401


def test_redis_is_closed_to_whoever_has_no_user(cluster):
    with cluster.client(None, None) as client, pytest.raises(redis_py.AuthenticationError):
        client.ping()
    assert cluster.health()["aof_last_write_status"] == "ok"


def test_nobody_was_refused_anything_that_it_needs(cluster):
    with cluster.client("onlooker", "") as onlooker:
        refused = {(entry["username"], entry["reason"], entry["object"]) for entry in onlooker.acl_log()}
    assert {each for each in refused if each[2] not in HARMLESS and each[1] != "auth"} == set()


@needs("prometheus", "prometheus")
def test_prometheus_is_well_while_it_asks_somebody(tmp_path, cluster):
    [query] = re.findall(r"query=([^']+)'", SERVICES["prometheus"]["healthcheck"]["test"][1])
    with Prometheus(
        tmp_path,
        {
            "gaelp": [cluster.ports["metrics"]],
            "gaelp-worker": [cluster.ports["worker"]],
            "gaelp-api": [cluster.ports["api page"]],
        },
    ) as prometheus:
        eventually(lambda: prometheus.ask(unquote(query)), within_s=20)
        assert prometheus.ask(unquote(query).replace("<60", "<0")) == []
        eventually(lambda: len(prometheus.ask("up == 1")) == 3, within_s=20)


@needs("prometheus-alertmanager", "prometheus-alertmanager")
def test_the_example_of_a_receiver_writes_what_alertmanager_tells_it(tmp_path):
    port = free_port()
    with (tmp_path / "receiver.log").open("wb") as log:
        receiver = subprocess.Popen([sys.executable, ROOT / "docker/receiver.py", str(port)], stdout=log)
    try:
        with Alertmanager(tmp_path, port) as manager:
            alert = {
                "labels": {"alertname": "GaelpNoBeat", "severity": "critical"},
                "annotations": {"summary": "x"},
            }
            told = requests.post(f"http://127.0.0.1:{manager.port}/api/v2/alerts", json=[alert], timeout=10)
            assert told.ok
            eventually((tmp_path / "receiver.log").read_text, within_s=20)
    finally:
        receiver.kill()
        receiver.wait()
    line = json.loads((tmp_path / "receiver.log").read_text().splitlines()[0])
    assert (line["alert"], line["status"], line["summary"]) == ("GaelpNoBeat", "firing", "x")
