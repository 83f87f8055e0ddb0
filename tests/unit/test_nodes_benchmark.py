"""The nodes benchmark: its arithmetic, on servers' records that were made up."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # scripts of one folder

from nodes_figures import Cell, figures_of


def row(begun_at, ended_at, *, made=64, gone=False):
    return {"begun_at": begun_at, "ended_at": ended_at, "made": made, "gone": gone}


def full(nodes, *, job_s=0.5, slots=4, seconds=20.0):
    """Every slot is taken all the time, from 5 s before what counts to 5 s after it."""
    jobs = int((seconds + 10) / job_s)
    rows = [
        row(95 + number * job_s, 95 + (number + 1) * job_s)
        for number in range(jobs)
        for _ in range(nodes * slots)
    ]
    made = round(nodes * slots * 64 * seconds / job_s)
    useful = sum(one["made"] for one in rows)
    return Cell(
        nodes=nodes,
        slots=slots,
        begun=100.0,
        ended=100.0 + seconds,
        made=made,
        useful_in_all=useful,
        cpu_s=4.0,
        cores=2,
        requests=rows,
    )


@given(st.sampled_from([1, 2, 4]), st.sampled_from([0.25, 0.5, 1.0]))
def test_busy_slots_are_counted_as_busy_and_their_tasks_once(nodes, job_s):
    cell = full(nodes, job_s=job_s)
    assert cell.tasks_s == pytest.approx(nodes * 4 / job_s)
    assert cell.useful_tokens_s == pytest.approx(64 * nodes * 4 / job_s)
    assert cell.taken == pytest.approx(1.0)
    assert cell.cpu == pytest.approx(0.1)


def test_what_is_under_way_never_began_or_was_left_is_no_task():
    rows = [row(101.0, None), row(None, None, made=0), row(101.0, 103.0, gone=True), row(90.0, 99.0)]
    cell = replace(full(1), requests=[*rows, row(110.0, 115.0)])
    assert cell.tasks_s == pytest.approx(1 / 20)
    assert cell.taken == pytest.approx((19 + 2 + 5) / (4 * 20))


def test_tokens_that_were_thrown_away_count_against_it():
    cell = full(1)
    wasteful = replace(cell, requests=[*cell.requests, row(101.0, 102.0, made=40, gone=True)])
    assert wasteful.wasted == 40
    assert wasteful.useful_tokens_s == pytest.approx(cell.useful_tokens_s - 40 / 20)


def test_a_ratio_is_taken_within_its_round_and_judged_by_the_median():
    half = [cells | {4: full(4, job_s=1.0)} for cells in ({1: full(1), 2: full(2)},)]
    figures = {figure.name: figure for figure in figures_of([*half, *half, {n: full(n) for n in (1, 2, 4)}])}
    assert figures["2 nodes / 2 x 1 node: tasks"].rounds == pytest.approx((1.0, 1.0, 1.0))
    four = figures["4 nodes / 4 x 1 node: useful tokens"]
    assert (four.rounds, four.met) == (pytest.approx((0.5, 0.5, 1.0)), False)
    assert figures["2 nodes / 2 x 1 node: useful tokens"].met
    assert figures["1 node: slots taken"].met is None
