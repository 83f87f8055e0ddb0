"""What waits, what is parked and what is held, as `gaelp doctor --cluster` judges it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cli.findings import Check, listed
from gaelp_tasks.connections import worded
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.queues import ANY, EMBED, INBOXES
from gaelp_tasks.survey import INBOX, Figures, Load
from gaelp_tasks.waiting import Waiting, nobody

__all__ = ["held", "leases", "parked", "queues", "suspects", "waits"]

LATE_S = 10.0  #: what is due, and a lease that has ended, is seen to by somebody within a second
#: how long the oldest may wait in a tier; the same in docker/prometheus/alerts.yaml
LONG_S = {"interactive": 60.0, "batch": 3600.0, "background": 21_600.0}


def queues(figures: Figures) -> Iterator[Check]:
    """What waits can be taken by somebody."""
    waiting = {place: load for place, load in figures.loads.items() if load.queued}
    served = 0
    for (tier, model), load in waiting.items():
        nameless = {INBOX: tier, ANY: f"{tier}.{ANY}", EMBED: f"{tier}.{EMBED}"}
        asked = Waiting(
            queue=nameless.get(model, f"{tier}.{model}"),
            position=1,
            higher=0,
            model="" if model in nameless else model,
            embeds=model == EMBED,
        )
        why = nobody(asked, figures.nodes)
        if why:
            finding = f"{load.queued:,} wait, the oldest for {load.oldest_s:,.0f} s. {why}"
            yield Check(
                f"queue {asked.queue}", "fail", finding.rstrip("."), "`gaelp show ID` tells it of one."
            )
        else:
            served += load.queued
    if not waiting:
        yield Check("queues", "ok", "nothing waits")
    elif served:
        yield Check("queues", "ok", f"{served:,} wait where some node takes them")


def waits(figures: Figures) -> Iterator[Check]:
    """How long the oldest of each tier and model has waited."""
    for tier in INBOXES:
        loads = {model: load for (its, model), load in figures.loads.items() if its == tier and load.queued}
        yield _longest(tier, loads)


def _longest(tier: str, loads: Mapping[str, Load]) -> Check:
    if not loads:
        return Check(f"wait {tier}", "ok", "nothing waits")
    by_age = sorted(loads.items(), key=lambda one: -one[1].oldest_s)
    finding = f"the oldest: {listed([f'{load.oldest_s:,.0f} s ({model})' for model, load in by_age])}"
    if by_age[0][1].oldest_s <= LONG_S[tier]:
        return Check(f"wait {tier}", "ok", finding)
    advice = "`gaelp show ID` says why one waits. Add slots or nodes, or move work to a lower tier."
    return Check(f"wait {tier}", "warn", f"{finding}; more than {LONG_S[tier]:,.0f} s is long", advice)


def parked(app: GaelpApp, now_s: float) -> Check:
    """What is due is published."""
    with worded(app.settings):
        late: Any = app.redis.zcount(app.keys.parked, "-inf", int((now_s - LATE_S) * 1000))
    if not late:
        return Check("parked", "ok", "nothing is overdue")
    finding = f"{late:,} messages have been due for more than {LATE_S:g} s, and nobody publishes them"
    return Check("parked", "fail", finding, "Every worker and beat does: start one, or look into their logs.")


def suspects(number: int) -> Check:
    """Messages that have seen workers die."""
    if not number:
        return Check("suspects", "ok", "none")
    finding = f"{number:,} messages have seen two workers die, and wait to run alone"
    return Check("suspects", "warn", finding, "Find out why workers die: docs/operating.md, Dead letters.")


def held(app: GaelpApp) -> dict[str, float]:
    """What is held, by the names of its leases, and until when: Unix time by Redis' clock."""
    with worded(app.settings):
        told: Any = app.redis.zrange(app.keys.leases, 0, -1, withscores=True)
    return {tag: end_ms / 1000 for tag, end_ms in told}


def leases(
    before: Mapping[str, float], after: Mapping[str, float], nodes: Sequence[NodeSnapshot], now_s: float
) -> Check:
    """What is held at both looks is held by somebody who is announced, and whose lease lives."""
    staying = {tag: end_s for tag, end_s in after.items() if tag in before}
    ended = sum(end_s < now_s - LATE_S for end_s in staying.values())
    if ended:
        finding = f"the leases of {ended:,} messages ended over {LATE_S:g} s ago, and nobody frees them"
        return Check(
            "leases", "fail", finding, "Every worker and beat does: start one, or look into their logs."
        )
    strange = Counter(tag.partition("|")[0] for tag in staying) - Counter()
    for one in nodes:
        strange.pop(one.holder, None)
    if strange and all(one.holder for one in nodes):
        holders = listed(sorted(strange))
        finding = f"{strange.total():,} messages are held by somebody who announces no node ({holders})"
        advice = (
            "It lives and hangs: `redis-cli client list | grep gaelp:` tells where. End it; others take over."
        )
        return Check("leases", "warn", finding, advice)
    return Check("leases", "ok", f"{len(after):,} messages are held, all by workers that are announced")
