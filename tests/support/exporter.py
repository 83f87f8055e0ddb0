"""A real `gaelp metrics` for a test, and pages read as Prometheus reads them."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from support.eventually import eventually
from support.ports import free_port

SCRAPE_S = 10.0  #: Prometheus' own patience

#: a figure's place: its name and its labels, sorted by name
Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Page:
    """Every figure of a page; what stands there twice fails, as Prometheus refuses it."""
    found: Page = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            place = one.name, frozenset(one.labels.items())
            assert place not in found, place
            found[place] = one.value
    return found


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """The place of a figure on a page."""
    return name, frozenset(labels.items())


def scrape(port: int) -> Page:
    """The page of this port."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_S) as answer:
        return read(answer.read().decode())


class Exporter:
    """`with Exporter(folder, broker_url) as exporter: exporter.page()`; ended whatever happens."""

    def __init__(self, folder: Path, broker_url: str, **settings: str) -> None:
        self.port = free_port()
        self._log = folder / "metrics.log"
        address = {"GAELP_METRICS_ADDRESS": f"127.0.0.1:{self.port}", "GAELP_BROKER_URL": broker_url}
        self._env = os.environ | address | settings
        self._folder = folder

    def page(self) -> Page:
        return scrape(self.port)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return bool(self.page())
        except URLError:
            return False

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gaelp_tasks.cli", "metrics"],
                env=self._env,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            eventually(self._is_up, within_s=30, what="`gaelp metrics` answers")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
