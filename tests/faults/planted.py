"""Bugs planted one at a time in a copy of the code: each must be caught by the test that is named for it.

    PYTHONPATH=tests .venv/bin/python -m faults.planted [NAME ...]

Exits with status 1 if one is not caught. `docs/reliability.md` lists them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["BUGS", "ROOT", "Bug"]

ROOT = Path(__file__).parents[2]
COPIED = ("gaelp_tasks", "workers", "beat", "tests", "pyproject.toml")
GIVE_UP_S = 180.0

HERE = "tests/integration"
LUA = "workers/gaelp_workers/lua"


class Bug(NamedTuple):
    """One wrong line and the test that notices it."""

    name: str
    file: str
    right: str  #: occurs exactly once in the file
    wrong: str
    test: str  #: as pytest names it


BUGS = (
    Bug(
        "what Redis has lost is not told from what runs there now",
        "gaelp_tasks/tasks/accepted.py",
        "row.publications * CLAIMS_OF_EACH",
        "0",
        f"{HERE}/test_accepting.py::test_an_emptied_redis_loses_nothing_and_nothing_is_there_twice",
    ),
    Bug(
        "who takes an accepted invocation leaves it to the others, too",
        "gaelp_tasks/db/accepted.py",
        "values(next_at=until)",
        "values(next_at=now)",
        f"{HERE}/test_accepting.py::test_what_was_not_published_by_its_request_is_published_by_a_relay_once",
    ),
    Bug(
        "another body under a known key is taken for the same",
        "gaelp_tasks/services/accepting.py",
        "if there.digest == asked.digest:",
        "if True:",
        f"{HERE}/test_accepting.py::test_a_key_gives_the_same_invocation_again_and_another_body_a_conflict",
    ),
    Bug(
        "the fetch notes nobody as the holder",
        f"{LUA}/claim.lua",
        "redis.call('HSET', KEYS[1], tag, record({ id = id, claim = claim, alone = alone or nil }, list, "
        "message))",
        "",
        f"{HERE}/test_leases.py::test_what_is_given_back_stands_in_front_in_its_old_order_byte_for_byte",
    ),
    Bug(
        "no claim number is raised",
        f"{LUA}/claim.lua",
        "local value = redis.pcall('INCR', key)\n",
        "local value = 1\n",
        f"{HERE}/test_claims.py::test_each_claim_raises_the_number_of_the_task",
    ),
    Bug(
        "a result that was told is made again",
        f"{LUA}/claim.lua",
        "result['status'] == 'SUCCESS'",
        "false",
        f"{HERE}/test_claims.py::test_what_has_told_its_result_is_not_run_again",
    ),
    Bug(
        "two messages of one task run at the same time",
        f"{LUA}/claim.lua",
        "return type(tag) == 'string' and redis.call('ZSCORE', KEYS[2], tag)",
        "return false",
        f"{HERE}/test_suspects.py::test_a_second_message_of_a_task_that_runs_waits_until_that_is_over",
    ),
    Bug(
        "what is not due starts at once",
        f"{LUA}/claim.lua",
        "local parked = due and due > now and",
        "local parked = false and",
        f"{HERE}/test_claims.py::test_what_is_not_due_is_parked_and_published_when_it_is",
    ),
    Bug(
        "zones of times are ignored",
        f"{LUA}/claim.lua",
        "seconds = seconds + (sign == '-' and ahead or -ahead)",
        "",
        f"{HERE}/test_claims.py::test_times_are_read_as_python_reads_them",
    ),
    Bug(
        "compressed messages are opened",
        f"{LUA}/claim.lua",
        "if packed ~= nil and packed ~= cjson.null and packed ~= '' then return 'compressed' end",
        "",
        f"{HERE}/test_claims.py::test_what_cannot_run_is_kept_apart_and_harms_nobody",
    ),
    Bug(
        "a poisonous message is tried for ever",
        f"{LUA}/claim.lua",
        "number(ARGV[13] .. id) >= DEATHS",
        "false",
        f"{HERE}/test_suspects.py::test_what_has_seen_two_workers_die_runs_alone_and_after_three_more_it_is_a_dead_letter",
    ),
    Bug(
        "a full pool of one model still takes",
        f"{LUA}/claim.lua",
        "return left > 0 or left == 0 and beyond[queue.pool] < queue.more",
        "return true",
        f"{HERE}/test_claims.py::test_a_full_pool_holds_up_no_other_and_takes_nothing",
    ),
    Bug(
        "the turn of a lower tier takes all that waits",
        f"{LUA}/claim.lua",
        "if queue.kind == 't' and queue.served then return false end",
        "",
        f"{HERE}/test_claims.py::test_one_message_of_what_has_its_turn_goes_before_everything",
    ),
    Bug(
        "a tenant's runs are never counted out",
        f"{LUA}/claim.lua",
        "redis.call('SREM', key, tag)",
        "",
        f"{HERE}/test_tenants.py::test_what_has_ended_or_died_is_counted_out",
    ),
    Bug(
        "a run makes way for its equal",
        "workers/gaelp_workers/preemption.py",
        "other.rank > tier.rank",
        "other.rank >= tier.rank",
        "tests/unit/test_preemption.py::test_an_equal_tier_stays",
    ),
    Bug(
        "a run is preempted for ever",
        "workers/gaelp_workers/preemption.py",
        "        and task.preempted < PREEMPTED_AT_MOST\n",
        "",
        "tests/unit/test_preemption.py::test_some_never_make_way",
    ),
    Bug(
        "slots of lower tiers do not count as free",
        "workers/gaelp_workers/transport.py",
        "room = room._replace(beyond=beyond(leases.running.values(), capacity.models))",
        "pass",
        f"{HERE}/test_preemption.py::test_an_interactive_call_does_not_wait_for_a_background_run_which_goes_on_afterwards",
    ),
    Bug(
        "nobody stops the run whose slot was taken",
        "workers/gaelp_workers/transport.py",
        "                Transport.preempt(tag)\n",
        "                pass\n",
        f"{HERE}/test_preemption.py::test_only_a_strictly_higher_tier_preempts",
    ),
    Bug(
        "lower tiers have no turn",
        "workers/gaelp_workers/turns.py",
        "        return first\n",
        "        return []\n",
        f"{HERE}/test_trickle.py::test_of_two_slots_a_background_run_gets_one_before_all_interactive_calls_are_done",
    ),
    Bug(
        "the local clock rules the leases",
        "gaelp_tasks/lua/sweep.lua",
        "local now = clock[1] * 1000",
        "local now = (clock[1] + 3600) * 1000",
        f"{HERE}/test_leases.py::test_a_renewed_lease_is_not_swept",
    ),
    Bug(
        "the sweep gives back what it goes on holding",
        "gaelp_tasks/lua/sweep.lua",
        "  redis.call('HDEL', KEYS[1], tag)\n  redis.call('ZREM', KEYS[2], tag)\n",
        "  redis.call('ZADD', KEYS[2], now - 1, tag)\n",
        f"{HERE}/test_leases.py::test_an_ended_lease_is_swept_and_its_old_holder_is_told",
    ),
    Bug(
        "the holder of an ended lease is not told",
        "gaelp_tasks/lua/sweep.lua",
        "redis.call('SET', ARGV[2] .. tag, about['id'], 'EX', 3600)",
        "",
        f"{HERE}/test_leases.py::test_an_ended_lease_is_swept_and_its_old_holder_is_told",
    ),
    Bug(
        "who waits for what beat found to be poison is not told",
        "beat/gaelp_beat/sweeper.py",
        "beside(give_up, self._app, task_id, POISON)",
        "pass",
        f"{HERE}/test_beat_sweeper.py::test_who_waits_for_poison_that_a_beat_finds_is_told",
    ),
    Bug(
        "a holder is dead as soon as its connection is missed",
        "gaelp_tasks/sweeping.py",
        "looks > LOOKS",
        "looks > 0",
        f"{HERE}/test_leases.py::test_a_holder_whose_connection_is_gone_loses_its_work_at_once",
    ),
    Bug(
        "who was only slow counts as dead",
        f"{LUA}/renew.lua",
        "redis.pcall('DECR', ARGV[3] .. swept)",
        "1",
        f"{HERE}/test_suspects.py::test_a_holder_that_was_only_slow_is_not_counted_among_the_dead",
    ),
    Bug(
        "what is given back goes to the end of its queue",
        f"{LUA}/give_back.lua",
        "'RPUSH'",
        "'LPUSH'",
        f"{HERE}/test_leases.py::test_what_is_given_back_stands_in_front_in_its_old_order_byte_for_byte",
    ),
    Bug(
        "sorting an inbox loses what another worker sorted meanwhile",
        f"{LUA}/sort.lua",
        "      redis.call('RPUSH', KEYS[i], message)\n",
        "",
        f"{HERE}/test_inboxes.py::test_two_who_sort_the_same_inbox_move_each_message_once",
    ),
    Bug(
        "who cannot renew goes on",
        "workers/gaelp_workers/keeper.py",
        "<= self._leases.ttl_s / 2",
        "<= self._leases.ttl_s * 2",
        f"{HERE}/test_leases.py::test_who_cannot_renew_for_half_a_lease_stops_what_it_runs",
    ),
    Bug(
        "an acknowledgement that could not be said is forgotten",
        "workers/gaelp_workers/leases.py",
        "            self._owed.add(tag)\n",
        "",
        f"{HERE}/test_leases.py::test_an_acknowledgement_that_could_not_be_said_is_said_later",
    ),
    Bug(
        "there is no fence: an earlier run may write behind a later one",
        "gaelp_tasks/streams.py",
        'return f"{stream.claim}-{number}"',
        'return "*"',
        "tests/unit/test_streams.py::test_a_later_claim_fences_the_earlier_one",
    ),
    Bug(
        "an answer that was told is asked of the model again",
        "gaelp_tasks/tasks/settlement.py",
        "    if stream.claim == 1:\n",
        "    if True:\n",
        "tests/unit/test_settlement.py::test_an_answer_that_was_told_is_not_made_again",
    ),
    Bug(
        "the acknowledgement comes before the run",
        "gaelp_tasks/celery_app.py",
        '"task_acks_late": True',
        '"task_acks_late": False',
        "tests/faults/test_claim_faults.py::test_a_killed_workers_run_starts_again_as_soon_as_its_connection_is_missed",
    ),
    Bug(
        "what was cancelled while it was queued starts",
        "gaelp_tasks/tasks/walk.py",
        "    if cancel is not None:\n",
        "    if False:\n",
        "tests/unit/test_walk.py::test_what_was_cancelled_while_queued_never_touches_the_client",
    ),
    Bug(
        "a run that others have taken over before it began calls its model",
        "gaelp_tasks/tasks/walk.py",
        "    raise_overtaken(run, claims)\n    if cancel",
        "    if cancel",
        "tests/unit/test_walk.py::test_who_was_overtaken_before_it_began_calls_no_model",
    ),
    Bug(
        "an answer goes on after what is paid for",
        "gaelp_tasks/tasks/generation.py",
        "self._tally.tokens >= most_tokens",
        "self._tally.tokens > most_tokens",
        "tests/unit/resuming/test_resuming.py::test_tokens_of_earlier_claims_count_against_what_is_paid_for",
    ),
    Bug(
        "a budget is read before it is locked",
        "gaelp_tasks/db/budgets.py",
        "        in_order = asked.order_by(BUDGETS.c.id).with_for_update()\n",
        "        in_order = asked.order_by(BUDGETS.c.id)\n",
        "tests/faults/test_money_faults.py::test_charges_from_many_connections_are_approved_as_often_as_the_budget_has_them",
    ),
    Bug(
        "a settled hold is settled again",
        "gaelp_tasks/services/budgets.py",
        "    if row.state != HoldState.HELD:\n        return False\n    paid",
        "    paid",
        "tests/integration/test_budgets.py::test_what_is_held_is_settled_once_and_the_rest_comes_back",
    ),
    Bug(
        "more than the hold is paid",
        "gaelp_tasks/models/money.py",
        "    paid = min(max(spent_micro, 0), bound_micro)\n",
        "    paid = max(spent_micro, 0)\n",
        "tests/unit/test_money.py::test_what_is_paid_lies_within_the_bound_and_its_lines_add_up_to_it",
    ),
    Bug(
        "a quota is counted while others take from it",
        "gaelp_tasks/db/quotas.py",
        "        locking = asked.with_for_update()\n",
        "        locking = asked\n",
        "tests/integration/test_quotas.py::test_of_many_who_ask_for_the_last_of_it_at_once_one_gets_it",
    ),
)


def copy(folder: Path) -> None:
    """The code as it is."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def plant(bug: Bug, folder: Path) -> None:
    """A copy of the code with the bug in it."""
    copy(folder)
    file = folder / bug.file
    text = file.read_text()
    if text.count(bug.right) != 1:
        raise SystemExit(
            f"«{bug.name}»: {bug.file} has its line {text.count(bug.right)} times; mend the list."
        )
    file.write_text(text.replace(bug.right, bug.wrong))


def passes(folder: Path, *tests: str) -> bool:
    """Whether the tests pass on the code of this folder; the interpreter's own copy of ours is not seen."""
    paths = os.pathsep.join(str(folder / name) for name in (".", "workers", "beat", "tests"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--tb=line", "-p", "no:cacheprovider", *tests],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=GIVE_UP_S,
        check=False,
    )
    if done.returncode > 1:  # neither passed nor failed: pytest itself, or no such test
        raise SystemExit(f"{tests} cannot be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults.planted", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a part of a bug's name; without: all of them"
    )
    wanted = parser.parse_args().names
    bugs = [bug for bug in BUGS if not wanted or any(name in bug.name for name in wanted)]
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        if not passes(Path(folder), *{bug.test for bug in bugs}):
            raise SystemExit("These tests do not pass on the code as it is: mend that first.")
    missed = 0
    for bug in bugs:
        with tempfile.TemporaryDirectory() as folder:
            plant(bug, Path(folder))
            caught = not passes(Path(folder), bug.test)
        missed += not caught
        print(f"{'caught' if caught else 'MISSED'}  {bug.name}  ({bug.test.rpartition('::')[2]})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
