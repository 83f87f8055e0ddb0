"""Tell the history what has ended here, before the result is stored.

A worker that dies in between leaves the message to another one, which tells the same again.
"""

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from time import sleep
from typing import Any

from celery import bootsteps, signals
from celery.exceptions import Ignore, Reject, Retry
from celery.states import FAILURE, SUCCESS

from gaelp_tasks import endings, errors
from gaelp_tasks.asked import arguments, asked_for
from gaelp_tasks.connections import Full, Replica, Trouble, connect, lost
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.ending import Ending
from gaelp_tasks.tasks.base import FETCHED, ModelTask

__all__ = ["Recording", "ended", "unread", "until_told", "watch"]

logger = logging.getLogger(__name__)

ANSWER_S = 2.0
AGAIN_S = 0.5
LATER = (*lost, Full, Replica)  #: it refuses now, and will not later
TOLD = "gaelp_told"  #: of a request: its run tells its end
FACTS = ("id", "agent", "model", "node", "tier", "priority", "stop_reason", "attempts")


def ended(task: str, request: Any, state: str, told: Any, *, text_bytes: int) -> Ending | None:
    """The end of a run, by what Celery says of it; None where it will run again, or elsewhere.

    `told` is what the task returned or raised. Prompt and answer are kept up to `text_bytes` each; 0: none.
    """
    given = arguments(request)
    common = _common(task, request, given, text_bytes)
    if state == SUCCESS:
        facts = {name: told[name] for name in FACTS if name in told}
        answer = told.get("text")
        return Ending.model_validate(
            {
                **common,
                **facts,
                **told["usage"],
                **told["timings"],
                "state": state_of(SUCCESS, stop_reason=told["stop_reason"], in_queue=False),
                "text": _cut(answer, text_bytes) if isinstance(answer, str) else None,
            }
        )
    if state == FAILURE:
        attempts = (request.retries or 0) + 1
        failed = {"state": State.FAILED, "error": in_words(told), "attempts": attempts}
        return Ending.model_validate({**common, **asked_for(task, request, given), **failed})
    return None


def unread(task: str, request: Any, *, text_bytes: int) -> Ending:
    """The end of a message that Celery dropped unread, because it came after its `expires`."""
    given = arguments(request)
    end = {"state": State.CUT, "stop_reason": "expired"}
    return Ending.model_validate(
        {**_common(task, request, given, text_bytes), **asked_for(task, request, given), **end}
    )


def in_words(error: object) -> str:
    """Class and sentence of an error; the class alone where it is not ours, for it may repeat a prompt."""
    name = type(error).__name__
    return f"{name}: {error}" if hasattr(errors, name) else name


def _common(task: str, request: Any, asked: Mapping[str, Any], text_bytes: int) -> dict[str, Any]:
    tenant = asked.get("tenant")
    return {
        "id": str(request.id),
        "task": task,
        "tenant": tenant if isinstance(tenant, str) else "",
        "worker": str(request.hostname or ""),
        "claims": request.get("gaelp_claim") or 0,
        "prompt": _cut(_prompt({**asked, **(request.get(FETCHED) or {})}), text_bytes),
    }


def _prompt(asked: Mapping[str, Any]) -> str:
    """What was asked, without images."""
    given = next((asked[name] for name in ("prompt", "messages", "input") if asked.get(name)), "")
    return "\n\n".join(_text(one) for one in (given if isinstance(given, list) else [given]))


def _text(given: Any) -> str:
    """Of a text, a message, or the result of the step before."""
    if isinstance(given, dict):
        text = str(given.get("text") or given.get("content") or "")
        return f"{given['role']}: {text}" if given.get("role") else text
    return str(given)


def _cut(text: str, text_bytes: int) -> str | None:
    """The first `text_bytes` of it in UTF-8, whole characters only; None for 0."""
    return text.encode("utf-8", "replace")[:text_bytes].decode("utf-8", "ignore") if text_bytes else None


class Recording(bootsteps.StartStopStep):
    """Tells the end of each run on the thread that ran it, before its result is stored."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        settings = c.app.settings
        self._redis = connect(settings, answer_s=ANSWER_S)
        self._keys = c.app.keys
        self._text_bytes = int(settings.history_text_bytes)
        for task in c.app.tasks.values():
            if isinstance(task, ModelTask):
                watch(task, self.tell)
        self._heard = False

    def start(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """Hear of what ends without a run, too; after a reconnect it simply goes on."""
        if not self._heard:
            self._heard = True
            signals.task_postrun.connect(self.on_end, weak=False)
            signals.task_revoked.connect(self.on_revoked, weak=False)

    def shutdown(self, c: Any) -> None:  # noqa: ARG002  Celery's signature
        """Nothing runs here any more."""
        signals.task_postrun.disconnect(self.on_end)
        signals.task_revoked.disconnect(self.on_revoked)

    def tell(self, task: Any, state: str, told: Any) -> None:
        """A run has ended."""
        try:
            ending = ended(task.name, task.request, state, told, text_bytes=self._text_bytes)
        except (ValueError, LookupError) as error:  # pydantic's error is one; the answer is good all the same
            logger.warning(
                "The history cannot tell the end of %s (%s).", task.request.id, type(error).__name__
            )
            return
        if ending is not None:
            self._send(ending)

    def on_end(self, sender: Any, state: str, retval: Any, **_: Any) -> None:
        """Refused before it ran, for arguments that the task does not have."""
        if not isinstance(sender, ModelTask) or sender.request.is_eager:
            return
        if state == FAILURE and not hasattr(sender.request, TOLD):
            self.tell(sender, state, retval)

    def on_revoked(self, sender: Any, request: Any, expired: bool, **_: Any) -> None:
        """Celery has dropped a message unread."""
        if expired and isinstance(sender, ModelTask):
            self._send(unread(sender.name, request, text_bytes=self._text_bytes))

    def _send(self, ending: Ending) -> None:
        until_told(lambda: endings.tell(self._redis, self._keys, ending, text_bytes=self._text_bytes))


def watch(task: Any, tell: Callable[[Any, str, Any], None]) -> None:
    """Have the end of each run of a task told as soon as it is known.

    Not from Celery's signals: they come after the result is stored, and the message of a worker that dies in
    between is dropped at its next claim, as one that was told before.
    """
    run = task.run

    @wraps(run)
    def watched(*args: Any, **kwargs: Any) -> Any:
        request = task.request
        if request.called_directly or request.is_eager:  # nobody's message
            return run(*args, **kwargs)
        setattr(request, TOLD, True)
        try:
            reply = run(*args, **kwargs)
        except (Ignore, Reject, Retry):
            raise
        except Exception as error:
            tell(task, FAILURE, error)
            raise
        tell(task, SUCCESS, reply)
        return reply

    task.run = watched


def until_told(tell: Callable[[], None]) -> None:
    """Tell it, however long Redis is away: the result that comes next waits for it just so."""
    while True:
        try:
            tell()
        except LATER:
            sleep(AGAIN_S)
        except Trouble as error:
            logger.warning("Redis does not take the end of an invocation into the history (%s).", error)
            return
        else:
            return
