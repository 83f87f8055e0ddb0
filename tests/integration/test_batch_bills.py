"""Batches of who has a budget: held before the first line runs, settled once by what the lines have used."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from gaelp_tasks.db import batch_bills, batch_upkeep
from gaelp_tasks.db.batches import Batches
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.ledger import wrong_balances
from gaelp_tasks.models.batch import BatchState, LineOutcome
from gaelp_tasks.models.batch_work import Ended, Reach
from gaelp_tasks.models.caller import Role
from gaelp_tasks.models.tariff import Tariff
from gaelp_tasks.services.batch_bills import bounded, settle
from gaelp_tasks.services.forsaken import Found, give_back
from gaelp_tasks.settings import Settings
from gaelp_tasks.tasks.batch_lines import verdict
from gaelp_tasks.tasks.conducting import Conductor
from support.api import api_client
from support.conducting import Node
from support.scripted_server import Reply, Request, ScriptedServer

pytestmark = [pytest.mark.redis]

BATCHES = "/api/v1/batches"
NOW = datetime.now(UTC)
UNIT = 1_000_000
EACH = 2 + 8 + 2000  #: of ten tokens read and ten told, and a cold load


def lines(*told):
    return "".join(json.dumps(one) + "\n" for one in told)


def prompts(count, **more):
    return lines(*({"custom_id": str(n), "prompt": "Why?", **more} for n in range(count)))


def answer(*, told=10, read=10, stop_reason="stop", **more):
    usage = {"prompt_tokens": read, "completion_tokens": told}
    given = {
        "id": "a", "agent": "chat", "model": "m", "node": "n", "tier": "batch", "priority": 5, "text": "t",
        "attempts": 1, "stop_reason": stop_reason, "usage": usage, "timings": {"load_s": 1.0, "total_s": 2.0},
    }  # fmt: skip
    return json.dumps(given | more)


async def budget(api, micro, user="user"):
    given = {"limit_micro": micro}
    assert (await api.as_(Role.ADMIN).put(f"/api/v1/budgets/user/{user}", json=given)).status_code == 200


async def standing(api, user="user"):
    one = (await api.as_().get(f"/api/v1/budgets/user/{user}")).json()
    return one["available_micro"], one["held_micro"], one["spent_micro"]


async def submit(api, content, **how):
    return await api.as_().post(BATCHES, content=content, **how)


async def ended(api, batch_id, *told, to=BatchState.COMPLETED):
    """These are the ends of its lines, and then it is over."""
    rows = Batches(api.state.db, "")
    await rows.take_over(batch_id, "me", ticket=0, now=NOW, died=False)
    await rows.progress(batch_id, "me", told, Reach(), now=NOW)
    between = {BatchState.COMPLETED: BatchState.FINALIZING, BatchState.CANCELLED: BatchState.CANCELLING}
    if to in between:
        await rows.move(batch_id, between[to], now=NOW)
    assert await rows.move(batch_id, to, now=NOW) is not None


async def settled(api):
    return await settle(api.state.db, api.settings)


async def kinds(api):
    found = (await api.as_().get("/api/v1/costs", params={"by": ["kind"]})).json()
    return {one["kind"]: (one["quantity"], one["amount_micro"]) for one in found}


async def test_a_batch_is_held_at_once_and_settled_once_by_what_its_lines_have_used(api):
    await budget(api, UNIT)
    made = await submit(api, prompts(3, options={"num_predict": 100}) + "{\n" + prompts(1))
    assert made.status_code == 201, made.text
    facts = made.json()
    assert facts["counts"]["invalid"] == 2, "a broken line, and a custom_id that was there before"
    each = -(-(4 + 21 + 2048 + 16) * 2 // 10) + 80 + 2000
    assert await standing(api) == (UNIT - 3 * each, 3 * each, 0)
    done = [Ended(n, LineOutcome.DONE, result=answer()) for n in (1, 2)]
    failed = Ended(3, LineOutcome.FAILED, "NodeFailed", "It broke.")
    await ended(api, facts["id"], *done, failed)
    assert await settled(api) == 1
    assert await settled(api) == 0
    assert await standing(api) == (UNIT - 2 * EACH, 0, 2 * EACH)
    assert await kinds(api) == {
        "prompt_tokens": (20, 4), "completion_tokens": (20, 16), "cold_loads": (2, 4000),
    }  # fmt: skip
    [line, *_] = (await api.as_().get("/api/v1/costs/lines")).json()
    assert line["key"].startswith(f"batch:{facts['id']}@")
    assert line["user"] == "user"
    async with api.state.db.reading() as session:
        assert await wrong_balances(session) == []


async def test_every_line_carries_what_is_paid_for(api):
    await budget(api, UNIT)
    told = lines(
        {"custom_id": "plain", "prompt": "Why?"},
        {"custom_id": "short", "prompt": "Why?", "options": {"num_predict": 7}},
        {"custom_id": "own", "prompt": "Why?", "most_tokens": 9},
        {
            "custom_id": "theirs",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 5},
        },
        {"custom_id": "vectors", "input": ["one", "two"]},
    )
    facts = (await submit(api, told)).json()
    rows = Batches(api.state.db, "")
    asked = [one async for some in rows.asked(facts["id"], range(1, 6)) for one in some]
    assert [json.loads(one.arguments).get("most_tokens") for one in asked] == [4096, 7, 9, 5, None]


async def test_without_a_budget_nothing_is_held_and_no_line_has_a_bound(api):
    facts = (await submit(api, prompts(1))).json()
    rows = Batches(api.state.db, "")
    [[asked]] = [some async for some in rows.asked(facts["id"], [1])]
    assert "most_tokens" not in json.loads(asked.arguments)
    held = await rows.take_over(facts["id"], "me", ticket=0, now=NOW, died=False)
    assert not held.is_paid
    await ended(api, facts["id"], Ended(1, LineOutcome.DONE, result=answer()))
    assert await settled(api) == 0
    assert await kinds(api) == {}
    assert (await api.as_().delete(f"{BATCHES}/{facts['id']}")).status_code == 204


async def test_what_does_not_fit_is_refused_with_what_it_would_need_and_fits_with_shorter_answers(api):
    await budget(api, 10_000)
    keyed = {"Idempotency-Key": "k"}
    refused = await submit(api, prompts(3), headers=keyed)
    assert refused.status_code == 402
    assert refused.json()["detail"] == (
        "The budget of user user has 0.01 left, and this may cost up to 0.017073: a smaller max_tokens or "
        "num_predict in its lines, or fewer lines, would lower that."
    )
    [failed] = (await api.as_().get(BATCHES)).json()
    assert (failed["state"], failed["trouble"]) == ("failed", refused.json()["detail"])
    assert await standing(api) == (10_000, 0, 0)
    assert await settled(api) == 0
    fits = await submit(api, prompts(3, options={"num_predict": 10}), headers=keyed)
    assert (fits.status_code, fits.json()["state"]) == (201, "in_progress")
    assert (await standing(api))[1] > 6000
    again = await submit(api, prompts(3), headers=keyed)
    assert again.json()["id"] == fits.json()["id"]


async def test_more_than_any_budget_holds_is_refused(broker, api_sql):
    dear = Tariff(completion_micro_per_million=10**12)
    async with api_client(api_sql, tariff=dear) as api:
        await budget(api, 2**53 - 1)
        refused = await submit(api, prompts(3, most_tokens=2**52))
        assert refused.status_code == 402
        assert "as no budget has" in refused.json()["detail"]


async def test_a_budget_that_is_given_while_the_file_is_read_is_not_passed_by(api):
    async def slow():
        yield prompts(1).encode()
        await budget(api, 0)

    refused = await submit(api, slow())
    assert refused.status_code == 409
    assert "submit it again" in refused.json()["detail"]
    [failed] = (await api.as_().get(BATCHES)).json()
    assert failed["state"] == "failed"


async def test_what_nodes_report_counts_up_to_the_bound_of_its_line(api):
    await budget(api, UNIT)
    told = prompts(3, options={"num_predict": 10}) + lines({"custom_id": "v", "input": ["ab"]})
    facts = (await submit(api, told)).json()
    _, held, _ = await standing(api)
    vectors = {
        "id": "v", "model": "m", "node": "n", "embeddings": [[1.0]], "tier": "batch", "priority": 5,
        "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}, "timings": {"load_s": 9.0},
        "attempts": 1,
    }  # fmt: skip
    await ended(
        api,
        facts["id"],
        Ended(1, LineOutcome.DONE, result=answer(told=10**12, read=10**12)),
        Ended(2, LineOutcome.DONE, result=answer(told=10**12, read=10**12, cached=True)),
        Ended(3, LineOutcome.FAILED, "budget", "It was cut.", result="no result at all"),
        Ended(4, LineOutcome.DONE, result=json.dumps(vectors)),
    )
    assert await settled(api) == 1
    prompt = 4 + 19 + 2048 + 16
    assert await kinds(api) == {
        "prompt_tokens": (prompt + 18, -(-prompt * 2 // 10) + 4),
        "completion_tokens": (10, 8),
        "cold_loads": (2, 4000),
    }
    assert 0 < (await standing(api))[2] < held


async def test_a_cancelled_batch_pays_what_its_lines_had_told_and_what_was_lost_is_shown(api):
    await budget(api, UNIT)
    facts = (await submit(api, prompts(2))).json()
    cut = Ended(1, LineOutcome.CANCELLED, result=answer(stop_reason="cancelled"), wasted_tokens=33)
    rest = Ended(2, LineOutcome.CANCELLED, why="It was cancelled.")
    await ended(api, facts["id"], cut, rest, to=BatchState.CANCELLED)
    assert await settled(api) == 1
    told = await kinds(api)
    assert (told["cancelled"], told["wasted"]) == ((10, 8), (33, 0))
    assert await standing(api) == (UNIT - EACH, 0, EACH)


async def test_tokens_that_a_line_told_for_nothing_are_in_the_ledger(api):
    await budget(api, UNIT)
    facts = (await submit(api, prompts(2))).json()
    node, rows = Node(), Batches(api.state.db, "")

    async def work(_):
        """One of both lines was lost and started over; others have told 33 tokens of it for nothing."""
        for name in node.queue[:1]:
            node.claims[name] = 33
        node.work(2)
        for record in node.records.values():
            record["result"] = json.loads(answer()) if record["result"] else None

    conductor = Conductor(
        facts["id"], name="me", batches=rows, lines=node, verdict=verdict, window=2, most_deaths=3,
        leave=lambda: None, sleep=work,
    )  # fmt: skip
    assert await conductor.run(ticket=0, died=False) is None
    assert await settled(api) == 1
    assert await kinds(api) == {
        "prompt_tokens": (20, 4), "completion_tokens": (20, 16), "cold_loads": (2, 4000), "wasted": (33, 0),
    }  # fmt: skip


async def test_prices_are_those_of_the_api_and_more_than_what_is_held_is_not_paid(broker, api_sql):
    async with api_client(api_sql) as api:
        await budget(api, UNIT)
        facts = (await submit(api, prompts(1, options={"num_predict": 10}))).json()
        _, held, _ = await standing(api)
    dearer = Tariff(cold_load_micro=UNIT)
    async with api_client(api_sql, tariff=dearer) as api:
        await ended(api, facts["id"], Ended(1, LineOutcome.DONE, result=answer()))
        assert await settled(api) == 1
        assert await standing(api) == (UNIT - held, 0, held)
        assert (await kinds(api))["over_bound"][1] == held - UNIT - 10


async def test_what_is_not_settled_yet_is_thrown_away_by_nobody(api):
    await budget(api, UNIT)
    facts = (await submit(api, prompts(1))).json()
    at, rows = api.state, Batches(api.state.db, "")
    await ended(api, facts["id"], Ended(1, LineOutcome.DONE, result=answer()))
    later = datetime.now(UTC) + timedelta(days=1)
    assert await batch_upkeep.prune(at.db, later) == 0
    with pytest.raises(Exception, match="not settled yet"):
        await rows.remove(facts["id"])
    assert (await api.as_().delete(f"{BATCHES}/{facts['id']}")).status_code == 204, "it is settled before"
    assert await standing(api) == (UNIT - EACH, 0, EACH)
    other = (await submit(api, prompts(1))).json()
    await ended(api, other["id"], Ended(1, LineOutcome.DONE, result=answer()))
    await settled(api)
    assert await batch_upkeep.prune(at.db, later) == 1
    async with at.db.reading() as session:
        for table in ("batches", "batch_lines", "batch_bounds", "batch_bills"):
            assert await session.scalar(text(f"SELECT count(*) FROM {table}")) == 0  # noqa: S608  names of ours


async def test_what_is_held_for_a_batch_that_is_gone_is_given_back(api):
    at, now = api.state, timedelta(0)
    await budget(api, UNIT)
    await submit(api, prompts(1))
    assert await give_back(at.db, old=now) == Found(0, 0)
    async with at.db.writing() as session:
        await session.execute(text("DELETE FROM batches"))
    assert await give_back(at.db, old=now) == Found(1, 0)
    assert await standing(api) == (UNIT, 0, 0)


async def test_a_batch_whose_intake_ends_before_it_begins_holds_nothing(api):
    await budget(api, UNIT)
    made = await submit(api, "{\n")
    assert made.json()["state"] == "failed"
    assert await standing(api) == (UNIT, 0, 0)


async def test_a_bill_that_cannot_be_settled_holds_up_no_other(api, monkeypatch):
    await budget(api, UNIT)
    names = [(await submit(api, prompts(1))).json()["id"] for _ in range(2)]
    for name in names:
        await ended(api, name, Ended(1, LineOutcome.DONE, result=answer()))
    ran = batch_bills.ran

    async def broken(db, bill):
        if bill.batch_id == names[0]:
            raise RuntimeError("what is this?")
        return await ran(db, bill)

    monkeypatch.setattr(batch_bills, "ran", broken)
    assert await settled(api) == 1
    monkeypatch.setattr(batch_bills, "ran", ran)
    assert await settled(api) == 1
    assert (await standing(api))[1:] == (0, 2 * EACH)


def test_the_bound_of_a_line_is_that_of_its_model():
    settings = Settings(tariff=Tariff.model_validate({"models": {"big": {
        "prompt_micro_per_million": 0, "completion_micro_per_million": UNIT}}}))  # fmt: skip
    line = SimpleNamespace(number=1, embeds=False, arguments=json.dumps({"prompt": "p", "model": "big"}))
    line._replace = lambda **given: SimpleNamespace(**vars(line) | given)
    shaped, bound = bounded(settings, line)
    assert (bound.model, bound.amount_micro) == ("big", 4096 + 2000)
    assert json.loads(shaped.arguments)["most_tokens"] == 4096


async def test_several_who_settle_at_once_settle_each_batch_once_whatever_its_pieces(
    broker, sql_url, monkeypatch
):
    monkeypatch.setattr(batch_bills, "PIECE", 2)
    db = Database(sql_url)
    await db.migrate()
    others = [Database(sql_url) for _ in range(3)]
    async with api_client(sql_url) as api:
        await budget(api, 100 * UNIT)
        for _ in range(3):
            facts = (await submit(api, prompts(5))).json()
            done = [Ended(n, LineOutcome.DONE, result=answer()) for n in range(1, 6)]
            await ended(api, facts["id"], *done)
        counts = await asyncio.gather(*(settle(one, api.settings) for one in (db, *others)))
        while sum(counts) < 3:  # all that is left was left by all of them
            counts.append(await settle(db, api.settings))
        assert sum(counts) == 3
        assert await standing(api) == (100 * UNIT - 15 * EACH, 0, 15 * EACH)
        async with db.reading() as session:
            assert await wrong_balances(session) == []
    for one in (db, *others):
        await one.close()


async def test_a_batch_that_a_worker_runs_is_cut_at_its_bounds_and_settled_by_the_api(start_worker, api):
    async def endless(_: Request, reply: Reply) -> None:
        reply.head()
        while not reply.gone.is_set():
            reply.token("word ")
            await asyncio.sleep(0.001)

    await budget(api, UNIT)
    async with ScriptedServer() as node:
        node.on("/api/chat", endless)
        await asyncio.to_thread(
            start_worker,
            GAELP_OLLAMA_NODES=node.url,
            GAELP_DEFAULT_MODEL="tiny",
            GAELP_DATABASE_URL=api.settings.sql_url,
        )
        facts = (await submit(api, prompts(3, most_tokens=20))).json()
        place = f"{BATCHES}/{facts['id']}"

        async def over():
            return (await api.as_().get(place)).json()["state"] == "completed"

        while not await over():
            await asyncio.sleep(0.05)
        while (await standing(api))[1]:
            await asyncio.sleep(0.05)
    told = (await api.as_().get(f"{place}/results", params={"errors": True})).text.splitlines()
    assert [json.loads(one)["error"]["code"] for one in told] == ["budget"] * 3
    assert [json.loads(one)["result"]["text"] for one in told] == ["word " * 20] * 3
    assert (await kinds(api))["completion_tokens"] == (60, 48)
    available, held, spent = await standing(api)
    assert (available + spent, held) == (UNIT, 0)
