"""The error tree: what each error means for an invocation, and that Celery can carry it to the caller."""

import inspect
import json

import pytest
from celery.backends.base import Backend
from kombu.utils.json import dumps

from gaelp_tasks import errors
from gaelp_tasks.celery_app import app
from gaelp_tasks.errors import GaelpError, NodeBusy, Verdict

TREE = sorted(
    (cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, GaelpError)),
    key=lambda cls: cls.__name__,
)
DRAWN = {
    words[0]: words[1]
    for line in errors.__doc__.splitlines()
    if (words := line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()) and len(words) > 1
    if words[1] in {"retry", "snooze", "final"}
}


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_is_exported_and_has_the_verdict_drawn_in_the_tree(cls):
    assert cls.__name__ in errors.__all__
    if cls in {GaelpError, errors.NodeError}:
        assert cls.__name__ not in DRAWN
    else:
        assert cls.verdict == DRAWN[cls.__name__]


def test_nothing_is_drawn_that_does_not_exist():
    assert {cls.__name__ for cls in TREE} >= DRAWN.keys()


def test_what_is_not_told_otherwise_is_final():
    assert GaelpError.verdict is Verdict.FINAL


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_comes_back_from_its_arguments(cls):
    error = cls("The node is full.")
    again = type(error)(*error.args)
    assert (type(again), str(again)) == (cls, "The node is full.")


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_comes_back_as_itself_from_celerys_result_record(cls):
    backend = Backend(app=app, url="")
    record = json.loads(dumps(backend.prepare_exception(cls("The node is full."), serializer="json")))
    again = backend.exception_to_python(record)
    assert (type(again), str(again)) == (cls, "The node is full.")


def test_a_busy_node_tells_its_wish_and_none_where_it_has_none():
    assert NodeBusy("full", node="http://n", retry_after_s=3.0).retry_after_s == 3.0
    assert NodeBusy("full").retry_after_s is None
    assert NodeBusy("full", node="http://n").node == "http://n"
    assert str(NodeBusy("full", node="http://n")) == "full"


def test_bad_input_is_a_value_error_and_a_dead_broker_a_connection_error():
    assert issubclass(errors.InvalidInvocation, ValueError)
    assert issubclass(errors.BrokerUnavailable, ConnectionError)
