"""What is said of a run that goes back to its queue.

Private: ExceptionInfo and log_policy_reject of celery.app.trace.
"""

import logging

import pytest
from celery import Celery
from celery.app import trace
from celery.exceptions import Ignore, Reject

from gaelp_workers.refusals import Brief, give_back_quietly


@pytest.fixture
def quiet(monkeypatch):
    for name in ("ExceptionInfo", "log_policy_reject"):
        monkeypatch.setattr(trace, name, getattr(trace, name))  # as it was, afterwards
    give_back_quietly()


@pytest.fixture
def app():
    with Celery("plain", broker="memory://", backend="cache+memory://") as made:
        yield made


def traced(app, error):
    """What Celery makes of a task that raises."""

    @app.task(name="raises", shared=False)  # else every app that a later test makes has it, too
    def raises():
        raise error

    run = trace.build_tracer("raises", raises, app=app)
    return run("an-id", (), {}, {"id": "an-id", "delivery_info": {}})


def test_a_message_that_goes_back_is_one_plain_line(quiet, app, caplog):
    """Celery's own words: a warning with a traceback."""
    with caplog.at_level(logging.INFO, logger="celery.app.trace"):
        traced(app, Reject("stopped: preemption", requeue=True))
    [line] = [record for record in caplog.records if "preemption" in record.getMessage()]
    assert line.levelno == logging.INFO
    assert not line.exc_info


@pytest.mark.parametrize("error", [Reject("r"), Ignore()])
def test_no_frame_is_copied_of_what_is_no_error(error):
    try:
        raise error
    except type(error):
        told = Brief()
    assert (told.type, told.exception, told.tb, told.traceback) == (type(error), error, None, "")


def test_of_an_error_everything_is_told(quiet, app, caplog):
    traced(app, ValueError("a bug"))
    [line] = [record for record in caplog.records if "a bug" in record.getMessage()]
    assert line.levelno == logging.ERROR
    assert line.exc_info
    assert "a bug" in str(line.exc_info)
