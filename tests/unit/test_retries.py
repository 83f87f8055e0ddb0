"""Backoff and the decision between retry, snooze and failure."""

import inspect
import math
import sys
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks import errors
from gaelp_tasks.errors import GaelpError, NodeBusy, NodeFailed, Verdict
from gaelp_tasks.retries import Failed, Retry, RetryPolicy, Snooze, backoff_s, decide

POLICY = RetryPolicy(attempts=4, base_s=1.0, cap_s=60.0, snooze_s=2.0)
seconds = st.floats(1e-3, 1e6)
policies = st.builds(
    RetryPolicy, attempts=st.integers(1, 100), base_s=seconds, cap_s=seconds, snooze_s=seconds
)


class Extreme(Random):
    """Always the upper or the lower end."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def random(self) -> float:
        return self._share


HIGHEST = Extreme(1.0)


@given(policies, st.integers(-3, 10**9), st.integers())
def test_a_wait_is_between_zero_and_the_cap(policy, attempt, seed):
    assert 0.0 <= backoff_s(attempt, policy, Random(seed)) <= policy.cap_s


@given(policies, st.integers(1, 10**6))
def test_the_longest_wait_never_shrinks_with_the_attempts(policy, attempt):
    assert backoff_s(attempt, policy, HIGHEST) <= backoff_s(attempt + 1, policy, HIGHEST)


@given(policies)
def test_the_first_wait_is_up_to_the_base_and_a_late_one_up_to_the_cap(policy):
    assert backoff_s(1, policy, HIGHEST) == pytest.approx(min(policy.base_s, policy.cap_s))
    assert backoff_s(10**9, policy, HIGHEST) == policy.cap_s


@pytest.mark.parametrize(("attempt", "longest"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60)])
def test_the_longest_wait_doubles_up_to_the_cap(attempt, longest):
    assert backoff_s(attempt, POLICY, HIGHEST) == longest


def test_jitter_is_full_and_comes_from_the_given_randomness():
    assert backoff_s(5, POLICY, Extreme(0.0)) == 0.0
    assert backoff_s(5, POLICY, Extreme(0.25)) == 4.0
    assert backoff_s(5, POLICY, Random(3)) == backoff_s(5, POLICY, Random(3))


@pytest.mark.parametrize("base_s", [sys.float_info.min, 5e-324, 1e-307])
def test_the_smallest_base_that_the_settings_allow_is_no_overflow(base_s):
    policy = RetryPolicy(attempts=4, base_s=base_s, cap_s=60.0, snooze_s=2.0)
    assert 0.0 <= backoff_s(10**6, policy, HIGHEST) <= 60.0


TREE = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, GaelpError)]
#: A new class of error must be given its line here.
DECISIONS = {
    "AnswerUnfit": Failed,
    "AttachmentLost": Failed,
    "BrokerUnavailable": Failed,
    "BudgetExceeded": Failed,
    "Conflict": Failed,
    "DatabaseUnavailable": Failed,
    "DeadLettered": Failed,
    "FirstTokenTimeout": Retry,
    "GaelpError": Failed,
    "IdempotencyConflict": Failed,
    "InvalidInvocation": Failed,
    "InvocationCut": Failed,
    "LoadTimeout": Retry,
    "ModelMissing": Failed,
    "NodeBusy": Snooze,
    "NodeError": Retry,
    "NodeFailed": Retry,
    "NodeUnreachable": Retry,
    "NotAllowed": Failed,
    "NotFound": Failed,
    "NotSignedIn": Failed,
    "PolicyViolated": Failed,
    "QueueFull": Failed,
    "QuotaExceeded": Failed,
    "RequestRefused": Failed,
    "SettingsError": Failed,
    "StreamRestarted": Failed,
    "StreamStalled": Retry,
    "StreamTruncated": Retry,
    "StreamUnavailable": Failed,
}


def test_every_class_of_error_has_a_decision():
    assert {cls.__name__ for cls in TREE} == DECISIONS.keys()


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_an_error_of_the_first_attempt_is_decided_by_its_class(cls):
    assert type(decide(cls("why"), 1, POLICY, Random(1))) is DECISIONS[cls.__name__]


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_after_the_last_attempt_only_a_snooze_goes_on(cls):
    error = cls("why")
    outcome = decide(error, POLICY.attempts, POLICY, Random(1))
    if cls.verdict is Verdict.SNOOZE:
        assert isinstance(outcome, Snooze)
    else:
        assert outcome == Failed(error)


@given(policies, st.integers(1, 200))
def test_a_retry_is_given_exactly_while_attempts_are_left(policy, attempt):
    outcome = decide(NodeFailed("why"), attempt, policy, Random(attempt))
    assert isinstance(outcome, Retry if attempt < policy.attempts else Failed)
    if isinstance(outcome, Retry):
        assert 0.0 <= outcome.after_s <= policy.cap_s


@given(policies, st.integers(1, 10**9), st.none() | st.floats(0.0, 1e6), st.integers())
def test_a_busy_node_is_waited_for_at_least_as_long_as_it_asks(policy, attempt, asked_s, seed):
    outcome = decide(NodeBusy("full", retry_after_s=asked_s), attempt, policy, Random(seed))
    assert isinstance(outcome, Snooze)
    assert outcome.after_s >= (asked_s or 0.0)
    assert 0.5 * policy.snooze_s <= outcome.after_s <= max(asked_s or 0.0, policy.snooze_s)
    assert outcome.why == "full"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), RuntimeError(), TimeoutError("late")])
def test_what_is_not_ours_is_final(error):
    assert decide(error, 1, POLICY, Random(1)) == Failed(error)


def test_a_retry_keeps_the_error_that_caused_it():
    error = NodeFailed("why")
    outcome = decide(error, 1, POLICY, Random(1))
    assert isinstance(outcome, Retry)
    assert outcome.error is error
    assert math.isfinite(outcome.after_s)


# -- by class of error

BY_ERROR = RetryPolicy(
    4, 1.0, 60.0, 2.0, {"NodeFailed": {"attempts": 9, "base_s": 0.5}, "Own": {"cap_s": 3.0}}
)


class Own(Exception):
    """A user's agent's, that may pass."""

    verdict = "retry"
    retry_after_s = None


class OwnFailed(NodeFailed):
    """A class of a class that has a pace."""


@pytest.mark.parametrize(
    ("error", "pace"),
    [
        (errors.NodeUnreachable("x"), (4, 1.0, 60.0)),
        (NodeFailed("x"), (9, 0.5, 60.0)),
        (OwnFailed("x"), (9, 0.5, 60.0)),
        (Own("x"), (4, 1.0, 3.0)),
        (errors.LoadTimeout("x"), (2, 10.0, 60.0)),
        (errors.FirstTokenTimeout("x"), (2, 10.0, 60.0)),
    ],
)
def test_each_class_of_error_has_its_pace(error, pace):
    assert BY_ERROR.pace(error) == pace


def test_what_a_user_sets_counts_more_than_what_is_costly():
    assert RetryPolicy(4, 1.0, 60.0, 2.0, {"LoadTimeout": {"attempts": 7}}).pace(errors.LoadTimeout("x")) == (
        7,
        1.0,
        60.0,
    )
    assert RetryPolicy(1, 1.0, 60.0, 2.0).pace(errors.LoadTimeout("x")).attempts == 1


@given(policies, st.integers(1, 200), st.sampled_from([cls for cls in TREE if cls.verdict is Verdict.RETRY]))
def test_every_error_stops_being_retried_by_its_own_pace(policy, attempt, cls):
    outcome = decide(cls("why"), attempt, policy, Random(attempt))
    assert isinstance(outcome, Retry) is (attempt < policy.pace(cls("why")).attempts)
    if isinstance(outcome, Retry):
        assert 0.0 <= outcome.after_s <= policy.cap_s


def test_an_agents_own_error_is_tried_again_where_it_says_so():
    assert isinstance(decide(Own("x"), 1, POLICY, Random(1)), Retry)
    assert isinstance(decide(Own("x"), 4, POLICY, Random(1)), Failed)


@given(st.floats() | st.integers() | st.text() | st.none(), st.sampled_from(["retry", "snooze"]))
def test_whatever_wait_an_error_asks_for_the_answer_can_be_waited_for(asked_s, verdict):
    error = Own("x")
    error.verdict, error.retry_after_s = verdict, asked_s
    outcome = decide(error, 1, POLICY, Random(1))
    assert 0.0 <= outcome.after_s <= 30 * 86_400
    if isinstance(asked_s, int | float) and 0 <= asked_s <= 30 * 86_400:
        assert outcome.after_s >= asked_s
