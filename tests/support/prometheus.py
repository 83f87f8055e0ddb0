"""A real Prometheus, and a real Alertmanager, with our own configuration: on loopback, gone afterwards."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from ruamel.yaml import YAML

from support.eventually import eventually
from support.ports import free_port

FOLDER = Path(__file__).parents[2] / "docker/prometheus"
PROGRAM = shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
EVERY = "1s"
#: as long as the exporter waits for a Redis that hangs, or the API for its database, and a second
PATIENCE = {"gaelp": "4s", "gaelp-api": "2s"}
#: bounds that nobody waits for in a test, and what stands for them there
SHORTER = {
    "gaelp_progress_age_seconds > 600": "gaelp_progress_age_seconds > 5",
    "gaelp_claim_age_seconds > 30": "gaelp_claim_age_seconds > 12",
    "gaelp_relay_oldest_seconds) > 30": "gaelp_relay_oldest_seconds) > 3",
}
ALERTS = {
    rule["alert"]
    for group in YAML(typ="safe").load(FOLDER / "alerts.yaml")["groups"]
    for rule in group["rules"]
}
#: seen in tests/faults/test_api_alerts.py; all others in test_alerts.py beside it
API_ALERTS = {name for name in ALERTS if name.startswith(("GaelpApi", "GaelpSql", "GaelpRelay"))}


class _Program:
    """A server of somebody else's, from its first answer to its end."""

    def __init__(self, folder: Path, command: Sequence[object]) -> None:
        self._folder = folder
        self._command = [str(word) for word in command]
        self._log = folder / f"{Path(self._command[0]).name}.log"

    def is_up(self) -> bool:
        raise NotImplementedError

    def _answers(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self.is_up()
        except (requests.ConnectionError, ValueError):
            return False

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            eventually(self._answers, within_s=30, what=f"{self._command[0]} answers")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


class Prometheus(_Program):
    """`with Prometheus(folder, {"gaelp": [port], ...}) as prometheus: prometheus.ask("up")`.

    `ports` tells where on this machine each job of docker/prometheus/prometheus.yaml is scraped. With the
    port of an Alertmanager its alerts wait for nothing: `for` is left out, and see SHORTER.
    """

    def __init__(
        self, folder: Path, ports: Mapping[str, Sequence[int]], *, alertmanager: int | None = None
    ) -> None:
        self._port = free_port()
        yaml = YAML()
        config = yaml.load(FOLDER / "prometheus.yaml")
        config["global"] |= dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), EVERY)
        rules = [(FOLDER / name).read_text() for name in config["rule_files"]]
        if alertmanager is None:
            del config["alerting"]
        else:
            config["alerting"]["alertmanagers"][0]["static_configs"] = _targets([alertmanager])
            rules = [_impatient(text) for text in rules]
        config["rule_files"] = [f"rules-{number}.yaml" for number, _ in enumerate(rules)]
        for name, text in zip(config["rule_files"], rules, strict=True):
            (folder / name).write_text(text)
        assert {job["job_name"] for job in config["scrape_configs"]} == ports.keys()
        for job in config["scrape_configs"]:
            job.pop("dns_sd_configs", None)
            job["static_configs"] = _targets(ports[job["job_name"]])
            job["scrape_interval"] = job["scrape_timeout"] = PATIENCE.get(job["job_name"], EVERY)
        yaml.dump(config, folder / "prometheus.yaml")
        super().__init__(
            folder,
            [
                PROGRAM,
                "--config.file=prometheus.yaml",
                "--storage.tsdb.path=data",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gives now."""
        answer = requests.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=20).json()
        assert answer["status"] == "success", answer
        assert answer["data"]["resultType"] == "vector"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def firing(self) -> set[str]:
        """The names of alerts that fire now."""
        return {one["metric"]["alertname"] for one in self.ask('ALERTS{alertstate="firing"}')}

    def is_up(self) -> bool:
        return bool(self.ask("vector(1)"))


class Alertmanager(_Program):
    """`with Alertmanager(folder, receiver.port) as manager`; it tells who listens at that port, at once."""

    def __init__(self, folder: Path, receiver: int) -> None:
        self.port = free_port()
        yaml = YAML()
        config = yaml.load(FOLDER / "alertmanager.yaml")
        for route in (config["route"], *config["route"]["routes"]):
            route |= {"group_wait": "0s", "group_interval": EVERY}
        for one in config["receivers"]:
            for hook in one["webhook_configs"]:
                hook["url"] = f"http://127.0.0.1:{receiver}/alerts"
        yaml.dump(config, folder / "alertmanager.yaml")
        super().__init__(
            folder,
            [
                ALERTMANAGER,
                "--config.file=alertmanager.yaml",
                "--storage.path=alertmanager-data",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--cluster.listen-address=",
            ],
        )

    def is_up(self) -> bool:
        return requests.get(f"http://127.0.0.1:{self.port}/-/ready", timeout=5).ok


class Receiver:
    """`with Receiver() as receiver:`; who was told of which alerts."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []  #: alerts as Alertmanager posts them

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:  # noqa: N805  self is the receiver
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                self.told += json.loads(body)["alerts"]
                handler.send_response(200)
                handler.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def heard(self, status: str) -> set[str]:
        """The names of alerts that it was told are firing, or resolved."""
        return {one["labels"]["alertname"] for one in tuple(self.told) if one["status"] == status}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _targets(ports: Sequence[int]) -> list[dict[str, list[str]]]:
    return [{"targets": [f"127.0.0.1:{port}" for port in ports]}]


def _impatient(rules: str) -> str:
    for bound, shorter in SHORTER.items():
        assert rules.count(bound) == 1, bound
        rules = rules.replace(bound, shorter)
    return re.sub(r"(?m)^ +for: .*\n", "", rules)
