"""Accepting and relaying: in SQL before anybody is told, in Redis soon, one end each, whatever gets lost."""

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event

from gaelp_tasks.celery_app import app
from gaelp_tasks.db.accepted import Accepted, Outbox, Which
from gaelp_tasks.errors import BudgetExceeded, IdempotencyConflict, InvalidInvocation, NotAllowed, QueueFull
from gaelp_tasks.models.acceptance import Acceptance, Standing, Submission
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.queues import lists
from gaelp_tasks.services import relay as relaying
from gaelp_tasks.services.accepting import Accepting
from gaelp_tasks.services.relay import Paces, Relay
from gaelp_tasks.tasks import accepted as redis_side

pytestmark = pytest.mark.redis

ANNA = Caller(name="anna", tenant="a")
BEN = Caller(name="ben", tenant="b")
QUICK = Paces(look=0.02, watch=0.05, soon=0.05, audit=0.2, settles=0.05, trouble=0.1)


@pytest.fixture(autouse=True)
def empty(broker):
    app.redis.flushdb()


@asynccontextmanager
async def working(*works):
    tasks = [asyncio.ensure_future(work.run()) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def accepting(db, **more):
    return Accepting(app, db, **({"most_waiting": 1000} | more))


def relay(db, **more):
    return Relay(app, db, **({"keep_s": 3600.0, "paces": QUICK} | more))


def asks(prompt="Hi", **more):
    return Submission(prompt=prompt, **more)


def queued():
    """The ids of what waits in Redis, one for each message."""
    places = [app.keys.queue(name) for name in lists("interactive.any")]
    return [redis_side._id_in(text.encode()) for key in places for text in app.redis.lrange(key, 0, -1)]


def answered(*ids, stop_reason="stop"):
    """What a worker stores and tells when it is done."""
    for name in ids:
        result = {"text": "Hello", "stop_reason": stop_reason, "usage": {"completion_tokens": 1}}
        meta = {"status": "SUCCESS", "result": result, "traceback": None, "children": [], "task_id": name}
        app.redis.set(app.backend.get_key_for_task(name).decode(), json.dumps(meta))
        app.redis.xadd(app.keys.history, {"end": json.dumps({"id": name})})


async def until(look, within_s=10.0):
    for _ in range(int(within_s / 0.01)):
        if found := await look():
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {within_s} s")


async def standing(db, name, wanted):
    async def look():
        row = await Accepted(db, None).find(name)
        return row if row is not None and row.standing is wanted else None

    return await until(look)


async def test_what_is_accepted_is_in_sql_and_then_in_redis_under_its_id(db):
    work = accepting(db)
    async with working(work):
        rows = await asyncio.gather(*(work.submit(asks(f"{number}"), ANNA) for number in range(50)))
        for row in rows:
            await standing(db, row.id, Standing.PUBLISHED)
    assert sorted(queued()) == sorted(row.id for row in rows)
    assert app.redis.smembers(app.keys.queues) == {"interactive.any"}


async def test_an_end_is_noted_as_soon_as_it_is_told_and_only_the_first_one(db):
    work = accepting(db)
    async with working(work, relay(db)):
        row = await work.submit(asks(), ANNA)
        await standing(db, row.id, Standing.PUBLISHED)
        answered(row.id)
        ended = await standing(db, row.id, Standing.DONE)
        answered(row.id, stop_reason="cancelled")
        await asyncio.sleep(0.1)
    again = await Accepted(db, "a").find(row.id)
    assert again == ended
    assert json.loads(ended.result)["text"] == "Hello"
    assert (ended.stop_reason, ended.asked) == ("stop", "")


async def test_an_end_that_nobody_heard_of_is_found_by_the_next_look(db):
    work = accepting(db)
    async with working(work):
        row = await work.submit(asks(), ANNA)
        await standing(db, row.id, Standing.PUBLISHED)
    answered(row.id, stop_reason="cancelled")
    app.redis.delete(app.keys.history)
    later = relay(db, now=lambda: datetime.now(UTC) + timedelta(minutes=1))
    async with working(later):
        assert (await standing(db, row.id, Standing.CUT)).stop_reason == "cancelled"


async def test_what_was_not_published_by_its_request_is_published_by_a_relay_once(db):
    work = accepting(db)
    rows = [work._row(asks(str(number)), ANNA, None)[0] for number in range(20)]
    async with work.outbox.writing() as session:
        await work.outbox.add(session, rows, datetime.now(UTC))
    async with working(relay(db), relay(db), relay(db)):
        for row in rows:
            await standing(db, row.id, Standing.PUBLISHED)
    assert sorted(queued()) == sorted(row.id for row in rows)


async def test_an_emptied_redis_loses_nothing_and_nothing_is_there_twice(db):
    work = accepting(db)
    async with working(work, relay(db), relay(db)):
        rows = await asyncio.gather(*(work.submit(asks(str(number)), ANNA) for number in range(20)))
        for row in rows:
            await standing(db, row.id, Standing.PUBLISHED)
        answered(*(row.id for row in rows[:5]))
        for row in rows[:5]:
            await standing(db, row.id, Standing.DONE)
        app.redis.flushdb()

        async def back():
            return len(queued()) >= 15

        await until(back)
        for row in rows[5:]:
            await standing(db, row.id, Standing.PUBLISHED)
        await asyncio.sleep(0.3)
    assert sorted(queued()) == sorted(row.id for row in rows[5:])
    row = await Accepted(db, "a").find(rows[9].id)
    assert row.publications == 2
    assert int(app.redis.get(app.keys.claims(row.id))) == redis_side.CLAIMS_OF_EACH


async def test_what_another_relay_has_published_again_is_not_lost_a_second_time(db):
    """Two have missed it at the same moment."""
    work, now = accepting(db), datetime.now(UTC)
    row, _ = work._row(asks(), ANNA, None)
    missed = {"before": now, "life": "new"}
    async with work.outbox.writing() as session:
        await work.outbox.add(session, [row], now)
        await work.outbox.published(session, [row.id], "old", now=now, next_at=now)
    assert await work.outbox.lost([row.id], now, **missed) == 1
    async with work.outbox.writing() as session:
        await work.outbox.published(session, [row.id], "new", now=datetime.now(UTC), next_at=now)
    assert await work.outbox.lost([row.id], now, **missed) == 0


async def test_a_redis_that_is_away_is_told_of_once_and_once_when_it_is_back(db, monkeypatch, caplog):
    away, asked = True, Counter()

    def gated(name):
        real = getattr(relaying, name)

        def ask(*given):
            asked[name] += 1
            if away:
                raise ConnectionRefusedError("nobody is there")
            return real(*given)

        return ask

    for name in ("life_of", "open_line"):
        monkeypatch.setattr(relaying, name, gated(name))
    monkeypatch.setattr(relaying, "AWAY", (*relaying.AWAY, ConnectionRefusedError))
    caplog.set_level("INFO", relaying.__name__)

    def lines():
        return [one.getMessage() for one in caplog.records if one.name == relaying.__name__]

    async with working(relay(db)):
        await until(lambda: _true(min(asked["life_of"], asked["open_line"]) > 3))
        assert lines() == ["The relay waits for Redis: nobody is there"]
        away = False
        await until(lambda: _true(len(lines()) > 1))
        assert lines()[1:] == ["The relay has Redis again."]


async def _true(look):
    return look


async def test_one_message_that_is_gone_is_missed_and_what_runs_or_waits_is_not(db):
    work = accepting(db)
    async with working(work, relay(db)):
        rows = [await work.submit(asks(str(number)), ANNA) for number in range(4)]
        for row in rows:
            await standing(db, row.id, Standing.PUBLISHED)
        [place] = [key for key in map(app.keys.queue, lists("interactive.any")) if app.redis.exists(key)]
        _gone, held, parked = (app.redis.rpop(place) for _ in range(3))
        app.redis.hset(app.keys.unacked, "w|1", "{}\n" + held)
        app.redis.zadd(app.keys.parked, {rows[2].id: 1e15})
        app.redis.hset(app.keys.parked_messages, rows[2].id, "{}\n" + parked)

        async def back():
            return rows[0].id in queued()

        await until(back)
        await asyncio.sleep(0.6)
    assert sorted(queued()) == sorted([rows[0].id, rows[3].id])


async def test_a_key_gives_the_same_invocation_again_and_another_body_a_conflict(db):
    work = accepting(db)
    async with working(work):
        first, same = await asyncio.gather(
            work.submit(asks(), ANNA, key="k"), work.submit(asks(), ANNA, key="k")
        )
        third = await work.submit(asks(idempotency_key="k"), ANNA)
        assert first.id == same.id == third.id
        with pytest.raises(IdempotencyConflict):
            await work.submit(asks("Else"), ANNA, key="k")
        with pytest.raises(IdempotencyConflict):
            await work.submit(asks(agent_id=7), ANNA, key="k")
        with pytest.raises(IdempotencyConflict, match="header"):
            await work.submit(asks(idempotency_key="k"), ANNA, key="other")
        assert (await work.submit(asks("Else"), BEN, key="k")).id != first.id
        await standing(db, first.id, Standing.PUBLISHED)
    assert queued().count(first.id) == 1


async def test_two_processes_that_are_given_one_key_at_the_same_time_accept_one(db):
    one, other = accepting(db), accepting(db)
    async with working(one, other):
        rows = await asyncio.gather(*(work.submit(asks(), ANNA, key="k") for work in (one, other) * 10))
        assert len({row.id for row in rows}) == 1
        await standing(db, rows[0].id, Standing.PUBLISHED)
    assert len(queued()) == 1
    assert len(await Accepted(db, "a").listed(most=100)) == 1


class Poor:
    """Takes what agent 1 asks for, and nothing of others."""

    def __init__(self):
        self.settled = []

    async def payers(self, session, rows):
        return {row.id for row in rows if row.agent_id}

    async def hold(self, session, row):
        if row.agent_id != 1:
            raise BudgetExceeded("Nothing is left.")
        return row

    async def refused(self, session):
        pass

    async def settle(self, session, ended):
        self.settled += [(row.id, end.standing) for row, end in ended]


async def test_in_one_transaction_each_fails_alone_and_leaves_no_row(db):
    work = accepting(db, purse=Poor())
    async with working(work):
        told = await asyncio.gather(
            *(work.submit(asks(agent_id=agent), ANNA) for agent in (1, 2, None, 1, 2)), return_exceptions=True
        )
    assert [type(one) for one in told] == [Acceptance, BudgetExceeded, Acceptance, Acceptance, BudgetExceeded]
    assert len(await Accepted(db, "a").listed(most=100)) == 3


async def test_an_end_is_paid_for_once_whoever_notes_it(db):
    purse = Poor()
    work = accepting(db, purse=purse)
    async with working(work, relay(db, purse=purse), relay(db, purse=purse)):
        rows = [await work.submit(asks(agent_id=1), ANNA) for _ in range(20)]
        answered(*(row.id for row in rows))
        for row in rows:
            await standing(db, row.id, Standing.DONE)
    assert sorted(purse.settled) == sorted((row.id, Standing.DONE) for row in rows)


async def test_only_so_many_may_wait(db):
    work = accepting(db, most_waiting=3)
    async with working(work):
        told = await asyncio.gather(*(work.submit(asks(), ANNA) for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in told].count(QueueFull) == 2
    assert len(await Accepted(db, None).listed(most=100)) == 3


async def test_a_tenant_is_the_callers_own_and_only_an_admin_names_another(db):
    work = accepting(db)
    async with working(work):
        row = await work.submit(asks(), ANNA)
        assert (row.tenant, json.loads(row.asked)["tenant"]) == ("a", "a")
        with pytest.raises(NotAllowed):
            await work.submit(asks(tenant="b"), ANNA)
        admin = Caller(name="root", role=Role.ADMIN)
        assert (await work.submit(asks(tenant="b"), admin)).tenant == "b"
        assert "tenant" not in json.loads((await work.submit(asks(), admin)).asked)
    assert [one.id for one in await Accepted(db, "a").listed(most=9)] == [row.id]
    assert await Accepted(db, "b").find(row.id) is None
    assert await Accepted(db, "b").cancel(row.id, datetime.now(UTC)) is None


async def test_what_delay_would_refuse_is_refused_before_anything_is_kept(db):
    work = accepting(db)
    async with working(work):
        for wrong in (asks(agent="nobody"), asks(parser="nobody")):
            with pytest.raises(InvalidInvocation):
                await work.submit(wrong, ANNA)
    assert await Accepted(db, None).listed(most=9) == []


async def test_a_long_prompt_lies_beside_its_message_and_is_refused_like_a_short_one(db):
    work, long = accepting(db), "x" * 200_000
    async with working(work):
        row = await work.submit(asks(long), ANNA)
        await standing(db, row.id, Standing.PUBLISHED)
        with pytest.raises(InvalidInvocation):
            await work.submit(asks(long, agent="nobody"), ANNA)
    assert queued() == [row.id]
    assert len(list(app.redis.scan_iter(match=app.keys.attachment(row.id, "*")))) == 1


async def test_what_is_cancelled_before_it_is_published_never_is(db):
    work = accepting(db)
    row = work._row(asks(), ANNA, None)[0]
    async with work.outbox.writing() as session:
        await work.outbox.add(session, [row], datetime.now(UTC))
    await Accepted(db, "a").cancel(row.id, datetime.now(UTC))
    async with working(relay(db)):
        assert (await standing(db, row.id, Standing.CUT)).stop_reason == "cancelled"
    assert queued() == []
    assert app.redis.get(app.keys.cancel(row.id)) == "user"


async def test_a_list_tells_those_that_are_meant_and_old_ones_go(db):
    work = accepting(db)
    async with working(work, relay(db)):
        rows = [await work.submit(asks(tier=tier), ANNA) for tier in ("batch", "interactive", "batch")]
        for row in rows:
            await standing(db, row.id, Standing.PUBLISHED)
        answered(rows[0].id)
        await standing(db, rows[0].id, Standing.DONE)
    mine = Accepted(db, "a")
    assert [row.id for row in await mine.listed(Which(tier="batch"), most=9)] == [rows[2].id, rows[0].id]
    assert [row.id for row in await mine.listed(Which(standing="done"), most=9)] == [rows[0].id]
    assert await mine.listed(Which(standing="done"), most=9, skip=1) == []
    assert await Outbox(db).prune(datetime.now(UTC)) == 1
    assert len(await mine.listed(most=9)) == 2


async def test_what_is_over_can_be_purged_and_what_is_not_stays(db):
    work = accepting(db)
    async with working(work, relay(db)):
        rows = [await work.submit(asks(), ANNA) for _ in range(2)]
        answered(rows[0].id)
        await standing(db, rows[0].id, Standing.DONE)
    ids = {row.id for row in rows}
    assert await Accepted(db, "b").purge(ids) == (set(), set())
    assert await Accepted(db, "a").purge(ids) == ({rows[0].id}, {rows[1].id})
    assert await Accepted(db, None).find(rows[0].id) is None


async def test_what_is_open_is_found_by_its_own_index_however_many_are_kept(db):
    outbox, now = Outbox(db), datetime.now(UTC)
    asked = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("SELECT"):
            asked.append((statement, parameters))

    async with db.reading() as session:
        engine = session.get_bind()
        event.listen(engine, "before_cursor_execute", note)
        await outbox.waiting(session)
        await outbox.is_due(now)
        await outbox.in_redis(before=now, life="x")
        event.remove(engine, "before_cursor_execute", note)
        connection = await session.connection()
        is_postgres = engine.dialect.name == "postgresql"
        if is_postgres:
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        explain = "EXPLAIN " if is_postgres else "EXPLAIN QUERY PLAN "
        plans = [str((await connection.exec_driver_sql(explain + sql, given)).all()) for sql, given in asked]
    assert len(plans) == 3
    assert all("ix_accepted_open" in plan for plan in plans), plans
