"""The page that Prometheus reads, and what counts on it. The only door to prometheus_client."""

import socketserver
import threading
from collections.abc import Callable, Collection, Iterable
from socket import AF_INET6
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    make_wsgi_app,
)
from prometheus_client.metrics_core import Metric

from gaelp_tasks.lifecycle import State
from gaelp_tasks.metrics.series import HTTP, MOST_MODELS, OTHER, WORKER, Names, Sample, Series
from gaelp_tasks.models.ending import Ending
from gaelp_tasks.queues import EMBED, INBOXES

__all__ = ["CONTENT_TYPE", "Collected", "Page", "Requests", "Runs", "new_page", "serve", "text"]

Page = CollectorRegistry

CONTENT_TYPE = CONTENT_TYPE_LATEST
IDLE_S = 10.0  #: a client that says nothing is sent away
OUTCOMES = (State.DONE, State.CUT, State.FAILED)
MOST_AGENTS = 50  #: on one page
#: seconds in queue: a chat starts at once, a night's batch by the morning
WAITS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600, 14400, 43200)
#: seconds until an answer of the API begins
ANSWERS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
#: any other is `other`
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
#: seconds of a run, and until its first token
RUNS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


def new_page() -> Page:
    """A page with memory, processor and descriptors of this process."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    made = CollectorRegistry()
    ProcessCollector(registry=made)
    return made


def text(page: Page) -> str:
    """The page as Prometheus reads it."""
    return generate_latest(page).decode()


class Collected:
    """Metrics whose figures are asked for at each scrape; what has none is named all the same."""

    def __init__(self, those: Iterable[Series], figures: Callable[[], Iterable[Sample]], page: Page) -> None:
        self._those = tuple(those)
        self._figures = figures
        page.register(self)

    def describe(self) -> Iterable[Metric]:
        """Every metric without a figure."""
        return _each(self._empty())

    def collect(self) -> Iterable[Metric]:
        """Every metric with its figures."""
        made = self._empty()
        for name, values, number in self._figures():
            labels, metric = made[name]
            metric.add_sample(name, dict(zip(labels, values, strict=True)), float(number))
        return _each(made)

    def _empty(self) -> dict[str, tuple[tuple[str, ...], Metric]]:
        made: dict[str, tuple[tuple[str, ...], Metric]] = {}
        for name, kind, labels, meaning in self._those:
            metric = Metric(name.removesuffix("_total"), meaning, kind)
            made[name] = labels, metric
            if kind == "histogram":  # whose figures have names of their own
                made |= {f"{name}_bucket": ((*labels, "le"), metric)}
                made |= {f"{name}_{part}": (labels, metric) for part in ("sum", "count")}
        return made


def _each(made: dict[str, tuple[tuple[str, ...], Metric]]) -> list[Metric]:
    return list({metric.name: metric for _, metric in made.values()}.values())


class Requests:
    """What became of the requests of this process. `route` is a path's template: of those there are few."""

    def __init__(self, page: Page) -> None:
        those = {series.name: series for series in HTTP}
        total, seconds = those["gaelp_http_requests_total"], those["gaelp_http_request_seconds"]
        running = those["gaelp_http_requests_running"]
        self._total = Counter(total.name, total.meaning, total.labels, registry=page)
        self._seconds = Histogram(
            seconds.name, seconds.meaning, seconds.labels, registry=page, buckets=ANSWERS_S
        )
        self._running = Gauge(running.name, running.meaning, registry=page)

    def began(self) -> None:
        """One more is being answered."""
        self._running.inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Its answer has begun."""
        method = method if method in METHODS else OTHER
        self._total.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def ended(self) -> None:
        """It is over."""
        self._running.dec()


class Runs:
    """What the runs of this process were; to count one takes 30 microseconds, on any thread.

    `agents` gives the names that can be called here: what else somebody asked for is `other`.
    """

    def __init__(self, agents: Callable[[], Collection[str]], page: Page) -> None:
        self._callable = agents
        self._page = page
        self._agents = Names(MOST_AGENTS)
        self._models = Names(MOST_MODELS)
        self._invocations: Counter = self._made("gaelp_invocations_total")
        self._tokens: Counter = self._made("gaelp_tokens_total")
        self._retries: Counter = self._made("gaelp_retries_total")
        self._waits: Histogram = self._made("gaelp_queue_wait_seconds", WAITS_S)
        self._first: Histogram = self._made("gaelp_first_token_seconds", RUNS_S)
        self._lasted: Histogram = self._made("gaelp_run_seconds", RUNS_S)
        known = [self._agents.of(agent) for agent in agents()]
        for tier in INBOXES:  # a rate needs the 0 before the first
            for histogram in (self._waits, self._first, self._lasted):
                histogram.labels(tier)
            for agent in known:
                for outcome in OUTCOMES:
                    self._invocations.labels(tier, agent, outcome)

    def _made(self, name: str, buckets: tuple[float, ...] = ()) -> Any:
        series = next(series for series in WORKER if series.name == name)
        if series.kind == "counter":
            return Counter(name, series.meaning, series.labels, registry=self._page)
        return Histogram(name, series.meaning, series.labels, registry=self._page, buckets=buckets)

    def ended(self, end: Ending) -> None:
        """One more has ended."""
        agent = end.agent or EMBED
        agent = self._agents.of(agent) if agent in self._callable() else OTHER
        self._invocations.labels(end.tier, agent, end.state).inc()
        for kind, number in (("prompt", end.prompt_tokens), ("completion", end.completion_tokens)):
            if number:
                self._tokens.labels(self._models.of(end.model), kind).inc(number)
        times = (self._waits, end.queued_s), (self._first, end.first_token_s), (self._lasted, end.total_s)
        for histogram, seconds in times:
            if seconds is not None:
                histogram.labels(end.tier).observe(seconds)

    def retried(self) -> None:
        """One more will be tried again."""
        self._retries.inc()


class _Handler(WSGIRequestHandler):
    timeout = IDLE_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Say nothing: a scrape comes every few seconds."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the look-up of our own name, for which a broken resolver takes half a minute."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client has gone, or said nothing; what our own code raises is answered with 500."""


class _Server6(_Server):
    address_family = AF_INET6


def serve(page: Page, host: str, port: int) -> Callable[[], None]:
    """Serve the page on a thread of its own; what comes back ends that. Raises OSError for a port in use."""
    made = (_Server6 if ":" in host else _Server)((host, port), _Handler)
    made.set_app(make_wsgi_app(page))
    threading.Thread(target=made.serve_forever, name="gaelp-metrics", daemon=True).start()

    def end() -> None:
        made.shutdown()
        made.server_close()

    return end
