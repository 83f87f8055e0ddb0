"""What our model tasks share: checked before they are published, their prompts kept out of sight."""

import inspect
import logging
from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from time import monotonic, time
from typing import Any, ClassVar, NoReturn

from celery import Task, uuid
from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry
from celery.states import FAILURE, REVOKED, SUCCESS
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from gaelp_tasks import attachments, counts
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import lost, unavailable, worded
from gaelp_tasks.errors import AttachmentLost, BrokerUnavailable, InvalidInvocation, InvocationCut, NodeError
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.attachment import REFERENCE, Reference, light, pack
from gaelp_tasks.models.invocation import (
    WITH_ATTACHMENT,
    WITH_BOUND,
    WITHOUT_ATTACHMENT,
    Embedding,
    EmbeddingResult,
    Invocation,
    InvocationResult,
    Tier,
)
from gaelp_tasks.queues import lower_tier, route, step_of, tier_of
from gaelp_tasks.registry import refuse_unknown, shown
from gaelp_tasks.results import InvocationHandle
from gaelp_tasks.retries import Cut, Done, Failed, Outcome, Retry, Snooze
from gaelp_tasks.settings import masked
from gaelp_tasks.streams import StreamFenced
from gaelp_tasks.tasks.idempotency import Asking, delay_s, ended

__all__ = ["FETCHED", "ModelTask", "Reply"]

logger = logging.getLogger(__name__)


class Reply(UserDict[str, Any]):
    """A result mapping that shows no text where Celery prints what a task returned."""

    def __init__(self, result: InvocationResult | EmbeddingResult) -> None:
        super().__init__(result.model_dump(mode="json"))

    def __repr__(self) -> str:
        stop_reason = self.data.get("stop_reason", "stop")
        return f"<{stop_reason}, {self.data['usage']['completion_tokens']} tokens>"

    def __json__(self) -> dict[str, Any]:
        return self.data


POSITIONAL = ("task_id", "producer", "link", "link_error", "shadow")  #: after args and kwargs
WHAT_FOLLOWS = ("chain", "chord", "link", "link_error")
ASKED_AGAIN = "gaelp_asked_again"  #: header of what is known already and published for what follows it
FETCHED = "gaelp_fetched"  #: of a request: the arguments that lay beside its message

ANSWERED_S = 5.0  #: a broker that answered this recently is not asked again
_answered: dict[str, float] = {}


def _broker_answers(app: GaelpApp) -> None:
    """Ask the broker before publishing: Celery's result backend would first try for twenty seconds."""
    url, now = app.settings.broker_url, monotonic()
    if now - _answered.get(url, -ANSWERED_S) >= ANSWERED_S:
        with worded(app.settings):
            app.redis.ping()
        _answered[url] = now


def _whose(accepted: Invocation | Embedding) -> dict[str, str]:
    """The header by which workers count the runs of a tenant (GAELP_TENANT_MAX_RUNNING)."""
    tenant = accepted.tenant if isinstance(accepted, Invocation) else None
    return {} if tenant is None else {"gaelp_tenant": tenant}


def _way(accepted: Invocation | Embedding) -> dict[str, Any]:
    """How it travels: straight to the queue of its tier and model, by priority.

    The queue is no declared one of the app: nothing is to be bound in Redis, and no worker consumes it anew.
    """
    name = route(accepted.tier, accepted.model, embeds=isinstance(accepted, Embedding))
    return {
        "queue": Queue(name, Exchange(""), routing_key=name),  # type: ignore[no-untyped-call]
        "exchange": "",
        "routing_key": name,
        "priority": step_of(accepted.priority),
        "declare": (),
    }


@lru_cache(maxsize=64)
def _signature(run: Callable[..., Any]) -> inspect.Signature:
    """Reading it takes longer than all else that is checked of a call."""
    return inspect.signature(run)


class ModelTask(Task):
    """Base of `gaelp.invoke_agent` and `gaelp.embed`."""

    abstract = True
    Request = "gaelp_workers.request:Request"
    max_retries = None  # our policy counts, not Celery's
    parse: ClassVar[Callable[..., Invocation | Embedding]]

    def AsyncResult(self, task_id: str, **_: Any) -> InvocationHandle:  # noqa: N802  Celery's name
        """The handle of an invocation, with `stream`, `astream` and `cancel`."""
        return InvocationHandle(task_id, backend=self.backend, task_name=self.name, app=self.app)

    def accept(
        self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, queue: str | None
    ) -> Invocation | Embedding:
        """Check a call; the queue may decide the tier. Raises InvalidInvocation."""
        given = self._bound(args, kwargs)
        asked = given.get("tier")
        if asked is not None and asked not in list(Tier):
            raise InvalidInvocation(f"tier: {shown(asked)} is none of {', '.join(Tier)}.")
        given["tier"] = lower_tier(None if asked is None else Tier(asked), queue)
        accepted = type(self).parse(given, max_prompt_bytes=self.app.settings.most_prompt_bytes)
        if isinstance(accepted, Invocation):
            refuse_unknown(accepted, self.app.settings)
        return accepted

    def _bound(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        try:
            return _signature(self.run).bind(*(args or ()), **(kwargs or {})).arguments
        except TypeError as error:
            raise InvalidInvocation(f"{self.name}: {error}.") from None

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG002  Celery's signature
        """Refuse arguments that the task does not have; Celery would fail with a TypeError."""
        self._bound(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Celery's apply_async, after the call was checked.

        With an idempotency key it may wait for 2 s where another caller died while it published. Raises
        InvalidInvocation before anything is published, BrokerUnavailable when Redis does not answer.
        """
        options |= zip(POSITIONAL, more, strict=False)
        queue = options.get("queue")
        name = getattr(queue, "name", queue) or options.get("routing_key")
        accepted = self.accept(args, kwargs, name)
        bounded = getattr(accepted, "most_tokens", None) is not None
        version = WITH_BOUND if bounded else WITHOUT_ATTACHMENT
        headers = {"gaelp_version": version, "gaelp_published_at": time()}
        options["headers"] = headers | (options.get("headers") or {}) | _whose(accepted)
        options.pop("priority", None)  # Celery's own; ours is an argument
        if name is None or tier_of(name):
            options |= _way(accepted)
        asking = self._asking(accepted, options)
        if not self.app.conf.task_always_eager:
            _broker_answers(self.app)
            if asking is not None:
                return self._publish_once(accepted, asking, options)
        elif asking is not None:  # a second run finds the first one's answer
            asking.check()
        return self._publish(accepted, options)

    def _asking(self, accepted: Invocation | Embedding, options: dict[str, Any]) -> Asking | None:
        """What the idempotency key asks for, None without one; settles the id. Raises InvalidInvocation."""
        given = options.get("task_id")
        if not isinstance(accepted, Invocation) or accepted.idempotency_key is None:
            return None
        if given is not None and given == self.request.id:
            return None  # a run that publishes itself again
        asking = Asking(
            self.app.redis,
            self.app.keys,
            accepted,
            result_ttl_s=self.app.settings.result_ttl_s,
            delay_s=delay_s(options, time()),
            status=lambda task_id: self.backend.get_task_meta(task_id, cache=False)["status"],
        )
        if given is None or given == asking.id:
            options["task_id"] = asking.id
            return asking
        if self.app.current_worker_task is None:
            raise InvalidInvocation(
                f"task_id: the idempotency_key makes the id {asking.id}; leave task_id out, and give key and "
                "tenant where the signature is made."
            )
        return None  # the step of a plain sender's chain: its id was told long ago

    def _publish_once(self, accepted: Invocation | Embedding, asking: Asking, options: dict[str, Any]) -> Any:
        """Publish it unless it is known. Raises IdempotencyConflict."""
        with worded(self.app.settings):
            is_new = asking.begin()
            if is_new:
                self._forget_failure(asking.id)
        if not is_new:
            if not any(options.get(name) for name in WHAT_FOLLOWS):
                return self.AsyncResult(asking.id)
            options["headers"] |= {ASKED_AGAIN: True}  # what follows goes on from the first one's answer
        sent = self._publish(accepted, options)
        sent.is_rerun = asking.is_rerun
        if is_new:
            with worded(self.app.settings):
                asking.done()
        return sent

    def _forget_failure(self, task_id: str) -> None:
        """What a failed run left would be told again."""
        if self.backend.get_task_meta(task_id, cache=False)["status"] in {FAILURE, REVOKED}:
            self.backend.forget(task_id)
            self.app.redis.delete(self.app.keys.stream(task_id))

    def _publish(self, accepted: Invocation | Embedding, options: dict[str, Any]) -> Any:
        given, reference = self._attached(accepted.wire(), options)
        try:
            sent = super().apply_async(
                (),
                given,
                argsrepr="()",
                kwargsrepr=accepted.summary(),
                **options,
            )
        except OperationalError as error:
            raise BrokerUnavailable(
                f"Redis at {masked(self.app.settings.broker_url)} does not take the invocation ({error})."
            ) from error
        if reference is not None:
            with worded(self.app.settings):
                attachments.keep(self.app.redis, self.app.keys, sent.id, reference)
        return sent

    def _attached(
        self, given: dict[str, Any], options: dict[str, Any]
    ) -> tuple[dict[str, Any], Reference | None]:
        """What the message carries, and the reference to what was laid beside it just now.

        Raises InvalidInvocation, BrokerUnavailable.
        """
        app, headers = self.app, options["headers"]
        if headers.pop(REFERENCE, None) is not None and (again := self._reference(options)) is not None:
            headers[REFERENCE] = again
            return light(given), None
        if app.conf.task_always_eager:
            return given, None
        packed = pack(given, above_bytes=int(app.settings.reference_bytes))
        if packed.attachment is None:
            return given, None
        most_bytes = app.settings.most_attachment_bytes
        if len(packed.attachment) > most_bytes:
            raise InvalidInvocation(
                f"Prompt and options take {len(packed.attachment):,} bytes as JSON and the limit is "
                f"{most_bytes:,} (four times GAELP_MAX_PROMPT_BYTES)."
            )
        options["task_id"] = options.get("task_id") or uuid()
        with worded(app.settings):
            reference = attachments.put(app.redis, app.keys, options["task_id"], packed.attachment)
        version = WITH_BOUND if "most_tokens" in given else WITH_ATTACHMENT
        headers |= {REFERENCE: reference.model_dump(), "gaelp_version": version}
        return packed.given, reference

    def _reference(self, options: Mapping[str, Any]) -> Any:
        """The reference of the request under way, where that publishes itself again."""
        request = self.request
        is_it = request.id is not None and options.get("task_id") == request.id
        return request.get(REFERENCE) if is_it else None

    def perform(self, given: Mapping[str, Any], make: Callable[..., Any]) -> Reply:
        """Run the walk for what arrived, on the loop of this process; the thread only keeps the seat.

        `make(run, asked, resources)` builds the work. Raises what Celery must see: InvalidInvocation, Retry,
        Reject, Ignore, or what the run failed with.
        """
        from gaelp_tasks.runtime import shared_runtime  # noqa: PLC0415  only a running task needs what these
        from gaelp_tasks.tasks.resources import shared_resources  # noqa: PLC0415  bring
        from gaelp_tasks.tasks.walk import Run, walk  # noqa: PLC0415

        request = self.request
        if request.get(ASKED_AGAIN) and (answer := self._stored(request.id)) is not None:
            return self.deliver(answer)
        if request.called_directly and self.app.current_worker_task is not None:
            raise InvalidInvocation(
                f"{self.name} cannot run inside another task, as map, starmap and chunks would have it: "
                "publish each call (delay, or a group of signatures)."
            )
        if (reference := request.get(REFERENCE)) is not None:
            try:
                given = {**given, **self._fetched(reference)}
            except AttachmentLost:
                if (answer := self._stored(request.id)) is None:
                    raise
                return self.deliver(answer)  # under another message of its retry, which took it along
        queue = (request.delivery_info or {}).get("routing_key")
        at = shared_resources()
        invocation_id = request.id or uuid()
        button = at.runs.enter(invocation_id)
        try:
            run = Run(
                id=invocation_id,
                asked=self.accept((), given, queue),
                attempt=(request.retries or 0) + 1,
                published_at=request.get("gaelp_published_at"),
                cancellation=button,
                claim=request.get("gaelp_claim"),
            )
            outcome = shared_runtime().run(walk(run, make(run, run.asked, at), at))
        except StreamFenced:
            counts.count(self.app, counts.FENCED)
            logger.warning("Invocation %s went on elsewhere: what was late here was refused.", invocation_id)
            raise Ignore from None
        finally:
            at.runs.leave(invocation_id, button)
        return self.deliver(outcome)

    def _fetched(self, told: Any) -> dict[str, Any]:
        """The arguments that lie beside the message. Raises AttachmentLost, BrokerUnavailable, Reject."""
        app, request = self.app, self.request
        try:
            with worded(app.settings):
                found = attachments.fetch(
                    app.redis,
                    app.keys,
                    request.id,
                    Reference.model_validate(told),
                    most_bytes=app.settings.most_attachment_bytes,
                )
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, lost):
                raise Reject(error, requeue=True) from error
            raise
        request.update({FETCHED: found})
        return found

    def _stored(self, task_id: str) -> Done | Cut | None:
        """The outcome that Celery's result tells, None where there is none yet."""
        meta = self.backend.get_task_meta(task_id, cache=False)
        if meta["status"] != SUCCESS:
            return None
        kind = EmbeddingResult if "embeddings" in meta["result"] else InvocationResult
        result = kind.model_validate(meta["result"])
        state = state_of(SUCCESS, stop_reason=result.stop_reason, in_queue=False)
        return Done(result) if state is State.DONE else Cut(result)

    def deliver(self, outcome: Outcome) -> Reply:
        """Tell Celery what became of the run: the reply, or the exception that Celery knows it by."""
        match outcome:
            case Done(result):
                self.key_ends(self.request.id, self.request.kwargs)
                return Reply(result)
            case Cut(result):
                self.key_ends(self.request.id, self.request.kwargs)
                self._end_what_follows(result)
                return Reply(result)
            case Retry(after_s, error):
                self._again(after_s, error, spent=1)
            case Snooze(after_s=0, why=why):
                raise Reject(why, requeue=True)
            case Snooze(after_s, why):
                self._again(after_s, NodeError(why), spent=0)
            case Failed(error):
                raise error
        raise AssertionError(outcome)  # _again raised, and there are no other outcomes

    def on_failure(
        self,
        exc: BaseException,  # noqa: ARG002  Celery's signature
        task_id: str,
        args: Sequence[Any],  # noqa: ARG002
        kwargs: Mapping[str, Any],
        einfo: Any,  # noqa: ARG002
    ) -> None:
        """It may be asked for again."""
        self.key_ends(task_id, kwargs)

    def key_ends(self, task_id: str, kwargs: Mapping[str, Any] | None) -> None:
        """An idempotency key is kept as long as the result, which Celery stores next or has just stored."""
        if kwargs and kwargs.get("idempotency_key") is not None:
            with suppress(*unavailable):  # it then lives longer than it must
                ended(self.app.redis, self.app.keys, task_id, result_ttl_s=self.app.settings.result_ttl_s)

    def _end_what_follows(self, cut: InvocationResult | EmbeddingResult) -> None:
        """Nothing goes on from partial text: later steps of a chain and the body of a chord fail at once.

        Without that they would wait for ever, for Celery knows this task as one that succeeded.
        """
        request = self.request
        error = InvocationCut(
            f"Invocation {cut.id} was cut ({cut.stop_reason}); its result holds the partial text, and "
            "nothing goes on from it."
        )
        chain, request.chain, request.callbacks = request.chain, None, None
        self.backend._fail_chain(chain, error)  # noqa: SLF001  what Celery does after a failed step
        if request.chord:
            # a header with groups inside would be joined from the stored results, and ours is no failure
            self.backend.delete_group(request.group)
            self.backend.on_chord_part_return(request, FAILURE, error)
            request.chord = None

    def _again(self, after_s: float, error: Exception, *, spent: int) -> NoReturn:
        """Publish the same message again, due in `after_s`; Celery's own retry() would always spend one."""
        request = self.request
        beside = request.get(FETCHED)
        whole = {**request.kwargs, **beside} if beside else None
        message = self.signature_from_request(
            request, kwargs=whole, countdown=after_s, retries=request.retries + spent
        )
        if request.is_eager:
            raise CeleryRetry(exc=error, when=after_s, is_eager=True, sig=message)
        try:
            message.apply_async()
        except BrokerUnavailable as unavailable:
            raise Reject(unavailable, requeue=True) from unavailable
        raise CeleryRetry(exc=error, when=after_s, sig=message)
