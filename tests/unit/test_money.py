"""The arithmetic of money: whole numbers, bounds that hold, bills that add up."""

from datetime import UTC, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models import Embedding, EmbeddingResult, Invocation, InvocationResult, Tier, Timings, Usage
from gaelp_tasks.models.invocation import StopReason
from gaelp_tasks.models.money import (
    MOST_MICRO,
    PATHS,
    UNITS,
    Account,
    Charge,
    CostKind,
    Move,
    Period,
    balances,
    closing,
    micro_of,
    units,
)
from gaelp_tasks.models.quota import Limits, Share
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.tariff import ModelPrice, Tariff, priced, share_of
from gaelp_tasks.services.charging import (
    COLD_S,
    bill,
    bound_of,
    clamped,
    embedding_bound,
    tokens_within,
)
from gaelp_tasks.training.prices import bill as job_bill
from gaelp_tasks.training.prices import bound_micro as job_bound_micro

AMOUNTS = st.integers(0, 10**12)
TOKENS = st.integers(0, 10**15)
PERCENT = st.integers(0, 100)
LINES = st.lists(
    st.builds(Charge, st.sampled_from(CostKind), st.integers(0, 10**9), st.integers(-(10**9), 10**9)),
    max_size=6,
)
PRICES = st.integers(0, 10**9)
TARIFFS = st.builds(
    Tariff,
    prompt_micro_per_million=PRICES,
    completion_micro_per_million=PRICES,
    gpu_second_micro=PRICES,
    cpu_second_micro=PRICES,
    cold_load_micro=PRICES,
    preemptible_percent=PERCENT,
    cancelled_percent=PERCENT,
    wasted_percent=st.just(0),
)
ASKED = st.builds(
    lambda prompt, predict: Invocation(prompt=prompt, options={"num_predict": predict} if predict else None),
    st.text(min_size=1, max_size=200).filter(str.strip).filter(lambda text: text.isprintable()),
    st.integers(-1, 10_000),
)


def answered(usage, stop_reason="stop", load_s=None, cached=False):
    return InvocationResult(
        id="i", agent="chat", model="m", node="n", tier=Tier.BATCH, priority=5, text="t", attempts=1,
        stop_reason=stop_reason, usage=usage, timings=Timings(load_s=load_s), cached=cached,
    )  # fmt: skip


def total(lines):
    return sum(line.amount_micro for line in lines)


@given(st.lists(st.tuples(st.sampled_from(Move), AMOUNTS)))
def test_whatever_moves_nothing_is_made_or_lost(entries):
    assert sum(balances(entries).values()) == 0


def test_each_move_goes_from_one_account_to_another():
    assert PATHS.keys() == set(Move)
    assert all(source is not target for source, target in PATHS.values())
    assert balances([(Move.GRANT, 10), (Move.HOLD, 6), (Move.SETTLE, 4), (Move.RELEASE, 2)]) == {
        Account.OUTSIDE: -10,
        Account.AVAILABLE: 6,
        Account.HELD: 0,
        Account.SPENT: 4,
    }


@given(AMOUNTS, st.integers(-(10**12), 10**13), LINES)
def test_what_is_paid_lies_within_the_bound_and_its_lines_add_up_to_it(bound, spent, lines):
    paid, written = closing(bound, spent, lines)
    assert 0 <= paid <= bound
    assert paid == min(max(spent, 0), bound)
    assert total(written) == paid
    assert written[: len(lines)] == tuple(lines), "nothing that was charged is hidden"


def test_what_is_above_the_bound_is_a_line_of_its_own():
    paid, lines = closing(10, 25, [Charge(CostKind.GPU_TIME, 5, 25)])
    assert paid == 10
    assert lines[-1] == Charge(CostKind.OVER_BOUND, 0, -15)
    paid, lines = closing(10, 8, [Charge(CostKind.GPU_TIME, 5, 5)])
    assert lines[-1] == Charge(CostKind.OTHER, 0, 3)


@given(st.integers(-(10**15), 10**15))
def test_an_amount_for_people_has_every_digit_that_there_is(amount):
    whole, fraction = units(amount).replace(",", "").split(".")
    assert len(fraction) >= 2
    sign = -1 if whole.startswith("-") else 1
    assert sign * (abs(int(whole)) * 10**6 + int(fraction.ljust(6, "0"))) == amount


@given(AMOUNTS)
def test_an_amount_is_read_as_it_was_written(amount):
    assert micro_of(units(amount)) == amount


@pytest.mark.parametrize(
    "text", ["", "-1", "1.", "1.1234567", "1e3", "10,00", "\u0661", "999999999999", " 1"]
)
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(ValueError, match=r"amount|budget"):
        micro_of(text)


@pytest.mark.parametrize(
    ("amount", "text"), [(0, "0.00"), (1, "0.000001"), (-1_500_000, "-1.50"), (5_000_000_000, "5,000.00")]
)
def test_amounts_read_as_people_write_them(amount, text):
    assert units(amount) == text


TIMES = st.datetimes(timezones=st.just(UTC)).filter(lambda at: 1970 < at.year < 2200)


@given(TIMES, st.sampled_from(Period))
def test_a_period_begins_once_and_holds_every_moment_until_the_next(at, period):
    start = period.start(at)
    if period is Period.NONE:
        assert start is None
        return
    assert start <= at < start + timedelta(days={Period.DAY: 1, Period.WEEK: 7, Period.MONTH: 31}[period])
    assert period.start(start) == start
    assert period.start(start - timedelta(microseconds=1)) < start


@given(st.integers(-5, 10**12), PRICES)
def test_prices_are_rounded_up_and_never_below_nothing(quantity, price):
    exact = max(quantity, 0) * price
    assert priced(quantity, price) * 10**6 >= exact
    assert (priced(quantity, price) - 1) * 10**6 < exact


@given(TOKENS, TOKENS, TARIFFS, ASKED, st.integers(1, 10_000), st.sampled_from(get_args(StopReason)), AMOUNTS)
def test_no_answer_costs_more_than_its_bound_whatever_the_node_reports(
    read, told, tariff, asked, most_tokens, stop_reason, wasted
):
    bound = bound_of(tariff, asked, most_tokens)
    result = answered(Usage(prompt_tokens=read, completion_tokens=told), stop_reason, load_s=COLD_S)
    lines = bill(tariff, bound, result, asked_model=None, wasted_tokens=wasted)
    assert 0 <= total(lines) <= bound.amount_micro
    assert all(line.amount_micro >= 0 and line.quantity > 0 for line in lines)


@given(TOKENS, TOKENS, TARIFFS, ASKED, st.integers(1, 10_000))
def test_what_a_node_reports_counts_up_to_what_can_have_been(read, told, tariff, asked, most_tokens):
    bound = bound_of(tariff, asked, most_tokens)
    assert bound.prompt_tokens >= asked.size_bytes
    assert bound.completion_tokens <= most_tokens
    counted = clamped(Usage(prompt_tokens=read, completion_tokens=told), bound)
    assert counted.completion_tokens == min(told, bound.completion_tokens)
    assert counted.prompt_tokens <= bound.prompt_tokens
    if read:
        assert counted.prompt_tokens == min(read, bound.prompt_tokens)
    elif told:
        assert counted.prompt_tokens > 0, "a cut run has read its prompt too"


@given(TARIFFS, ASKED, st.integers(0, 10**10), st.integers(1, 10**6))
def test_as_many_tokens_are_told_as_an_amount_pays_for_and_not_one_more(tariff, asked, amount, most_tokens):
    found = tokens_within(tariff, asked, amount, most_tokens)
    assert 0 <= found <= most_tokens
    if found:
        assert bound_of(tariff, asked, found).amount_micro <= amount
    more = bound_of(tariff, asked, found + 1)
    if found < most_tokens and more.completion_tokens == found + 1:  # else its num_predict is less
        assert more.amount_micro > amount


def test_the_lines_of_a_bill_name_what_was_paid_for():
    tariff = Tariff(
        models={"m": ModelPrice(prompt_micro_per_million=10**6, completion_micro_per_million=2 * 10**6)}
    )
    asked = Invocation(prompt="Hi", model="m")
    bound = bound_of(tariff, asked, 100)
    used = Usage(prompt_tokens=5, completion_tokens=7)

    def lines(**how):
        return bill(tariff, bound, answered(used, **how), asked_model="m")

    assert lines() == (Charge(CostKind.PROMPT_TOKENS, 5, 5), Charge(CostKind.COMPLETION_TOKENS, 7, 14))
    assert lines(stop_reason="cancelled")[1] == Charge(CostKind.CANCELLED, 7, 14)
    assert lines(load_s=3.0)[2] == Charge(CostKind.COLD_LOADS, 1, 2000)
    assert lines(cached=True) == ()
    assert bill(tariff, bound, answered(used, cached=True), asked_model="m", wasted_tokens=9) == (
        Charge(CostKind.WASTED, 9, 0),
    )


def test_an_embedding_pays_for_what_it_reads():
    tariff = Tariff()
    asked = Embedding(input=("a" * 1000, "b"))
    bound = embedding_bound(tariff, asked)
    result = EmbeddingResult(
        id="i", model="m", node="n", tier=Tier.BATCH, priority=5, embeddings=(), attempts=1,
        usage=Usage(prompt_tokens=10**9),
    )  # fmt: skip
    [line] = bill(tariff, bound, result, asked_model=None)
    assert line.kind is CostKind.PROMPT_TOKENS
    assert line.quantity == bound.prompt_tokens
    assert line.amount_micro <= bound.amount_micro


@given(
    TARIFFS,
    st.builds(Resources, cpu_milli=st.integers(0, 10**6), gpus=st.integers(0, 100)),
    st.floats(0, 10**7),
    st.floats(0, 10**7),
    st.booleans(),
)
def test_a_job_costs_more_the_longer_it_has_its_resources_and_never_less_than_nothing(
    tariff, resources, one, other, preemptible
):
    short, long = sorted((one, other))
    first, second = (
        total(job_bill(tariff, resources, seconds, preemptible=preemptible)) for seconds in (short, long)
    )
    assert 0 <= first <= second + 1  # a discount is rounded down
    assert min(second, MOST_MICRO) == job_bound_micro(tariff, resources, long, preemptible=preemptible)
    assert second <= total(job_bill(tariff, resources, long, preemptible=False))


def test_a_job_that_may_be_interrupted_is_cheaper():
    resources = Resources(cpu_milli=4000, gpus=2)
    lines = job_bill(Tariff(), resources, 100.0, preemptible=True)
    assert tuple(lines) == (
        Charge(CostKind.TRAINING_TIME, 100_000, 4000),
        Charge(CostKind.GPU_TIME, 200_000, 100_000),
        Charge(CostKind.PREEMPTIBLE, 100_000, -62_400),
    )


def test_every_kind_of_cost_has_a_unit():
    assert UNITS.keys() == set(CostKind)


@given(AMOUNTS, PERCENT)
def test_a_share_is_at_most_the_whole(amount, percent):
    assert share_of(amount, 0) == 0
    assert share_of(amount, 100) == amount
    assert 0 <= share_of(amount, percent) <= amount


@given(
    st.lists(st.builds(Share, *[st.integers(0, 50)] * 5), max_size=5),
    st.builds(Share, *[st.integers(0, 100)] * 5),
)
def test_what_fits_is_what_is_beyond_nothing(shares, limit):
    held = Share()
    for share in shares:
        if not held.plus(share).beyond(limit):
            held = held.plus(share)
    assert all(mine <= most for mine, most in zip(held, limit, strict=True))


def test_own_limits_count_where_they_are_set_also_none_at_all():
    assert Limits(gpus=0).over(Share(1, 2, 3, 4, 5)) == Share(1, 2, 0, 4, 5)
