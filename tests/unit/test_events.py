"""What is told of an agent, and what becomes of it where nobody can hear it."""

import asyncio
import json
import math

import fakeredis
import pytest
from pydantic import ValidationError

from gaelp_tasks.connections import lost
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.event import MOST_BYTES, AgentEvent, EventKind
from gaelp_tasks.services.telling import tell, tell_now

KEYS = Keys("x:")


def event(**data):
    return AgentEvent(event=EventKind.METRICS, agent_id=7, at=12.5, data=data)


class Gone:
    """A Redis that does not answer."""

    def publish(self, channel, text):
        raise lost[0]


def test_an_event_is_json_that_says_what_when_and_of_whom():
    assert json.loads(event(reward=0.5).model_dump_json()) == {
        "event": "metrics",
        "agent_id": 7,
        "at": 12.5,
        "data": {"reward": 0.5},
    }


@pytest.mark.parametrize(
    "wrong", [{"agent_id": 0}, {"data": {"reward": math.nan}}, {"event": "gossip"}, {"colour": "red"}]
)
def test_what_nobody_could_read_is_no_event(wrong):
    with pytest.raises(ValidationError):
        AgentEvent(**({"event": "metrics", "agent_id": 1, "data": {}} | wrong))


def test_it_is_told_on_the_channel_of_its_agent():
    redis = fakeredis.FakeStrictRedis(decode_responses=True)
    with redis.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe("x:gaelp:told:7")
        ear.get_message(timeout=1)
        tell_now(redis, KEYS, event(step=1))
        assert AgentEvent.model_validate_json(ear.get_message(timeout=1)["data"]) == event(step=1)


def test_a_redis_that_is_away_fails_nobody():
    tell_now(Gone(), KEYS, event())
    asyncio.run(tell(Gone(), KEYS, event()))


def test_what_is_too_large_is_not_told(caplog):
    redis = fakeredis.FakeStrictRedis(decode_responses=True)
    with redis.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe(KEYS.told(7))
        ear.get_message(timeout=1)
        tell_now(redis, KEYS, event(text="x" * MOST_BYTES))
        tell_now(redis, KEYS, event(step=2))
        assert json.loads(ear.get_message(timeout=1)["data"])["data"] == {"step": 2}
    assert "untold" in caplog.text
