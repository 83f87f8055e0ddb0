"""A request under an Idempotency-Key whose replica died: done by the next one, or shown, but never twice."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gaelp_tasks.api import replays
from gaelp_tasks.db.idempotency import Begun, IdempotentRequests, Turn, note_made
from gaelp_tasks.errors import Conflict, DatabaseUnavailable
from gaelp_tasks.models.caller import Caller, Role
from support.api import api_client

NOW = datetime(2026, 11, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=20)
TURN = {"until": NOW + timedelta(seconds=15)}
NEXT = {"until": LATER + timedelta(seconds=15)}
AGENTS = "/api/v1/agents"
AGENT = {"name": "bot", "type": "simulation"}
KEYED = {"Idempotency-Key": "k"}


@pytest.fixture
async def both(broker, sql_url):
    """The API on SQLite and on PostgreSQL."""
    async with api_client(sql_url) as made:
        yield made


@pytest.fixture
def requests(kept_db):
    return IdempotentRequests(kept_db, Caller(name="ann"))


async def writes(db, made=""):
    """A transaction of a request."""
    async with db.writing() as session:
        await session.execute(text("SELECT 1"))
        if made:
            note_made(session, made)


async def test_a_key_is_free_again_once_nobody_renews_its_turn(requests):
    first = await requests.begin("k", "d", NOW, **TURN)
    assert first == Turn("k", 1, "")
    assert isinstance(await requests.begin("k", "d", NOW, **TURN), Begun)
    assert await requests.renew(first, LATER + timedelta(seconds=1))
    assert isinstance(await requests.begin("k", "d", LATER, **NEXT), Begun), "it lives"
    after = LATER + timedelta(seconds=2)
    other = await requests.begin("k", "another", after, until=after)
    assert isinstance(other, Begun), "another request has no business under it"
    assert await requests.begin("k", "d", after, until=after) == Turn("k", 2, "")


async def test_of_many_that_come_again_at_once_one_has_the_turn(requests):
    await requests.begin("k", "d", NOW, **TURN)
    begun = await asyncio.gather(*(requests.begin("k", "d", LATER, **NEXT) for _ in range(8)))
    assert [one for one in begun if isinstance(one, Turn)] == [Turn("k", 2, "")]


async def test_who_was_overtaken_changes_nothing_any_more(kept_db, requests):
    slow = await requests.begin("k", "d", NOW, **TURN)
    fast = await requests.begin("k", "d", LATER, **NEXT)
    with requests.doing(slow), pytest.raises(Conflict, match="took too long"):
        await writes(kept_db)
    assert not await requests.renew(slow, LATER)
    await requests.end(slow, 201, [], b"slow")
    await requests.drop(slow)
    with requests.doing(fast):
        await writes(kept_db)
    await requests.end(fast, 201, [], b"fast")
    await requests.drop(fast)
    kept = await requests.begin("k", "d", LATER, **NEXT)
    assert (kept.status, kept.body, kept.done) == (201, b"fast", True)


async def test_the_turn_is_not_given_on_while_a_transaction_of_the_first_commits(kept_db, requests):
    slow = await requests.begin("k", "d", NOW, **TURN)

    async def overtake():
        return await requests.begin("k", "d", LATER, **NEXT)

    made = "agents/7"
    try:
        with requests.doing(slow):
            async with kept_db.writing() as session:
                note_made(session, made)
                again = asyncio.create_task(overtake())
                await session.execute(text("SELECT 1"))
    except Conflict:
        made = ""
    assert await again == Turn("k", 2, made), "who comes next does it just where the first has not"


async def test_what_was_done_is_not_done_again(kept_db, requests):
    first = await requests.begin("k", "d", NOW, **TURN)
    with requests.doing(first):
        await writes(kept_db)
    left = await requests.begin("k", "d", LATER, **NEXT)
    assert (left.done, left.is_left(LATER), left.is_left(NOW)) == (True, True, False)
    made = await requests.begin("other", "d", NOW, **TURN)
    with requests.doing(made):
        await writes(kept_db, "agents/7")
        await writes(kept_db)
    assert await requests.begin("other", "d", LATER, **NEXT) == Turn("other", 2, "agents/7")


async def test_what_is_written_aside_or_rolled_back_is_not_its_doing(kept_db, requests):
    first = await requests.begin("k", "d", NOW, **TURN)
    with requests.doing(first):
        async with kept_db.writing(aside=True) as session:
            await session.execute(text("SELECT 1"))
        with pytest.raises(Conflict):
            async with kept_db.writing():
                raise Conflict("no")
    await writes(kept_db, "agents/9")  # of somebody else
    assert await requests.begin("k", "d", LATER, **NEXT) == Turn("k", 2, "")


# --- over HTTP ----------------------------------------------------------------------------


async def time_passes(api):
    """Nobody has renewed a turn for long."""
    async with api.state.db.writing() as session:
        await session.execute(text("UPDATE idempotent_requests SET until = begun_at"))


@pytest.fixture
def losing(monkeypatch):
    """Replicas die before they keep an answer, until this is undone."""

    async def lose(*_given):
        raise DatabaseUnavailable("It has died.")

    with monkeypatch.context() as broken:
        broken.setattr(IdempotentRequests, "end", lose)
        yield broken


MAKING = {
    AGENTS: AGENT,
    f"{AGENTS}/1/deployments": {"replicas": 2},
    "/api/v1/jobs": {"agent_id": 1, "name": "train"},
    "/api/v1/schedules": {"name": "night/ly", "cron": "0 2 * * *", "kwargs": {"prompt": "Hi"}},
    "/api/v1/users": {"name": "bea"},
}


async def test_whoever_asks_again_is_shown_what_was_made_and_it_is_made_once(both, losing):
    admin = both.as_(Role.ADMIN)
    first, again, kept = {}, {}, {}
    for place, body in MAKING.items():
        keyed = {"Idempotency-Key": place}
        first[place] = await admin.post(place, json=body, headers=keyed)
        assert first[place].status_code == 201, first[place].text
        told = await admin.post(place, json=body, headers=keyed)
        assert (told.status_code, "few seconds" in told.json()["detail"]) == (409, True)
    losing.undo()
    await time_passes(both)
    for place, body in MAKING.items():
        keyed = {"Idempotency-Key": place}
        again[place], kept[place] = [await admin.post(place, json=body, headers=keyed) for _ in range(2)]
        for answer in (again[place], kept[place]):
            assert answer.status_code == 201, answer.text
            assert answer.headers["Idempotency-Replayed"] == "true"
            assert answer.json() == first[place].json()
        assert len((await admin.get(place)).json()) == 1


async def test_what_has_made_nothing_that_could_be_shown_is_said_to_be_done(api, losing):
    user = api.as_()
    await user.post(AGENTS, json=AGENT)
    sent = {"json": {"reward": 1.0}, "headers": KEYED}
    assert (await user.post(f"{AGENTS}/1/metrics", **sent)).status_code == 201
    losing.undo()
    await time_passes(api)
    told = await user.post(f"{AGENTS}/1/metrics", **sent)
    assert (told.status_code, "was done" in told.json()["detail"]) == (409, True)
    assert len((await user.get(f"{AGENTS}/1/metrics")).json()) == 1


async def test_what_was_made_and_is_gone_is_not_made_again(api, losing):
    admin = api.as_(Role.ADMIN)
    made = await admin.post("/api/v1/users", json={"name": "bea"}, headers=KEYED)
    await admin.delete(f"/api/v1/users/{made.json()['id']}")
    losing.undo()
    for _ in range(2):
        await time_passes(api)
        assert (await admin.post("/api/v1/users", json={"name": "bea"}, headers=KEYED)).status_code == 404
    assert (await admin.get("/api/v1/users")).json() == []


class Slow:
    """A route that waits until it is let go, then changes something, or dies."""

    def __init__(self, api):
        self.begun, self.go, self.times = asyncio.Event(), asyncio.Event(), 0
        db = api.state.db

        @api.made.post("/api/v1/slow", status_code=201)
        async def slow():
            self.times += 1
            mine = self.times
            if mine == 1:
                self.begun.set()
                await self.go.wait()
            async with db.writing() as session:
                await session.execute(text("DELETE FROM identity"))
            return {"time": mine}


async def test_a_request_that_died_before_it_did_anything_is_done_by_the_next(api):
    slow, user = Slow(api), api.as_()
    first = asyncio.create_task(user.post("/api/v1/slow", headers=KEYED))
    await slow.begun.wait()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await user.post("/api/v1/slow", headers=KEYED)).status_code == 409
    await time_passes(api)
    told = [await user.post("/api/v1/slow", headers=KEYED) for _ in range(2)]
    assert [(answer.status_code, answer.json()) for answer in told] == [(201, {"time": 2})] * 2


async def test_a_slow_first_one_that_lost_its_turn_is_refused_and_leaves_the_answer_alone(api):
    slow, user = Slow(api), api.as_()
    first = asyncio.create_task(user.post("/api/v1/slow", headers=KEYED))
    await slow.begun.wait()
    await time_passes(api)
    second = await user.post("/api/v1/slow", headers=KEYED)
    assert (second.status_code, second.json()) == (201, {"time": 2})
    slow.go.set()
    refused = await first
    assert (refused.status_code, "too long" in refused.json()["detail"]) == (409, True)
    assert (await user.post("/api/v1/slow", headers=KEYED)).json() == {"time": 2}


async def test_a_slow_one_that_lives_keeps_its_turn(api, monkeypatch):
    monkeypatch.setattr(replays, "RENEW_S", 0.01)
    slow, user, renewed = Slow(api), api.as_(), asyncio.Event()
    renew = IdempotentRequests.renew

    async def tell(*given):
        renewed.clear()
        done = await renew(*given)
        renewed.set()
        return done

    monkeypatch.setattr(IdempotentRequests, "renew", tell)
    first = asyncio.create_task(user.post("/api/v1/slow", headers=KEYED))
    await slow.begun.wait()
    await time_passes(api)
    renewed.clear()
    await renewed.wait()
    assert (await user.post("/api/v1/slow", headers=KEYED)).status_code == 409
    slow.go.set()
    assert (await first).json() == {"time": 1}
    assert json.loads((await user.post("/api/v1/slow", headers=KEYED)).content) == {"time": 1}
