"""Joining: few calls of the model, each caller's own vectors, and no caller's trouble becomes another's."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.clients import BaseOllamaClient, Embeddings
from gaelp_tasks.errors import NodeFailed, NodeUnreachable, RequestRefused
from gaelp_tasks.models import Usage
from gaelp_tasks.tasks import joining
from gaelp_tasks.tasks.joining import GATHER_S, Joiner, Seats, patience_s, shares
from support.fakes import Clock, turns

SOON_S = 10


class Model(BaseOllamaClient):
    """A client whose calls wait for `go`; a text that is in `bad` makes its whole call fail."""

    def __init__(self, *, open_: bool = True):
        self.calls: list[list[str]] = []
        self.cancelled = 0
        self.loads = 0
        self.bad: dict[str, Exception] = {}
        self.go = asyncio.Event()
        if open_:
            self.go.set()

    async def generate_embedding(self, text):
        return [float(len(text)), float(hash(text) % 1000)]

    def chat(self, messages, **options):
        raise NotImplementedError

    async def embed(self, texts, *, model=None):
        self.calls.append(list(texts))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for text in texts:
            if text in self.bad:
                raise self.bad[text]
        vectors = tuple([tuple(await self.generate_embedding(text)) for text in texts])
        return Embeddings(vectors=vectors, usage=Usage(prompt_tokens=10 * len(texts)), model=model, node="n")

    async def load(self, model=None):
        self.loads += 1
        await self.go.wait()
        return 1.5


def joiner(model, *, seats=64, **how):
    return Joiner(lambda: model, seats=seats, **how)


async def asked(made, texts, **how):
    """A caller that waits."""
    task = asyncio.create_task(made.embed([texts] if isinstance(texts, str) else texts, model="m", **how))
    await turns(3)
    return task


async def soon(*tasks):
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)


# -- when a call starts


def test_alone_a_call_starts_at_once():
    assert patience_s(full=False, coming=0, backlog=False, crowd=0, silent_s=0, waited_s=0) == 0
    assert patience_s(full=False, coming=0, backlog=False, crowd=1, silent_s=0, waited_s=0) == 0


def test_a_full_call_starts_at_once_whoever_comes():
    assert patience_s(full=True, coming=9, backlog=True, crowd=9, silent_s=0, waited_s=0) == 0


@given(
    coming=st.integers(0, 64), backlog=st.booleans(), crowd=st.integers(0, 512),
    silent_s=st.floats(0, 100), waited_s=st.floats(0, 100),
)  # fmt: skip
def test_no_call_waits_for_ever(coming, backlog, crowd, silent_s, waited_s):
    wait_s = patience_s(
        full=False, coming=coming, backlog=backlog, crowd=crowd, silent_s=silent_s, waited_s=waited_s
    )
    assert 0 <= wait_s <= max(0, GATHER_S - waited_s)
    if not coming and not backlog:
        assert wait_s <= joining.LONGEST_GAP_S


def test_others_on_their_way_are_waited_for_and_a_backlog_that_gives_nothing_is_not():
    calm = {"full": False, "crowd": 0, "silent_s": 0.1, "waited_s": 0.1}
    assert patience_s(coming=1, backlog=False, **calm) > 0
    assert patience_s(coming=0, backlog=True, **calm) > 0
    assert patience_s(coming=0, backlog=True, **(calm | {"silent_s": joining.BACKLOG_GAP_S})) == 0


def test_after_a_crowd_a_short_gap_is_no_end():
    def gap(crowd):
        return patience_s(full=False, coming=0, backlog=False, crowd=crowd, silent_s=0, waited_s=0)

    assert 0 == gap(1) < gap(2) < gap(16) < gap(1000) == joining.LONGEST_GAP_S


# -- who is on the way


def test_seats_tell_who_will_ask_soon():
    clock = Clock(5.0)
    seats = Seats(2, clock)
    for name in "abc":
        seats.enter(name)
    assert (seats.taken, seats.coming()) == ({*"abc"}, 3)
    seats.asks("a")
    seats.has("b")
    assert seats.coming() == 1
    clock.advance(GATHER_S)
    assert seats.coming() == 0, "who takes so long is not counted on"
    seats.leave("b")
    assert seats.taken == {"a", "c"}


def test_more_is_fetched_only_where_a_seat_becomes_free():
    seats = Seats(2, Clock(0.0))
    assert not seats.fetches_from(), "no worker has said from which queues"
    seats.open_queues = lambda: ["batch"]
    assert seats.fetches_from() == ["batch"]
    seats.enter("a")
    seats.enter("b")
    assert not seats.fetches_from()
    seats.has("b")
    assert seats.fetches_from() == ["batch"]


def test_one_that_was_never_seated_leaves_no_trace():
    seats = Seats(1, Clock(0.0))
    seats.asks("x")
    seats.has("x")
    seats.open_queues = lambda: ["batch"]
    seats.enter("a")
    assert not seats.fetches_from()


# -- joining


async def test_what_arrives_during_a_call_shares_the_next_one():
    model = Model(open_=False)
    made = joiner(model)
    tasks = [await asked(made, f"text {number}") for number in range(50)]
    assert model.calls == [["text 0"]]
    model.go.set()
    answers = await soon(*tasks)
    assert model.calls == [["text 0"], [f"text {number}" for number in range(1, 50)]]
    for number, answer in enumerate(answers):
        assert answer.vectors == (tuple(await model.generate_embedding(f"text {number}")),)
        assert (answer.model, answer.node) == ("m", "n")


async def test_each_caller_gets_its_vectors_in_its_own_order():
    model = Model(open_=False)
    made = joiner(model)
    texts = [["a"], ["bb", "a", "ccc"], [], ["ccc", "ccc"]]
    tasks = [await asked(made, some) for some in texts]
    model.go.set()
    answers = await soon(*tasks)
    for some, answer in zip(texts, answers, strict=True):
        assert [vector[0] for vector in answer.vectors] == [float(len(text)) for text in some]


async def test_two_models_do_not_wait_for_each_other():
    model = Model(open_=False)
    made = joiner(model)
    tasks = [asyncio.create_task(made.embed(["x"], model=name)) for name in ("one", "other")]
    await turns()
    assert model.calls == [["x"], ["x"]]
    model.go.set()
    await soon(*tasks)


async def test_the_higher_tier_goes_into_the_next_call_first(monkeypatch):
    monkeypatch.setattr(joining, "MAX_TEXTS", 2)
    model = Model(open_=False)
    made = joiner(model)
    tasks = [
        await asked(made, text, rank=rank) for text, rank in (("a", 0), ("low", 2), ("mid", 1), ("b", 0))
    ]
    model.go.set()
    await soon(*tasks)
    assert model.calls == [["a"], ["b", "mid"], ["low"]]


async def test_a_large_caller_is_spread_over_calls_and_lets_others_in_between(monkeypatch):
    monkeypatch.setattr(joining, "MAX_TEXTS", 3)
    model = Model(open_=False)
    made = joiner(model)
    large = await asked(made, list("abcdefgh"), rank=2)
    urgent = await asked(made, "now", rank=0)
    model.go.set()
    answers = await soon(large, urgent)
    assert model.calls == [["a", "b", "c"], ["now", "d", "e"], ["f", "g", "h"]]
    assert len(answers[0].vectors) == 8
    by_bytes = 30 * 3 // 5
    assert answers[1].usage == Usage(prompt_tokens=by_bytes)
    assert answers[0].usage == Usage(prompt_tokens=30 + (30 - by_bytes) + 30)


async def test_a_call_is_bounded_in_bytes_and_a_longer_text_goes_alone(monkeypatch):
    monkeypatch.setattr(joining, "MAX_BYTES", 10)
    model = Model(open_=False)
    made = joiner(model)
    tasks = [await asked(made, text) for text in ("a", "é" * 4, "bb", "c", "x" * 50, "d")]
    model.go.set()
    await soon(*tasks)
    assert model.calls == [["a"], ["é" * 4, "bb"], ["c"], ["x" * 50], ["d"]]


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=70))
def test_a_calls_tokens_are_shared_out_exactly(tokens, sizes):
    found = shares(tokens, sizes)
    assert len(found) == len(sizes)
    assert all(share >= 0 for share in found)
    assert sum(found) == (tokens if sum(sizes) else 0)
    for share, size in zip(found, sizes, strict=True):
        assert abs(share - tokens * size / max(1, sum(sizes))) <= 1


async def test_a_crowd_is_waited_for_until_the_seats_are_full():
    model = Model()
    coming = itertools.chain([1] * 5, itertools.repeat(0))
    made = joiner(model, seats=3, coming=lambda: next(coming))
    tasks = [await asked(made, text) for text in "abc"]
    await soon(*tasks)
    assert model.calls == [["a", "b", "c"]]


async def test_a_backlog_of_this_tier_is_waited_for():
    model = Model()
    ranks = []
    more = asyncio.Event()

    async def backlog(model, rank):
        ranks.append(rank)
        return not more.is_set()

    made = joiner(model, backlog=backlog)
    first = await asked(made, "a", rank=1)
    assert model.calls == []
    second = await asked(made, "b", rank=2)
    more.set()
    await soon(first, second)
    assert model.calls == [["a", "b"]]
    assert {*ranks} == {1}


# -- leaving and failing


async def test_who_leaves_takes_only_its_texts_along():
    model = Model(open_=False)
    made = joiner(model)
    tasks = [await asked(made, text) for text in "abc"]
    tasks[1].cancel()
    await turns()
    model.go.set()
    answers = await soon(*tasks)
    assert isinstance(answers[1], asyncio.CancelledError)
    assert model.calls == [["a"], ["c"]]
    assert model.cancelled == 0


async def test_a_call_goes_on_while_anybody_waits_for_it_and_is_cancelled_when_nobody_does():
    model = Model(open_=False)
    made = joiner(model)
    first = await asked(made, "a")
    rest = [await asked(made, text) for text in "bc"]
    first.cancel()
    async with asyncio.timeout(SOON_S):
        while len(model.calls) < 2:
            await asyncio.sleep(0)
    assert model.cancelled == 1, "its only caller left"
    assert model.calls == [["a"], ["b", "c"]]
    rest[0].cancel()
    await turns()
    assert model.cancelled == 1
    rest[1].cancel()
    await turns()
    assert model.cancelled == 2
    later = await asked(made, "d")
    model.go.set()
    [answer] = await soon(later)
    assert answer.vectors[0][0] == 1.0


@pytest.mark.parametrize("error", [RequestRefused("too long"), NodeFailed("NaN")])
async def test_one_bad_text_harms_none_but_its_own_caller(error):
    model = Model(open_=False)
    model.bad["text 13"] = error
    made = joiner(model)
    tasks = [await asked(made, f"text {number}") for number in range(64)]
    model.go.set()
    answers = await soon(*tasks)
    assert [number for number, answer in enumerate(answers) if isinstance(answer, Exception)] == [13]
    assert answers[13] is error
    assert len(model.calls) <= 2 + 2 * 6


async def test_a_node_that_is_gone_is_every_callers_error_and_is_not_tried_again_for_each():
    model = Model(open_=False)
    model.bad["b"] = NodeUnreachable("gone")
    made = joiner(model)
    tasks = [await asked(made, text) for text in "abc"]
    model.go.set()
    answers = await soon(*tasks)
    assert [type(answer) for answer in answers] == [Embeddings, NodeUnreachable, NodeUnreachable]
    assert len(model.calls) == 2


async def test_a_failed_part_ends_the_whole_of_a_large_caller(monkeypatch):
    monkeypatch.setattr(joining, "MAX_TEXTS", 2)
    model = Model()
    model.bad["a"] = RequestRefused("no")
    made = joiner(model)
    [answer] = await soon(await asked(made, list("abcdef")))
    assert isinstance(answer, RequestRefused)
    assert model.calls == [["a", "b"]]


async def test_a_client_that_makes_too_few_vectors_or_breaks_off_is_an_error_and_no_wait():
    class Poor(Model):
        async def embed(self, texts, *, model=None):
            if "x" in texts:
                raise asyncio.CancelledError
            return Embeddings(vectors=())

    made = joiner(Poor())
    answers = await soon(await asked(made, "a"), await asked(made, "x"))
    assert [type(answer) for answer in answers] == [NodeFailed, NodeUnreachable]


async def test_nobody_waits_for_a_call_that_cannot_be_made():
    async def broken(model, rank):
        raise ValueError("a bug")

    def no_client():
        raise ValueError("no client")

    for made in (joiner(Model(), backlog=broken), Joiner(no_client, seats=64)):
        answers = await soon(await asked(made, "a"), await asked(made, "b"))
        assert [type(answer) for answer in answers] == [ValueError, ValueError]


async def test_all_who_need_the_model_share_one_load_and_none_aborts_it():
    model = Model(open_=False)
    made = joiner(model)
    tasks = [asyncio.create_task(made.load("m")) for _ in range(5)]
    await turns()
    tasks[0].cancel()
    await turns()
    model.go.set()
    answers = await soon(*tasks)
    assert answers[1:] == [1.5] * 4
    assert model.loads == 1


async def test_a_model_that_just_answered_is_not_loaded_again():
    model = Model()
    clock = Clock(100.0)
    made = joiner(model, clock=clock)
    await made.embed(["a"], model="m")
    assert await made.load("m") == 0.0
    assert model.loads == 0
    clock.advance(joining.RECENT_S)
    assert await made.load("m") == 1.5


async def test_idle_models_are_forgotten_when_there_are_many():
    made = joiner(Model())
    for number in range(3 * joining.MAX_LANES):
        await made.embed(["a"], model=f"m{number}")
    assert len(made._lanes) <= joining.MAX_LANES
