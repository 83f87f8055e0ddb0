"""How programs log: JSON that every reader can read, runs that are named, nothing of what users wrote."""

import asyncio
import io
import json
import logging
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
from celery.app.log import TaskFormatter
from celery.app.task import Context
from celery.utils.log import ColorFormatter
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks import logs
from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import SettingsError
from gaelp_tasks.logs import RUN, Logging, dress, facts
from gaelp_tasks.runtime import Runtime
from gaelp_tasks.settings import Settings
from gaelp_workers.naming import named

INVOKE = "gaelp.invoke_agent"
LINE = "[%(levelname)s] %(message)s"


def request(task=INVOKE, *, claim=2, queue="batch.m", **arguments):
    return Context(
        id="an-id", task=task, args=[], kwargs=arguments, gaelp_claim=claim,
        delivery_info={"routing_key": queue},
    )  # fmt: skip


def logger_of(log_format, out, formatter=ColorFormatter, **how):
    """A logger as Celery sets one up for a program of ours."""
    made = logging.Logger("gaelp_tasks.somewhere")  # noqa: LOG001  nobody else's
    setup = Logging(
        SimpleNamespace(settings=Settings(log_format=log_format), conf=app.conf, IS_WINDOWS=False)
    )
    setup._worker = how.pop("worker", "")
    setup.setup_handlers(made, out, LINE, False, formatter=formatter, **how)
    return made


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def run():
    """This thread is inside a run."""
    before = RUN.set([request(prompt="SECRET", agent="coding", model="m:1b", tier="batch")])
    yield
    RUN.reset(before)


def lines(out):
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_in_json_tells_when_how_urgent_who_and_what(out):
    logger_of("json", out, worker="gaelp@one").warning("The node %s is slow.", "n")
    [line] = lines(out)
    assert line.pop("time").endswith("+00:00")
    assert line.pop("host")
    assert line == {
        "level": "warning",
        "logger": "gaelp_tasks.somewhere",
        "event": "The node n is slow.",
        "worker": "gaelp@one",
    }


def test_inside_a_run_the_line_tells_whose_it_is_and_nothing_that_was_asked(out, run):
    logger_of("json", out).info("The model is slow.")
    [line] = lines(out)
    told = {name: line[name] for name in ("task", "invocation_id", "claim", "agent", "tier", "model")}
    assert told == {
        "task": INVOKE, "invocation_id": "an-id", "claim": 2, "agent": "coding", "tier": "batch",
        "model": "m:1b",
    }  # fmt: skip
    assert "SECRET" not in out.getvalue()


def test_an_error_is_one_field_of_its_line(out):
    try:
        {}["no such thing"]
    except KeyError:
        logger_of("json", out).exception("It broke.")
    [line] = lines(out)
    assert line["event"] == "It broke."
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("KeyError: 'no such thing'")


def test_what_else_was_told_is_kept_unless_ours_has_that_name(out):
    extra = {"shelf": 7, "level": "mine", "data": {"args": "SECRET"}}
    logger_of("json", out).info("Found.", extra=extra)
    [line] = lines(out)
    assert (line["shelf"], line["level"]) == (7, "info")
    assert "SECRET" not in out.getvalue()


@pytest.mark.parametrize(
    ("task", "field"), [(INVOKE, "invocation_id"), ("gaelp.embed", "invocation_id"), ("add", "task_id")]
)
def test_celerys_own_lines_tell_the_task_that_they_are_about(out, task, field):
    logger = logger_of("json", out)
    logger.name = "celery.app.trace"
    logger.info("Task %(name)s[%(id)s] received", {"name": task, "id": "its-id", "args": "SECRET"})
    [line] = lines(out)
    assert (line["task"], line[field], line["event"]) == (task, "its-id", f"Task {task}[its-id] received")
    assert "SECRET" not in out.getvalue()


def test_somebody_elses_mapping_is_no_task(out):
    logger_of("json", out).info("%(name)s has %(id)s", {"name": "A shelf", "id": 7})
    [line] = lines(out)
    assert not {"task", "task_id", "invocation_id"} & line.keys()


def test_what_stands_beside_is_told_too(out, monkeypatch):
    monkeypatch.setattr(logs, "BESIDE", [lambda: {"trace_id": "ab"}, dict])
    logger_of("json", out).info("Found.")
    assert lines(out)[0]["trace_id"] == "ab"


@given(text=st.text(), name=st.text(), more=st.one_of(st.text(), st.binary(), st.complex_numbers()))
def test_whatever_is_logged_is_one_line_that_can_be_read(text, name, more):
    out = io.StringIO()
    before = RUN.set([request(agent=name, model=name)])
    try:
        logger_of("json", out).info("%s", text, extra={"more": more})
    finally:
        RUN.reset(before)
    assert out.getvalue().isascii()
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue())["event"] == text


@given(
    arguments=st.dictionaries(
        st.sampled_from(["tier", "agent", "model", "priority", "prompt"]),
        st.one_of(
            st.none(), st.text(), st.integers(), st.lists(st.text()), st.dictionaries(st.text(), st.text())
        ),
    ),
    task=st.one_of(st.sampled_from([INVOKE, "gaelp.embed"]), st.text()),
)
def test_the_facts_of_a_run_stay_short_whatever_its_message_holds(arguments, task):
    told = facts(request(task, **arguments))
    assert all(isinstance(value, str | int) and len(str(value)) <= 200 for value in told.values())


def test_a_task_that_is_no_invocation_is_told_by_its_id():
    assert facts(request("gaelp.run_batch")) == {"task": "gaelp.run_batch", "task_id": "an-id"}


def test_in_text_a_line_of_a_run_begins_with_its_id_unless_it_names_it(out, run):
    logger = logger_of("text", out)
    logger.info("The model is slow.")
    logger.info("Task %s is late.", "an-id")
    assert out.getvalue().splitlines() == ["[INFO] [an-id] The model is slow.", "[INFO] Task an-id is late."]


def test_in_text_a_line_outside_of_runs_is_celerys(out):
    logger_of("text", out).info("Ready.")
    assert out.getvalue() == "[INFO] Ready.\n"


def test_a_task_logger_knows_its_task_on_the_loop(out, run):
    made = logging.Logger("an.agent")  # noqa: LOG001  nobody else's
    setup = Logging(SimpleNamespace(settings=Settings(), conf=app.conf, IS_WINDOWS=False))
    setup.setup_handlers(made, out, "%(task_name)s[%(task_id)s]: %(message)s", False, formatter=TaskFormatter)
    made.info("Found.")
    assert out.getvalue() == f"{INVOKE}[an-id]: Found.\n"


class Task:
    """What `named` needs of one; its run happens as ours does, on a loop of another thread."""

    def __init__(self, work):
        self.request = request()
        self._work = work

    def run(self):
        return self._work()


@pytest.fixture
def runtime():
    made = Runtime()
    yield made
    made.close()


def test_a_run_is_named_on_its_thread_and_on_the_loop_and_no_longer(out, runtime):
    logger = logger_of("text", out)
    over, logged = threading.Event(), threading.Event()

    async def stays():
        """As a look at a node does that a run has begun."""
        while not over.is_set():
            await asyncio.sleep(0.001)
        logger.info("left over")
        logged.set()

    async def walk():
        logger.info("on the loop")
        asyncio.get_running_loop().create_task(stays(), name="stays")

    def work():
        logger.info("on the thread")
        runtime.run(walk())
        return "done"

    task = Task(work)
    named(task)
    assert task.run() == "done"
    logger.info("after it")
    over.set()
    assert logged.wait(10)
    assert out.getvalue().splitlines() == [
        "[INFO] [an-id] on the thread",
        "[INFO] [an-id] on the loop",
        "[INFO] after it",
        "[INFO] left over",
    ]


def test_a_run_that_fails_leaves_no_name_behind(out):
    def work():
        raise ValueError

    task = Task(work)
    named(task)
    with pytest.raises(ValueError, match=r"^$"):
        task.run()
    logger_of("text", out).info("after it")
    assert out.getvalue() == "[INFO] after it\n"


def test_json_without_its_library_is_refused_in_one_sentence(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "structlog.processors", None)
    with pytest.raises(SettingsError, match=r"^GAELP_LOG_FORMAT: .*gaelp-tasks\[worker\]'\.$"):
        logger_of("json", out)


@pytest.fixture
def root(monkeypatch):
    """The root logger, with no handlers but those of the test."""
    found = logging.getLogger()
    monkeypatch.setattr(found, "handlers", [])
    level = found.level
    yield found
    found.setLevel(level)
    logging.captureWarnings(capture=False)


def test_a_program_of_its_own_logs_json_too_where_that_is_asked_for(root, out):
    root.handlers.clear()  # pytest has added its own
    root.addHandler(logging.StreamHandler(out))
    dress(Settings(log_format="json"))
    logging.getLogger("flower.command").warning("Late.")
    assert lines(out)[0]["event"] == "Late."


def test_a_program_that_set_up_nothing_is_given_a_handler(root, capsys):
    root.handlers.clear()
    dress(Settings(log_format="json"))
    logging.getLogger("gaelp_tasks.cli.metrics").info("Metrics are there.")
    assert json.loads(capsys.readouterr().err)["event"] == "Metrics are there."


def test_a_warning_of_python_is_a_line_too(root, out):
    root.handlers[:] = [logging.StreamHandler(out)]
    dress(Settings(log_format="json"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("You are root.", UserWarning, stacklevel=1)
    [line] = lines(out)
    assert (line["logger"], line["level"]) == ("py.warnings", "warning")
    assert "You are root." in line["event"]


def test_text_leaves_such_a_program_as_it_is(root):
    root.handlers.clear()
    dress(Settings())
    assert root.handlers == []
