"""One key, one invocation: who publishes, who only gets the handle, and who is refused.

Three steps of plain commands: note the digest of what is asked, publish, mark it as published. Redis keeps
their order, so a mark never outlives its message. Whoever finds a note without its mark waits for it, and
publishes itself when none comes: the first publisher may have died in between. Should it only have been slow,
the message is there twice, and the second run finds the first one's answer.
"""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import sha256
from time import monotonic, sleep
from typing import Any
from uuid import UUID, uuid4, uuid5

from celery.states import FAILURE, PENDING, REVOKED

from gaelp_tasks.connections import SyncRedis
from gaelp_tasks.errors import IdempotencyConflict
from gaelp_tasks.keys import Keys
from gaelp_tasks.models.invocation import Invocation

__all__ = ["Asking", "delay_s", "digest_of", "ended", "id_of"]

SPACE = UUID("6f2a51c0-94d8-5b0e-8a53-0e4b7d1f9c26")  #: of our keys; another one would make other ids
PUBLISHED = "published"
PATIENCE_S = 2.0  #: for a publisher between its two steps
LOOK_S = 0.01
WAITS_S = 7 * 86_400.0  #: how long an invocation may be queued and retried beside the life of its result
MARGIN_S = 60.0  #: a key outlives its result by this; one with less left has none any more
ASIDE = {"idempotency_key", "tenant", "metadata"}  #: the first two are in the id, the last asks for nothing


def id_of(key: str, tenant: str | None) -> str:
    """The task id of a key; no tenant is another one than every tenant with a name."""
    return str(uuid5(SPACE, json.dumps([tenant, key])))


def digest_of(asked: Invocation) -> str:
    """A digest of all that changes what is asked for; a default that is given counts as not given."""
    body = asked.model_dump(mode="json", exclude_defaults=True, exclude=ASIDE)
    return sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def ended(redis: SyncRedis, keys: Keys, invocation_id: str, *, result_ttl_s: float) -> None:
    """Its result is about to be stored: forget the key with it. Raises what redis-py raises."""
    redis.pexpire(keys.asked(invocation_id), int((result_ttl_s + MARGIN_S) * 1000))


class Asking:
    """One caller's way through the three steps. Raises what redis-py raises.

    `status` tells Celery's state of the invocation; `delay_s` is how long it will not be due.
    """

    def __init__(
        self,
        redis: SyncRedis,
        keys: Keys,
        asked: Invocation,
        *,
        result_ttl_s: float,
        delay_s: float,
        status: Callable[[str], str],
        clock: Callable[[], float] = monotonic,
        pause: Callable[[float], None] = sleep,
    ) -> None:
        self.key = asked.idempotency_key or ""
        self.id = id_of(self.key, asked.tenant)
        self.is_rerun = False  #: it was asked for before
        self._redis = redis
        self._place = keys.asked(self.id)
        self._digest = digest_of(asked)
        self._note = f"{self._digest} {uuid4().hex}"
        self._life_ms = int((result_ttl_s + WAITS_S + delay_s) * 1000)
        self._status = status
        self._clock = clock
        self._pause = pause

    def check(self) -> None:
        """Raises IdempotencyConflict where the key belongs to another body."""
        self._compare(self._redis.get(self._place))

    def begin(self) -> bool:
        """True: publish it; False: it is accepted, and its answer comes or is there.

        What failed is published again, what has an answer is not, also one that was cut. Raises
        IdempotencyConflict.
        """
        seen, since = "", 0.0
        while not self._redis.set(self._place, self._note, nx=True, px=self._life_ms):
            there: Any = self._redis.get(self._place)
            if there is None:
                continue
            if self._compare(there) == PUBLISHED:
                if not self._is_over():
                    return False
            elif there != seen:
                seen, since = there, self._clock()
                continue
            elif self._clock() - since < PATIENCE_S:
                self._pause(LOOK_S)
                continue
            if self._replace(there, self._note, px=self._life_ms):
                self.is_rerun = True
                break
        return True

    def done(self) -> None:
        """It is published. Somebody who lost patience may have done the same; then the mark is theirs."""
        self._replace(self._note, f"{self._digest} {PUBLISHED}", keepttl=True)  # its run may have ended

    def _compare(self, there: Any) -> str:
        digest, _, mark = (there or self._note).partition(" ")
        if digest != self._digest:
            raise IdempotencyConflict(
                f"idempotency_key: '{self.key}' stands for invocation {self.id}, which asks for something "
                "else: repeat that call as it was, or take another key."
            )
        return str(mark)

    def _is_over(self) -> bool:
        """Whether nobody will ever tell an answer: it failed, or its result was forgotten."""
        status = self._status(self.id)
        if status == PENDING:
            left_ms: Any = self._redis.pttl(self._place)
            return bool(left_ms <= MARGIN_S * 1000)
        return status in {FAILURE, REVOKED}

    def _replace(self, there: str, value: str, **how: Any) -> bool:
        def step(pipe: Any) -> bool:
            found = pipe.get(self._place)
            pipe.multi()
            if found == there:
                pipe.set(self._place, value, **how)
            return bool(found == there)

        # its stubs know no function that answers
        return bool(self._redis.transaction(step, self._place, value_from_callable=True))  # type: ignore[arg-type]


def delay_s(options: Mapping[str, Any], now: float) -> float:
    """Seconds until a call with these options is due, 0 for at once; `now` in Unix seconds."""
    if options.get("countdown") is not None:
        return max(0.0, float(options["countdown"]))
    eta = options.get("eta")
    return max(0.0, eta.timestamp() - now) if isinstance(eta, datetime) else 0.0
