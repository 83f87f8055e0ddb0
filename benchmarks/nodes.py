"""Throughput with one, two and four nodes: whether what they share holds them up.

Each node is a paced server and a `gaelp worker` beside it, both processes of their own. All four live all the
time; who is not measured is cordoned: it announces itself and looks after the queues, and takes nothing. The
queue is filled before: more background jobs wait than the nodes can do.
"""

import asyncio
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from figures import Figure
from mixed_figures import settled
from mixed_load import LIMIT_TOKENS_S, SATURATED_S, SLOTS, Bench, Ours, jobs, quiet
from nodes_figures import Cell, figures_of
from parts import Beside, cpu_s, start_beside

from gaelp_tasks import app, cordons
from gaelp_tasks.demo.stack import Stack
from gaelp_tasks.overview import live_nodes

__all__ = ["FULL", "QUICK", "Plan", "measure_nodes"]

COUNTS = (1, 2, 4)
SIZE = 64  #: tokens of a job, on the average
GIVE_UP_S = 60.0
LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Plan:
    rounds: int
    seconds: float  #: per number of nodes in a round


FULL = Plan(rounds=3, seconds=20.0)
QUICK = Plan(rounds=1, seconds=8.0)


class Field:
    """All nodes, of which some take work."""

    def __init__(self, nodes: Sequence[Beside], session: aiohttp.ClientSession) -> None:
        self._nodes = nodes
        self._benches = {node.name: Bench(session, node.url) for node in nodes}
        self._side = Ours(nodes[0].worker)  # publishes and reads, whoever works
        self._redis_pid = int(app.redis.info("server")["process_id"])

    async def cell(self, count: int, seconds: float, number: int) -> Cell:
        """So many nodes at work; which of them is the turn of the round."""
        at_work = [self._nodes[(number + turn) % len(self._nodes)] for turn in range(count)]
        await self._open([])
        benches = [self._benches[node.name] for node in at_work]
        seen = [len(await bench.record()) for bench in benches]
        name = f"nodes-{count}-{number}-{seconds:g}"
        enough = math.ceil(count * LIMIT_TOKENS_S * (SATURATED_S + seconds) / SIZE) + 2 * count * SLOTS
        published = {self._side.publish(asked): asked for asked in itertools.islice(jobs(SIZE, name), enough)}
        await self._open([node.name for node in at_work])
        await asyncio.sleep(SATURATED_S)
        begun, made, cpu = time.monotonic(), await self._made(benches), self._cpu_s()
        await asyncio.sleep(seconds)
        ended, made_after, cpu_after = time.monotonic(), await self._made(benches), self._cpu_s()
        if self._side.held() <= count * SLOTS:
            raise AssertionError("The nodes ran out of jobs: LIMIT_TOKENS_S is too low.")
        await asyncio.to_thread(self._side.drop)
        for bench in benches:
            await quiet(self._side, bench)
        texts = {job: self._side.text(job) for job in published}
        answers = [(published[job], text) for job, text in texts.items() if text is not None]
        records = [(await bench.record())[before:] for bench, before in zip(benches, seen, strict=True)]
        rows = [row for record in records for row in record]
        by_others = sum(row["made"] for row in rows if name not in row["job"])  # probes
        return Cell(
            nodes=count,
            slots=SLOTS,
            begun=begun,
            ended=ended,
            made=made_after - made - by_others,
            useful_in_all=settled(answers),
            cpu_s=cpu_after - cpu,
            cores=len(os.sched_getaffinity(0)),
            requests=[row for row in rows if name in row["job"]],
        )

    async def _open(self, names: Sequence[str]) -> None:
        """These take work, the others do not."""
        for node in self._nodes:
            if node.name in names:
                cordons.lift(app, node.name)
            else:
                cordons.ask(app, node.name, cordons.Wish.CORDON)
        await eventually(
            lambda: {node.worker for node in live_nodes(app) if not node.closed} == set(names),
            f"{', '.join(names) or 'nobody'} takes work",
        )

    async def _made(self, benches: Sequence[Bench]) -> int:
        return sum([(await bench.made())["made"] for bench in benches])

    def _cpu_s(self) -> float:
        """Of all that works here; this process only waits."""
        pids = [child.pid for node in self._nodes for child in (node.worker, node.server)]
        return sum(map(cpu_s, (*pids, self._redis_pid)))


async def eventually(look: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    until = time.monotonic() + GIVE_UP_S
    while not look():
        if time.monotonic() > until:
            raise TimeoutError(f"Not within {GIVE_UP_S:g} s: {what}.")
        await asyncio.sleep(LOOK_S)


async def measure(nodes: Sequence[Beside], plan: Plan) -> list[dict[int, Cell]]:
    """In each round every number of nodes has its turn, in another order."""
    async with aiohttp.ClientSession() as session:
        field = Field(nodes, session)
        await field.cell(len(nodes), SATURATED_S, -1)  # threads, connections, models in memory
        found = []
        for number in range(plan.rounds):
            order = COUNTS[number % len(COUNTS) :] + COUNTS[: number % len(COUNTS)]
            found.append({count: await field.cell(count, plan.seconds, number) for count in order})
    return found


def measure_nodes(folder: Path, plan: Plan) -> list[Figure]:
    """Servers, workers and Redis are processes of their own; this one publishes before, and then waits."""
    with Stack() as stack:
        nodes = [start_beside(stack, folder, f"node-{number}@bench", slots=SLOTS) for number in range(4)]
        return figures_of(asyncio.run(measure(nodes, plan)))
