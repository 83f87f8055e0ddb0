"""Who sends what nobody here asks for listens for no result, so that nothing of it stays in memory."""

import json
import threading

import pytest
from celery.states import SUCCESS

from support.elsewhere import elsewhere

pytestmark = pytest.mark.redis

TASK = "gaelp.invoke_agent"


@pytest.fixture
def there(broker):
    with elsewhere(broker.url) as place:
        yield place.app


def listens_for(there, sent):
    return there.backend.get_key_for_task(sent.id) in there.backend.result_consumer.subscribed_to


def test_a_call_has_a_listener_unless_it_is_sent_unheard(there):
    with there.unheard():
        with there.unheard():
            within = there.send_task(TASK, ["a"], queue="batch")
        after = there.send_task(TASK, ["b"], queue="batch")
    assert not listens_for(there, within)
    heard = there.send_task(TASK, ["c"], queue="batch")
    assert listens_for(there, heard)
    assert not listens_for(there, after)


def test_other_threads_are_heard_meanwhile(there):
    found = []

    def call():
        found.append(listens_for(there, there.send_task(TASK, ["a"], queue="batch")))

    with there.unheard():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert found == [True]


def test_the_result_of_an_unheard_call_can_still_be_waited_for(there):
    with there.unheard():
        sent = there.send_task(TASK, ["a"], queue="batch")
    record = {"task_id": sent.id, "status": SUCCESS, "result": 42, "traceback": None, "children": []}
    there.redis.set(there.backend.get_key_for_task(sent.id), json.dumps(record))
    assert sent.get(timeout=10) == 42
