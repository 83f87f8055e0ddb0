"""What Redis still keeps of invocations that are over, and taking it away: texts must not outlive a purge.

What is held, parked or on its way to an end is left alone: to take its record or its stream would have it run
again.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from gaelp_tasks import attachments, dead_letters
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import worded
from gaelp_tasks.lifecycle import TERMINAL, State, state_of
from gaelp_tasks.streams import End, parse

__all__ = ["Cleared", "clear"]


class Cleared(NamedTuple):
    """What became of those that were named."""

    gone: set[str]  #: something of these was there, and is gone
    going_on: set[str]  #: these are not over: all of it stays


def clear(app: GaelpApp, invocation_ids: Collection[str]) -> Cleared:
    """Take away results, streams, attachments and dead letters of these. Raises BrokerUnavailable.

    Afterwards they may be asked for again, also under their idempotency keys.
    """
    names = set(invocation_ids)
    cleared = Cleared(set(), set())
    if not names:
        return cleared
    with worded(app.settings):
        letters = _letters(app, names)
        beside = attachments.left_of(app.redis, app.keys, names)
        for name in names:
            if _goes_on(app, name, is_dead=name in letters, has_attachment=name in beside):
                cleared.going_on.add(name)
            elif _clear(app, name, letters.get(name, ()), beside.get(name, ())):
                cleared.gone.add(name)
    return cleared


def _clear(app: GaelpApp, name: str, letters: Iterable[str], beside: Iterable[str]) -> bool:
    """Whether something was there."""
    state, is_mark = _told(app, name)
    there = dead_letters.purge(app, letters)
    if state in TERMINAL and not is_mark:
        app.backend.forget(name)
        there += 1
    there += app.redis.unlink(app.keys.stream(name), *beside)
    if there:
        app.redis.delete(app.keys.asked(name))
    return bool(there)


def _goes_on(app: GaelpApp, name: str, *, is_dead: bool, has_attachment: bool) -> bool:
    """Whether a worker has it, it waits to be due, or there is something of it and no end."""
    tag: Any = app.redis.get(app.keys.holder(name))
    if tag is not None and app.redis.hexists(app.keys.unacked, tag):
        return True
    if app.redis.zscore(app.keys.parked, name) is not None:
        return True
    if is_dead or _told(app, name)[0] in TERMINAL:
        return False
    last: Any = app.redis.xrevrange(app.keys.stream(name), count=1)
    return not isinstance(parse(*last[0]), End) if last else has_attachment


def _letters(app: GaelpApp, names: Collection[str]) -> dict[str, list[str]]:
    """The ids of their dead letters, by theirs."""
    found: dict[str, list[str]] = {}
    for letter in dead_letters.listed(app, most=dead_letters.count(app)):
        if letter.task_id in names:
            found.setdefault(letter.task_id, []).append(letter.id)
    return found


def _told(app: GaelpApp, name: str) -> tuple[State, bool]:
    """What its record says, and whether that is the empty mark by which a late message is dropped."""
    meta = app.backend.get_task_meta(name, cache=False)
    state = state_of(meta["status"], stop_reason=None, in_queue=False)
    return state, state is State.DONE and meta.get("result") is None
