"""The mixed load benchmark: its model server keeps the rates it claims, and its arithmetic is right."""

import json
import math
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of one folder

from figures import percentile
from mixed_figures import Call, Cell, Found, figures_of, report, settled, stages_ms
from pace import Asking, Slots
from paced_server import Server, application, asked_in, prompt, text_of
from witness import halts

PROMPT = prompt("b-1", tokens=8, prompt_tokens=3)


def run(slots, until=1000.0):
    return slots.advance(until)


def chat(text, *, so_far="", **options):
    messages = [{"role": "user", "content": text}]
    messages += [{"role": "assistant", "content": so_far}] if so_far else []
    return {"model": "paced:latest", "messages": messages, "options": options}


# --- the pace


@pytest.mark.parametrize(("busy", "rate"), [(1, 150.0), (2, 400 / 3), (3, 350 / 3), (4, 100.0)])
def test_a_stream_writes_as_fast_as_the_number_of_slots_taken_allows(busy, rate):
    slots = Slots()
    askings = [Asking(200, 51) for _ in range(busy)]
    for asking in askings:
        slots.join(asking)
    run(slots)
    for asking in askings:
        assert asking.first_at == pytest.approx(0.1)  # 200 tokens at 2,000/s
        assert asking.ended_at == pytest.approx(0.1 + 50 / rate)


def test_a_fifth_request_waits_for_the_first_slot_that_is_free():
    slots = Slots()
    first, *others = [Asking(20, tokens) for tokens in (11, 100, 100, 100)]
    fifth, sixth = Asking(20, 1), Asking(20, 1)
    for asking in (first, *others, fifth, sixth):
        slots.join(asking)
    run(slots)
    assert first.ended_at == pytest.approx(0.01 + 10 / 100)
    assert fifth.begun_at == first.ended_at
    assert sixth.begun_at == fifth.ended_at


def test_who_leaves_gives_its_slot_back_at_its_next_token():
    slots = Slots()
    leaving, staying = Asking(20, 100), Asking(20, 100)
    slots.join(leaving)
    slots.join(staying)
    run(slots, 0.01 + 2.5 / (400 / 3))
    slots.leave(leaving)
    assert leaving.made == 3
    run(slots)
    assert leaving.made == 4
    assert leaving.ended_at == pytest.approx(0.01 + 3 / (400 / 3))
    assert staying.made == 100


def test_who_leaves_the_line_is_never_served():
    slots = Slots(1)
    holding, waiting = Asking(20, 5), Asking(20, 5)
    slots.join(holding)
    slots.join(waiting)
    run(slots, 0.01)
    slots.leave(waiting)
    run(slots)
    assert (waiting.begun_at, waiting.made, waiting.ended_at) == (None, 0, 0.01)


plans = st.lists(st.tuples(st.floats(0, 2), st.integers(1, 300), st.integers(0, 40)), min_size=1, max_size=9)


@given(plans, st.lists(st.floats(0, 4), max_size=30))
def test_how_late_one_looks_changes_nothing(plan, looks):
    """Whoever looks often and whoever looks only when somebody comes see the same times."""

    def times(extra):
        slots = Slots()
        coming = sorted((at, number) for number, (at, *_) in enumerate(plan))
        moments = sorted([(at, number) for at, number in coming] + [(at, -1) for at in extra])
        askings = [Asking(prompt_tokens, tokens) for _, prompt_tokens, tokens in plan]
        for at, number in moments:
            slots.advance(at)
            if number >= 0:
                slots.join(askings[number])
        run(slots)
        return [time for asking in askings for time in (asking.begun_at, asking.first_at, asking.ended_at)]

    assert times(looks) == pytest.approx(times([]), abs=1e-6)


@given(plans)
def test_never_more_than_four_at_once_and_no_token_too_many(plan):
    slots = Slots()
    askings = [Asking(prompt_tokens, tokens) for _, prompt_tokens, tokens in plan]
    for asking in askings:
        slots.join(asking)
    told = run(slots)
    ends = [(asking.begun_at, asking.ended_at) for asking in askings]
    assert all(sum(begun <= at < ended for begun, ended in ends) <= 4 for at, _ in ends)
    assert [asking.made for asking in askings] == [tokens for *_, tokens in plan]
    assert slots.made == sum(made.number is not None for made in told)
    assert slots.made <= math.ceil(400 * max(asking.ended_at for asking in askings)) + len(plan)


# --- the server


@given(st.integers(0, 8), st.integers(0, 4))
def test_an_answer_goes_on_where_its_text_stops(tokens, more):
    """Even in the midst of a token, of which the rest is written first."""
    so_far = text_of(PROMPT, 8)[: tokens * 5 + more]
    asked = asked_in(chat(PROMPT, so_far=so_far))
    rest = "".join(asked.piece(number) for number in range(asked.tokens))
    assert so_far + rest == text_of(PROMPT, 8)
    assert asked.prompt_tokens == 3 + math.ceil(len(so_far) / 5)  # the text is read again


def test_num_predict_cuts_what_is_missing():
    cut = asked_in(chat(PROMPT, so_far=text_of(PROMPT, 2), num_predict=4))
    assert (cut.first, cut.tokens, cut.cut) == (2, 4, True)
    whole = asked_in(chat(PROMPT, so_far=text_of(PROMPT, 2), num_predict=100))
    assert (whole.first, whole.tokens, whole.cut) == (2, 6, False)


async def test_the_server_writes_the_answer_and_keeps_count():
    server = Server()
    async with TestClient(TestServer(application(server))) as client:
        async with client.post("/api/chat", json=chat(PROMPT)) as response:
            lines = [json.loads(line) async for line in response.content]
        told = await (await client.get("/bench/record")).json()
    assert "".join(line["message"]["content"] for line in lines) == text_of(PROMPT, 8)
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"], lines[-1]["prompt_eval_count"]) == (
        "stop",
        8,
        3,
    )
    (row,) = told["requests"]
    assert (row["job"], row["first"], row["made"], told["made"], told["busy"]) == ("b-1", 0, 8, 8, 0)
    took_s = row["ended_at"] - row["begun_at"]
    assert took_s == pytest.approx(3 / 2000 + 7 / 150)  # by its own account, whatever the machine does


async def test_a_client_that_leaves_frees_its_slot_and_what_it_did_not_want_is_counted():
    server = Server()
    endless = prompt("b-2", tokens=10_000, prompt_tokens=1)
    async with (
        TestServer(application(server), handler_cancellation=True) as served,
        TestClient(served) as client,
    ):
        async with client.post("/api/chat", json=chat(endless)) as response:
            await response.content.readline()
            response.close()
        async with client.post("/api/chat", json=chat(PROMPT)) as response:
            await response.read()
        while (told := await (await client.get("/bench/record")).json())["busy"]:
            pass  # it has not seen that the client left
    left, stayed = told["requests"]
    assert left["gone"]
    assert 1 <= left["made"] < 10_000
    assert stayed["made"] == 8
    assert (told["made"], told["busy"]) == (left["made"] + 8, 0)


# --- the arithmetic


def row(job, made, *, first=0, at=0.0):
    times = {"arrived_at": at + 0.010, "begun_at": at + 0.015, "first_at": at + 0.079}
    return {"job": job, "made": made, "first": first, **times}


def called(name, first_s):
    asked = prompt(name, tokens=2, prompt_tokens=9)
    return Call(asked=asked, published_at=0.0, first_at=first_s, text=text_of(asked, 2))


def test_useful_is_what_answers_have_once_and_the_rest_is_waste():
    """Of 8 tokens 5 came before the cut and 3 after it, one was written for nobody."""
    call = called("c-1", 0.1)
    requests = [row("b-1", 6), row("c-1", 2), row("b-1", 3, first=5)]
    useful = settled([(PROMPT, text_of(PROMPT, 8)), (call.asked, call.text)])
    cell = Cell(calls=[call], seconds=2.0, made=9, useful_in_all=useful, cpu_s=0.5, requests=requests)
    assert (cell.made_in_all, cell.useful_in_all, cell.wasted, cell.resumed) == (11, 10, 1, 1)
    assert cell.useful_tokens_s == 4.0


@pytest.mark.parametrize(
    "change", [lambda text: text[:-5], lambda text: text + text[:5], lambda text: text[5:] + text[:5]]
)
def test_an_answer_with_a_gap_or_a_repeat_is_refused(change):
    with pytest.raises(AssertionError, match="b-1"):
        settled([(PROMPT, change(text_of(PROMPT, 8)))])


def test_the_stages_add_up_to_the_first_token():
    stages = stages_ms([called("c-1", 0.090)], [row("c-1", 2), row("c-1", 1, first=1, at=7.0)])
    assert {stage: round(span[0]) for stage, span in stages.items()} == {
        "to the server": 10,
        "for a slot": 5,
        "prompt": 64,
        "to the reader": 11,
    }


def test_waiting_is_told_as_multiples_of_idle_and_judged_for_ours_alone():
    idle = [called(f"i-{number}", 0.1) for number in range(100)]
    load = [called(f"c-{number}", 0.105 if number < 97 else 0.3) for number in range(100)]
    requests = [row(json.loads(call.asked)["job"], 2) for call in (*idle, *load)]
    cell = Cell(calls=load, seconds=1.0, made=390, useful_in_all=200, cpu_s=0.1, requests=requests[100:])
    sides = ("ours", "plain Celery")
    found = Found(
        idle=dict.fromkeys(sides, idle),
        direct={512: [400.0]},
        cells={512: {side: [cell] for side in sides}},
        record=requests,
    )
    figures = {figure.name: figure for figure in figures_of(found)}
    told = {name: (round(figure.median, 3), figure.met) for name, figure in figures.items()}
    assert told["512-token jobs: first token p50 / idle p50, ours"] == (1.05, True)
    assert told["512-token jobs: first token p95 / idle p95, ours"] == (1.05, True)
    assert told["512-token jobs: first token p99 / idle p99, ours"] == (3.0, False)
    assert told["512-token jobs: first token p99 / idle p99, plain Celery"] == (3.0, None)
    assert told["512-token jobs: useful tokens / direct limit, ours"] == (0.975, True)
    assert told["512-token jobs: wasted tokens, ours"] == (0.0, True)
    assert "| 512-token jobs, ours         | 100   | 100         | 105 | 105 | 300 | 1.05" in report(found)


def test_calls_that_a_halt_of_the_machine_has_hit_are_told_and_not_judged():
    quiet, hit = called("c-1", 0.1), called("c-2", 0.3)
    found = Found(halts=[(hit.first_at - 0.05, hit.first_at + 1.0)])
    assert found.undisturbed([quiet, hit]) == [quiet]
    cells = [
        Cell(calls=[quiet, hit], seconds=1.0, made=2, useful_in_all=2, cpu_s=0.1, requests=[row("c-1", 2)])
    ]
    judged = Found(
        idle={"ours": [quiet]}, direct={512: [400.0]}, cells={512: {"ours": cells}}, halts=found.halts
    )
    told = {figure.name: (round(figure.median, 3), figure.met) for figure in figures_of(judged)}
    assert told["512-token jobs: first token p99 / idle p99, ours"] == (1.0, True)
    assert told["512-token jobs: first token p99 / idle p99, ours, all calls"] == (3.0, None)


def test_a_halt_is_what_lasted_from_before_it_until_after():
    assert halts(["watching\n2.5 2.75\n", "watching\n1.0 1.5\n4.0 4.25\n", "watching\n"]) == [
        (1.0, 1.5),
        (2.5, 2.75),
        (4.0, 4.25),
    ]


@given(st.lists(st.floats(0, 10), min_size=1), st.sampled_from([50, 95, 99]))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(values, at):
    found = percentile(values, at)
    assert found in values
    assert sum(value <= found for value in values) >= at / 100 * len(values)
