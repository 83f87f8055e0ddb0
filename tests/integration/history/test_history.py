"""The history: one row for each invocation, found by what it is, pruned by age."""

from datetime import timedelta

import pytest

from gaelp_tasks.db.history import ANY, History, Which
from support.told import NOON, row


async def ids(history, which=ANY, *, most=100, skip=0):
    return [one.id for one in await history.listed(which, most=most, skip=skip)]


async def test_rows_come_newest_first_and_in_pages(db):
    history = History(db, None)
    await history.add(row(f"{number}", ended_s=number) for number in range(7))
    assert await ids(history) == ["6", "5", "4", "3", "2", "1", "0"]
    assert await ids(history, most=2, skip=3) == ["3", "2"]
    assert await history.count() == 7


async def test_all_that_was_told_comes_back(db):
    told = row(
        "a", error="NodeFailed: no", tenant="t", node="http://n:1", worker="w", attempts=2, queued_s=0.5,
        load_s=1.5, first_token_s=2.5, total_s=3.5, prompt_tokens=4, completion_tokens=5,
        prompt="why?", text="ü\U0001f600",
    )  # fmt: skip
    await History(db, None).add([told])
    (found,) = await History(db, "t").find("a")
    assert {name: getattr(found, name) for name in told} == told
    assert found.facts().keys() == told.keys() - {"prompt", "text"}


async def test_nothing_to_keep_is_kept(db):
    await History(db, None).add([])
    assert await History(db, None).count() == 0


async def test_the_same_again_changes_nothing_and_the_newest_end_counts(db):
    history = History(db, None)
    await history.add([row("a", ended_s=5, state="failed", claims=2), row("a", claims=1, state="cut")])
    await history.add([row("a", ended_s=5, state="failed", claims=2)])
    await history.add([row("a", ended_s=4, state="cut")])
    assert [(one.state, one.claims) for one in await history.listed(most=9)] == [("failed", 2)]
    await history.add([row("a", ended_s=6, state="done", claims=3)])
    assert [(one.state, one.claims) for one in await history.listed(most=9)] == [("done", 3)]


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (Which(tier="interactive"), ["b"]),
        (Which(model="m:7b"), ["c"]),
        (Which(agent="coding"), ["d"]),
        (Which(state="failed"), ["e"]),
        (Which(since=NOON + timedelta(seconds=3)), ["e", "d"]),
        (Which(since=NOON + timedelta(seconds=3), state="failed"), ["e"]),
        (Which(tier="background"), []),
    ],
)
async def test_rows_are_found_by_what_they_are(db, which, found):
    history = History(db, None)
    changes = [{}, {"tier": "interactive"}, {"model": "m:7b"}, {"agent": "coding"}, {"state": "failed"}]
    await history.add(row("abcde"[number], ended_s=number, **one) for number, one in enumerate(changes))
    assert await ids(history, which) == found
    assert await history.count(which) == len(found)


async def test_a_tenant_sees_and_throws_away_only_its_own(db):
    everyone, mine, nobodys = History(db, None), History(db, "me"), History(db, "")
    await everyone.add([row("a", tenant="me"), row("b", tenant="you"), row("c")])
    assert sorted(await ids(everyone)) == ["a", "b", "c"]
    assert (await ids(mine), await ids(nobodys)) == (["a"], ["c"])
    assert await mine.find("b") == []
    assert await mine.count() == 1
    assert await mine.purge(["a", "b", "c"]) == 1
    assert await nobodys.prune(NOON + timedelta(days=1)) == 1
    assert await ids(everyone) == ["b"]


async def test_an_id_is_found_by_how_it_begins_unless_several_do(db):
    history = History(db, None)
    await history.add([row("ab%c"), row("ab"), row("abx"), row("ab_c")])
    assert [one.id for one in await history.find("ab")] == ["ab"]
    assert [one.id for one in await history.find("ab%")] == ["ab%c"]
    assert [one.id for one in await history.find("ab_")] == ["ab_c"]
    assert len(await history.find("a")) == 2
    assert await history.find("b") == []


async def test_what_is_old_is_thrown_away_in_steps(db, monkeypatch):
    monkeypatch.setattr("gaelp_tasks.db.history.AT_ONCE", 3)
    history = History(db, None)
    await history.add(row(f"{number}", ended_s=number) for number in range(10))
    assert await history.prune(NOON + timedelta(seconds=8)) == 8
    assert await ids(history) == ["9", "8"]
    assert await history.purge(["9", "9", "8", "7"]) == 2


async def test_a_row_that_the_database_refuses_keeps_no_other_out(db, caplog):
    history = History(db, None)
    await history.add([row("a"), row("b") | {"priority": "high" * 100}, row("c")])
    if "sqlite" in db.place:  # which takes any text for a number
        return
    assert sorted(await ids(history)) == ["a", "c"]
    assert "does not take the end of b" in caplog.text
