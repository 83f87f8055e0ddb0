"""One run: up, submit, harm, wait until all is well again, judge, down."""

import base64
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from cluster import judge, standins
from cluster.engine import ROOT, Engine, Failed, last_words, objects
from gaelp_tasks.models.invocation import Tier
from support.ports import free_port

NODES = 3
TOKENS = 150  #: of each answer: three seconds at the scripted server's pace
#: containers of each service; one where nothing is said
SEVERAL = {"sim": NODES, "worker": NODES, "beat": 2, "api": 2}
ONE = ("redis", "postgres", "metrics", "flower", "prometheus", "alertmanager", "receiver", "grafana")
WANTED = SEVERAL | dict.fromkeys(ONE, 1)
UP_S = 900.0  #: images are built, too
WORK_S = 900.0
WELL_S = 180.0  #: until everybody is well after the last fault
FAULT_S = 10.0
TRIES = 5
#: of a container's own process, which its first one started
KILL = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
ALERT = "GaelpOfThisCheck"
PROMETHEUS = "http://127.0.0.1:9090/api/v1"
#: figures of the exporter and of the workers that must have come to Prometheus
FIGURES = ("gaelp_queue_depth", "gaelp_invocations_total")
ALERTS = re.findall(r"- alert: (\w+)", (ROOT / "docker/prometheus/alerts.yaml").read_text())
BOARDS = sorted((ROOT / "docker/grafana/dashboards").glob("*.json"))


class Story:
    """A cluster under a project name of its own; what it needs on disk is in `folder`."""

    def __init__(self, folder: Path, *, many: int, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._many = many
        self._say = say
        self._secrets = folder / "secrets"
        self._ports = {"flower": free_port(), "grafana": free_port(), "api": free_port()}
        self._producer: subprocess.Popen[str] | None = None
        self.engine = Engine(
            f"gaelp-check-{os.getpid()}",
            {
                "GAELP_NODES": str(NODES),
                "GAELP_NUM_PARALLEL": "2",
                "GAELP_SECRETS": str(self._secrets),
                "GAELP_FLOWER_PORT": str(self._ports["flower"]),
                "GAELP_API_PORTS": f"{self._ports['api']}-{self._ports['api'] + 1}",
                "GAELP_GRAFANA_PORT": str(self._ports["grafana"]),
            },
        )

    def tell(self, *, public: bool) -> list[str]:
        """What is wrong, a sentence each. Raises Failed where it cannot go on."""
        run, compose = self.engine.run, self.engine.compose
        run([str(ROOT / "docker/secrets.sh"), str(self._secrets)])
        images = standins.public_images(
            run(compose("config", "--format", "json")), (ROOT / "docker/Dockerfile").read_text()
        )
        made = standins.have(self.engine, images, public=public)
        self._say(f"images: {', '.join(images)}; stand-ins made now: {', '.join(made) or 'none'}")
        began = time.monotonic()
        run(compose("build"), within_s=UP_S)
        # `up --build` of some releases says that all is well after a build that failed
        run(compose("up", "-d", "--no-build", "--wait"), within_s=UP_S)
        self._say(f"up after {time.monotonic() - began:.0f} s")
        wrong = self._worked()
        self._say("waiting until everybody is well")
        return wrong + self._until_well()

    def end(self) -> None:
        """Take everything down, whatever it looks like."""
        if self._producer is not None and self._producer.poll() is None:
            self._producer.kill()
            self._producer.wait()
        self._say("taking everything down")
        try:
            words = ("down", "--volumes", "--remove-orphans", "--timeout", "10")
            self.engine.run(self.engine.compose(*words), within_s=WELL_S)
        except Failed as error:
            self._say(str(error))

    def _worked(self) -> list[str]:
        """Submit in all three tiers from another container, and harm the cluster meanwhile."""
        asked = {f"{tier.value} question {n:04d}": tier.value for n in range(self._many) for tier in Tier}
        script = (Path(__file__).parent / "submit.py").read_text()
        log = self._folder / "producer.log"
        self._producer = self.engine.begin(
            self.engine.compose(
                *("run", "--rm", "-T", "--entrypoint", "python", "producer", "-c", script),
                *(str(self._many), str(TOKENS)),
            ),
            log,
        )
        self._harm()
        try:
            out, _ = self._producer.communicate(timeout=WORK_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"Not everything was answered within {WORK_S:g} s.") from None
        if self._producer.returncode:
            raise Failed(f"The producer failed: {last_words(log.read_text())}")
        told = json.loads(out)
        self._say(f"{len(told)} of {len(asked)} answered, by {len({one.get('node') for one in told})} nodes")
        return judge.answers(asked, told, TOKENS)

    def _harm(self) -> None:
        run, at = self.engine.run, self.engine.container
        self._pause()
        self._say("a worker is killed")
        # from inside: an engine takes `docker kill` for meant, and starts nothing anew
        run(["docker", "exec", "--detach", at("worker", 1), "python", "-c", KILL])
        self._pause()
        self._say("Redis is paused")
        self._stop_still(at("redis", 1))
        self._pause()
        run(["docker", "unpause", at("redis", 1)])
        self._say("a node is cut off the network")
        network, server = self.engine.network("nodes"), at("sim", NODES)
        run(["docker", "network", "disconnect", network, server])
        self._pause()
        run(["docker", "network", "connect", "--alias", "ollama", "--alias", "sim", network, server])

    def _stop_still(self, container: str) -> None:
        """Freeze it; with cgroup v1 that fails now and then on a machine that is busy, and works then."""
        for _ in range(TRIES - 1):
            try:
                self.engine.run(["docker", "pause", container])
            except Failed:
                continue
            return
        self.engine.run(["docker", "pause", container])

    def _pause(self) -> None:
        """Let it work, or stand still, for a while."""
        time.sleep(FAULT_S)

    def _until_well(self) -> list[str]:
        """What is wrong in the end: [] as soon as nothing is."""
        late = time.monotonic() + WELL_S
        self._alert()
        while (wrong := self._looked()) and time.monotonic() < late:
            time.sleep(5)
        return wrong

    def _looked(self) -> list[str]:
        run, compose = self.engine.run, self.engine.compose
        try:
            listed = objects(run(compose("ps", "--all", "--format", "json")))
            status = json.loads(run(compose("exec", "-T", "beat", "gaelp", "status", "--json")))
            dead = json.loads(run(compose("exec", "-T", "beat", "gaelp", "dlq", "list", "--json")))
            restarts = run(
                ["docker", "inspect", "-f", "{{.RestartCount}}", self.engine.container("worker", 1)]
            )
            targets = self._prometheus("targets")
            rules = self._prometheus("rules")
            figures = {name: self._prometheus(f"query?query={name}") for name in FIGURES}
            received = run(compose("logs", "--no-log-prefix", "receiver"))
            workers = json.loads(self._flower("workers?status=true")[1])
            grafana = f"http://127.0.0.1:{self._ports['grafana']}/api"
            login = f"admin:{(self._secrets / 'grafana_password').read_text().strip()}"
            boards = json.loads(fetched(f"{grafana}/search", login)[1])
            sources = json.loads(fetched(f"{grafana}/datasources", login)[1])
            doors = self._doors(f"{grafana}/search", login)
        except (Failed, ValueError, KeyError, URLError, TimeoutError) as error:
            return [f"It cannot be looked at: {error}"]
        servers = [f"http://{self.engine.container('sim', k)}:11434" for k in range(1, NODES + 1)]
        return [
            *judge.containers([one for one in listed if one["Service"] != "producer"], WANTED),
            *judge.nodes(status, servers),
            *(["There are dead letters."] if dead else []),
            *(["The worker that was killed was not started anew."] if restarts.strip() == "0" else []),
            *judge.rules(rules, ALERTS),
            *judge.figures(figures),
            *judge.seen(workers, NODES),
            *(["The receiver was not told of an alert."] if ALERT not in received else []),
            *judge.targets(targets, {"gaelp": 1, "gaelp-worker": NODES, "gaelp-api": 2}),
            *judge.boards(boards, sources, [json.loads(path.read_text())["uid"] for path in BOARDS]),
            *judge.doors(doors),
        ]

    def _prometheus(self, page: str) -> Any:
        words = ("exec", "-T", "prometheus", "wget", "-qO-", f"{PROMETHEUS}/{page}")
        return json.loads(self.engine.run(self.engine.compose(*words)))

    def _alert(self) -> None:
        """Tell Alertmanager of an alert, as Prometheus would."""
        alert = json.dumps([{"labels": {"alertname": ALERT, "severity": "critical"}}])
        words = ("wget", "-qO-", "--header", "Content-Type: application/json", f"--post-data={alert}")
        self.engine.run(
            self.engine.compose(
                *("exec", "-T", "prometheus", *words, "http://alertmanager:9093/api/v2/alerts"),
            )
        )

    def _flower(self, page: str, *, login: bool = True) -> tuple[int, str]:
        known = (self._secrets / "flower_login").read_text().strip()
        return fetched(f"http://127.0.0.1:{self._ports['flower']}/api/{page}", known if login else "")

    def _doors(self, grafana: str, login: str) -> dict[str, tuple[int, int]]:
        return {
            "Flower": (self._flower("workers", login=False)[0], self._flower("workers")[0]),
            "Grafana": (fetched(grafana)[0], fetched(grafana, login)[0]),
        }


def fetched(url: str, login: str = "") -> tuple[int, str]:
    """Status and text of a page on loopback. Raises URLError."""
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    try:
        asked = Request(url, headers=headers)  # noqa: S310  ours, on loopback
        with urlopen(asked, timeout=10) as answer:  # noqa: S310  as above
            return int(answer.status), str(answer.read().decode())
    except HTTPError as error:
        return error.code, error.read().decode()
