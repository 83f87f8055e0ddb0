"""Flower as we let it out: login for everything, no prompt or answer, read only unless asked."""

import hmac
import logging
import signal
import sys
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

import tornado.options
import tornado.web
from flower.api.tasks import TaskApply, TaskResult
from flower.app import Flower
from flower.command import apply_env_options, apply_options, extract_settings, is_flower_option, setup_logging
from flower.events import Events
from flower.inspector import Inspector
from flower.options import options
from flower.urls import settings
from flower.views.broker import BrokerView
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cli.masks import masked_event, masked_failure, masked_inspection, masked_result
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.logs import dress

__all__ = ["OptionRefused", "Rules", "serve"]

logger = logging.getLogger(__name__)

MAX_TASKS = 20_000  #: remembered; Flower's own 100,000 would not fit the memory that compose.yaml gives it
COLUMNS = "name,uuid,state,kwargs,received,runtime,worker"  #: kwargs holds agent, model and tier
#: decided by us alone
OURS = frozenset({"address", "auth", "auth_provider", "basic_auth", "debug", "port", "read_only"})
OPEN = "/healthcheck"  #: says OK and nothing else
READING = frozenset({"GET", "HEAD"})
READING_BY_POST = "/tasks/datatable"  #: a page of the list of tasks; its query is too long for an address


class OptionRefused(GaelpError):
    """An option that Flower does not have, or that is not the caller's to set."""


class Rules:
    """Who may ask what."""

    def __init__(self, login: str, *, control: bool, url_prefix: str = "") -> None:
        self._login = login.encode()
        self._control = control
        self.prefix = f"/{url_prefix.strip('/')}" if url_prefix else ""

    def refusal(self, method: str, path: str, authorization: str) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused; None for one that may pass."""
        path = path.removeprefix(self.prefix)
        if path == OPEN and method in READING:
            return None
        if not self._may_enter(authorization):
            return (
                401,
                "Login needed: user:password, as in .run/flower.login (make up) or GAELP_FLOWER_LOGIN.\n",
            )
        if self._control or method in READING or (method == "POST" and path == READING_BY_POST):
            return None
        return 403, "Read only: start it with `gaelp flower --control` to steer workers and tasks.\n"

    def _may_enter(self, authorization: str) -> bool:
        kind, _, credentials = authorization.partition(" ")
        try:
            given = b64decode(credentials.strip(), validate=True)
        except ValueError:
            return False
        return kind.lower() == "basic" and hmac.compare_digest(given, self._login)


class MaskedEvents(Events):
    """What Flower remembers, pages and its HTTP API alike."""

    def on_event(self, event: dict[str, Any]) -> None:
        """From the thread that listens to the broker."""
        self.io_loop.add_callback(self.remember, masked_event(event))

    def remember(self, event: dict[str, Any]) -> None:
        """On the loop, whose own the state is."""
        if event["type"] == "task-sent" and event.get("uuid") in self.state.tasks:
            # it was overtaken by the worker's events, which tell more of the arguments than a plain sender's
            event = {name: value for name, value in event.items() if name not in {"args", "kwargs"}}
        self.state.event(event)


class MaskedInspector(Inspector):
    """What Flower asks the workers."""

    def _on_update(self, workername: str, method: str, response: Any) -> None:
        super()._on_update(workername, method, masked_inspection(method, response))


class _Masked:
    """The result backend has every answer in full: of it only the outcome leaves."""

    def update_response_result(self, response: dict[str, Any], result: Any) -> None:
        failed = isinstance(result.result, BaseException)
        response["result"] = masked_failure(result.result) if failed else masked_result(result.result)


class MaskedResult(_Masked, TaskResult):
    """`/api/task/result/ID`."""


class MaskedApply(_Masked, TaskApply):
    """`/api/task/apply/NAME`; a chosen id could be another's, so this result is masked, too."""


class Queues:
    """Flower's broker, telling what it leaves out for Redis: all that waits in a list is ready."""

    def __init__(self, broker: Any) -> None:
        self._broker = broker

    async def queues(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Every queue with its length."""
        return [{**queue, "messages_ready": queue["messages"]} for queue in await self._broker.queues(names)]


class QueuesView(BrokerView):
    """`/broker`; a narrow window shows the column Ready and hides the column Messages."""

    def get_broker(self) -> Queues:
        """What the page asks for lengths."""
        return Queues(super().get_broker())


class Refused(tornado.web.RequestHandler):
    """One sentence, whatever the method."""

    def initialize(self, status: int, sentence: str) -> None:
        """Tornado's way to hand over arguments."""
        self._status, self._sentence = status, sentence

    def prepare(self) -> None:
        """Answers before any method is called."""
        self.set_status(self._status)
        self.set_header("Content-Type", "text/plain; charset=UTF-8")
        if self._status == 401:  # noqa: PLR2004  a browser asks for the password
            self.set_header("WWW-Authenticate", 'Basic realm="gaelp flower", charset="UTF-8"')
        self.finish(self._sentence)

    def check_xsrf_cookie(self) -> None:
        """Nothing is done here that could be forged."""


class Dashboard(Flower):
    """Flower with a gate in front of every page, static files and unknown addresses included."""

    def __init__(self, app: GaelpApp, rules: Rules) -> None:
        events = MaskedEvents(
            app,
            io_loop=IOLoop.current(),
            db=options.db,
            persistent=options.persistent,
            state_save_interval=options.state_save_interval,
            enable_events=options.enable_events,
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=options.max_tasks,
        )
        super().__init__(capp=app, options=options, events=events, io_loop=IOLoop.current(), **settings)
        self.inspector = MaskedInspector(self.io_loop, app, options.inspect_timeout / 1000.0)
        self._rules = rules
        at = rules.prefix
        ours: list[tuple[str, type]] = [
            (f"{at}/api/task/result/(.+)", MaskedResult),
            (f"{at}/api/task/apply/(.+)", MaskedApply),
            (f"{at}/broker", QueuesView),
        ]
        self.add_handlers(".*", ours)  # looked at before Flower's own

    def find_handler(self, request: HTTPServerRequest, **more: Any) -> Any:
        """Tornado's choice of who answers."""
        refusal = self._rules.refusal(
            request.method or "", request.path, request.headers.get("Authorization", "")
        )
        if refusal is not None:
            status, sentence = refusal
            return self.get_handler_delegate(request, Refused, {"status": status, "sentence": sentence})
        return super().find_handler(request, **more)


def serve(
    app: GaelpApp, *, address: str, port: int, login: str, control: bool, more: Sequence[str] = ()
) -> None:
    """Run Flower until SIGTERM or Ctrl-C; `more` are flags of Flower itself.

    Raises OptionRefused, GaelpError where the port is taken.
    """
    _configure(address=address, port=port, login=login, control=control, more=more)
    dress(app.settings)
    dashboard = Dashboard(app, Rules(login, control=control, url_prefix=options.url_prefix or ""))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        dashboard.start_http_server()
    except OSError as error:
        raise GaelpError(
            f"Flower cannot listen on {address}:{port} ({error.strerror}): choose another by --port."
        ) from None
    logger.info("Flower is at http://%s:%s, %s", address, port, "with control" if control else "read only")
    try:
        dashboard.start()
    except (KeyboardInterrupt, SystemExit):
        logger.info("Flower stops")
    finally:
        dashboard.stop()


def _configure(*, address: str, port: int, login: str, control: bool, more: Sequence[str]) -> None:
    for word in more:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if name in OURS:
            raise OptionRefused(
                f"--{name} is not set this way: see `gaelp flower --help`; the login is GAELP_FLOWER_LOGIN."
            )
        if not is_flower_option(word):
            raise OptionRefused(f"Flower has no option {word.partition('=')[0]}: see `celery flower --help`.")
    options.max_tasks, options.tasks_columns = MAX_TASKS, COLUMNS
    apply_env_options()
    try:
        apply_options("gaelp flower", more)
    except (tornado.options.Error, ValueError) as error:
        raise OptionRefused(f"Flower refuses {' '.join(more)}: {error}.") from None
    options.address, options.port = address, port
    options.basic_auth, options.auth = [login], ""
    options.read_only, options.debug = not control, False
    extract_settings()
    setup_logging()
