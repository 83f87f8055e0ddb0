"""The invocations of a batch's lines in Redis: published, looked at, cleared away. All of it blocks.

Redis holds no more of a batch than what is queued, runs, or ended in the last seconds.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from celery.states import FAILURE, READY_STATES, REVOKED, SUCCESS

from gaelp_tasks.cancellation import request_cancel
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import Refused
from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.batch import LineOutcome
from gaelp_tasks.models.batch_work import Asked, Ended
from gaelp_tasks.tasks.embed import embed
from gaelp_tasks.tasks.invoke import invoke_agent
from gaelp_tasks.tasks.wasted import wasted

__all__ = ["LineTasks", "Redis", "verdict"]

LOOK_BYTES = 8 * 1024**2  #: of results in one look; a longer one comes alone
STOP_S = 30 * 86_400  #: what is queued for a node that is away finds the end of its line for so long
WHOLE = ("stop", "length")
CUT = {
    "deadline": "It was cut at its deadline.",
    "stall": "The model stopped answering.",
    "budget": "The budget was spent.",
    "expired": "It waited for longer than its queue_ttl_s.",
    "cancelled": "It was cancelled.",
}


class Redis(NamedTuple):
    """What is asked of Redis beside the lines."""

    life: str  #: the name of this life of the server; '' where it does not tell
    suspects: int  #: messages that wait for a worker of their own


class LineTasks:
    """Those of one batch. Methods raise BrokerUnavailable, or what redis-py raises."""

    def __init__(self, app: GaelpApp, *, tenant: str) -> None:
        self._app = app
        self._more = {"tenant": tenant} if tenant else {}

    def publish(self, lines: Sequence[Asked]) -> list[Ended]:
        """Publish them; the outcomes of those that are refused."""
        refused = []
        with self._app.unheard():
            for line in lines:
                task = embed if line.embeds else invoke_agent
                try:
                    task.apply_async((), json.loads(line.arguments) | self._more, task_id=line.task_id)
                except InvalidInvocation as error:
                    code = type(error).__name__
                    refused.append(Ended(line.number, LineOutcome.FAILED, code, str(error)))
        return refused

    def ended(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """Celery's record of each that has ended, by id; not all of them where they are long."""
        backend = self._app.backend
        keys = {task_id: backend.get_key_for_task(task_id) for task_id in ids}
        with backend.client.pipeline(transaction=False) as pipe:
            for key in keys.values():
                pipe.strlen(key)
            sizes = dict(zip(ids, pipe.execute(), strict=True))
        found: dict[str, Mapping[str, Any]] = {}
        chosen = list(_within(sizes))
        for task_id, text in zip(chosen, _mget(backend, [keys[one] for one in chosen]), strict=True):
            told = _record(text) if text else {}
            is_void = told.get("status") == SUCCESS and told.get("result") is None
            if told.get("status") in READY_STATES and not is_void:
                found[task_id] = told
        return found

    def wasted(self, ids: Sequence[str]) -> dict[str, int]:
        """Tokens that these, which have ended, have told for nothing."""
        return wasted(self._app, ids)

    def clear(self, ids: Sequence[str]) -> None:
        """Forget all that Redis keeps of these; they were acknowledged long ago."""
        keys, backend = self._app.keys, self._app.backend
        if not ids:
            return
        with backend.client.pipeline(transaction=False) as pipe:
            pipe.unlink(*(backend.get_key_for_task(one) for one in ids))
            pipe.execute()
        with self._app.redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.unlink(
                    *(name(one) for name in (keys.stream, keys.claims, keys.holder, keys.deaths)),
                    *(name(one) for name in (keys.cancel, keys.preempted)),
                )
            pipe.execute()

    def void(self, ids: Sequence[str], *, all_of_them: bool, for_s: int) -> None:
        """The same where a message of an id may still come: for so long it finds a mark, and is dropped.

        `all_of_them`: those too of which Redis keeps no result.
        """
        keys, backend = self._app.keys, self._app.backend
        if not ids:
            return
        with backend.client.pipeline(transaction=False) as pipe:
            for one in ids:
                mark = {"status": SUCCESS, "result": None, "traceback": None, "children": [], "task_id": one}
                pipe.set(backend.get_key_for_task(one), json.dumps(mark), ex=for_s, xx=not all_of_them)
            pipe.execute()
        with self._app.redis.pipeline(transaction=False) as pipe:
            for one in ids:
                pipe.unlink(keys.stream(one), keys.preempted(one))
                pipe.expire(keys.claims(one), for_s)
                pipe.expire(keys.holder(one), for_s)
            pipe.execute()

    def stop(self, ids: Sequence[str]) -> None:
        """Cancel them, queued or running."""
        if ids:
            request_cancel(self._app.redis, self._app.keys, *ids, ttl_s=STOP_S)

    def redis(self) -> Redis:
        """How Redis is."""
        life = ""
        with suppress(Refused):  # its ACL may hold that back
            life = str(self._app.redis.info("server")["run_id"])
        suspects: Any = self._app.redis.llen(self._app.keys.suspects)
        return Redis(life, int(suspects))


def _record(text: Any) -> dict[str, Any]:
    try:
        told = json.loads(text)
        if isinstance(told, dict) and isinstance(told.get("status"), str) and "result" in told:
            return told
    except ValueError:
        pass
    return {"status": FAILURE, "result": {"exc_type": "Unreadable", "exc_message": "Its result is damaged."}}


def _mget(backend: Any, keys: list[str]) -> list[Any]:
    return list(backend.client.mget(keys)) if keys else []


def _within(sizes: Mapping[str, int]) -> Iterator[str]:
    """Those that have a record, as many as LOOK_BYTES allow."""
    total = 0
    for task_id, size_bytes in sizes.items():
        if size_bytes:
            if total and total + size_bytes > LOOK_BYTES:
                return
            total += size_bytes
            yield task_id


def verdict(number: int, told: Mapping[str, Any]) -> Ended:
    """What became of a line, by Celery's record of it."""
    result = told["result"]
    if told["status"] == SUCCESS and isinstance(result, Mapping):
        stop_reason = result.get("stop_reason", "stop")
        text = json.dumps(result)
        if stop_reason in WHOLE:
            return Ended(number, LineOutcome.DONE, result=text)
        outcome = LineOutcome.CANCELLED if stop_reason == "cancelled" else LineOutcome.FAILED
        why = CUT.get(stop_reason, f"It was cut ({stop_reason}).")
        return Ended(number, outcome, "" if outcome is LineOutcome.CANCELLED else stop_reason, why, text)
    if told["status"] == REVOKED:
        return Ended(number, LineOutcome.CANCELLED, why="It was revoked.")
    if not isinstance(result, Mapping):
        return Ended(number, LineOutcome.FAILED, "Unreadable", "Its result is damaged.")
    said = result.get("exc_message")
    parts: Iterable[Any] = said if isinstance(said, list | tuple) else [said]
    why = " ".join(str(part) for part in parts if part) or "It failed."
    return Ended(number, LineOutcome.FAILED, str(result.get("exc_type") or "Failed"), why)
