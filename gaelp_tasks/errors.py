"""Everything that can go wrong, and what becomes of the invocation.

    GaelpError
    ├── SettingsError            final    a GAELP_ variable is wrong
    ├── InvalidInvocation        final    refused at the call, nothing was published
    ├── IdempotencyConflict      final    an InvalidInvocation: its key belongs to another body
    ├── AttachmentLost           final    the prompt that its message refers to is gone, or another one
    ├── AnswerUnfit              final    a parser or model class cannot take the answer
    ├── BrokerUnavailable        final    Redis does not answer, or refuses
    ├── DatabaseUnavailable      final    the database does not answer, or refuses
    ├── StreamUnavailable        final    no stream is kept for that id
    ├── StreamRestarted          final    a re-run could not go on from the text already read
    ├── DeadLettered             final    its message cannot run, and is kept: `gaelp dlq`
    ├── InvocationCut            final    what was to follow an invocation that was cut, and never ran
    ├── NotSignedIn              final    the API does not know who asks
    ├── NotAllowed               final    who asks may not do this
    ├── NotFound                 final    there is no such thing for who asks
    ├── Conflict                 final    it cannot be done as things are now
    ├── PolicyViolated           final    the policy of its type of agent forbids it
    ├── QuotaExceeded            final    it would never fit into a quota, or does not fit now
    ├── BudgetExceeded           final    its bound does not fit into what a budget has left
    ├── QueueFull                final    as many wait as may wait; ask again later
    └── NodeError                         anything an Ollama node did
        ├── NodeUnreachable      retry    no connection, or it broke
        ├── NodeBusy             snooze   503: the node's own queue is full
        ├── NodeFailed           retry    5xx, or an error inside the stream
        ├── ModelMissing         final    404: the node does not have the model
        ├── RequestRefused       final    4xx: the node will never take this request
        ├── LoadTimeout          retry    the model was not in memory in time
        ├── FirstTokenTimeout    retry    the prompt was not read in time
        ├── StreamStalled        retry    no token for too long
        └── StreamTruncated      retry    the answer ended without saying so

Each class carries its `verdict`; `gaelp_tasks.retries.decide` turns it into an outcome. All of them take
one sentence as their only positional argument, so that Celery can rebuild them on the caller's side.
"""

from enum import StrEnum
from typing import ClassVar

__all__ = [
    "AnswerUnfit",
    "AttachmentLost",
    "BrokerUnavailable",
    "BudgetExceeded",
    "Conflict",
    "DatabaseUnavailable",
    "DeadLettered",
    "FirstTokenTimeout",
    "GaelpError",
    "IdempotencyConflict",
    "InvalidInvocation",
    "InvocationCut",
    "LoadTimeout",
    "ModelMissing",
    "NodeBusy",
    "NodeError",
    "NodeFailed",
    "NodeUnreachable",
    "NotAllowed",
    "NotFound",
    "NotSignedIn",
    "PolicyViolated",
    "QueueFull",
    "QuotaExceeded",
    "RequestRefused",
    "SettingsError",
    "StreamRestarted",
    "StreamStalled",
    "StreamTruncated",
    "StreamUnavailable",
    "Verdict",
]


class Verdict(StrEnum):
    """What an error means for the invocation that met it."""

    RETRY = "retry"  #: try again later, an attempt is spent
    SNOOZE = "snooze"  #: no room right now; try again later, no attempt is spent
    FINAL = "final"  #: it would fail again


class GaelpError(Exception):
    """Base of all errors of gaelp-tasks; `str()` is one sentence for a person."""

    verdict: ClassVar[Verdict] = Verdict.FINAL


class SettingsError(GaelpError):
    """A setting is missing, malformed or outside its range."""


class InvalidInvocation(GaelpError, ValueError):
    """The call is malformed; nothing was published."""


class DeadLettered(GaelpError):
    """The message will not run as it is; it is kept among the dead letters, and can be replayed."""


class IdempotencyConflict(InvalidInvocation):
    """The idempotency key stands for an invocation that asks for something else."""


class AttachmentLost(GaelpError):
    """What a message refers to is not there any more, or is not what was published."""


class AnswerUnfit(GaelpError, ValueError):
    """The text of an answer does not have the form that was asked for; the text itself was streamed."""


class BrokerUnavailable(GaelpError, ConnectionError):
    """Redis cannot be reached or refuses to work."""


class DatabaseUnavailable(GaelpError):
    """The database cannot be reached or refuses to work; no OSError, for as one Redis' troubles are met."""


class StreamUnavailable(GaelpError):
    """No token stream is kept for this id (never started, or its time to live has passed)."""


class StreamRestarted(GaelpError):
    """The run started over and its new text does not continue what was already read."""


class InvocationCut(GaelpError):
    """The step before was cut, so this one never ran: its partial text goes on nowhere."""


class NotSignedIn(GaelpError):
    """The API does not know who asks: no token, or one that does not hold."""


class NotAllowed(GaelpError):
    """Who asks may not do this."""


class NotFound(GaelpError, LookupError):
    """There is no such thing, or it belongs to another tenant."""


class Conflict(GaelpError):
    """It cannot be done as things are now: a state forbids it, or somebody was first."""


class PolicyViolated(GaelpError):
    """The policy of its type of agent forbids it; the decision is in the audit."""


class QuotaExceeded(GaelpError):
    """It does not fit into what the quota of its user leaves; `never`: nor would it into all of it."""

    def __init__(self, message: str = "", *, never: bool = False) -> None:
        super().__init__(message)
        self.never = never


class BudgetExceeded(GaelpError):
    """Its bound does not fit into what a budget has left; nothing was held.

    `owner` is whose budget that is, as "agent 5"; '' where it was a cap of the call itself.
    """

    def __init__(self, message: str = "", *, owner: str = "") -> None:
        super().__init__(message)
        self.owner = owner


class QueueFull(GaelpError):
    """As many wait as may wait; `retry_after_s` says when to ask again."""

    def __init__(self, message: str = "", *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NodeError(GaelpError):
    """An Ollama node failed; `node` is its URL, '' when not known."""

    verdict: ClassVar[Verdict] = Verdict.RETRY

    def __init__(self, message: str = "", *, node: str = "") -> None:
        super().__init__(message)
        self.node = node


class NodeUnreachable(NodeError):
    """No connection to the node, or it broke before the answer was complete."""


class NodeBusy(NodeError):
    """The node refuses work for now; `retry_after_s` is its own wish, None when it named none."""

    verdict: ClassVar[Verdict] = Verdict.SNOOZE

    def __init__(self, message: str = "", *, node: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, node=node)
        self.retry_after_s = retry_after_s


class NodeFailed(NodeError):
    """The node answered with a 5xx, or with an error inside the stream."""


class ModelMissing(NodeError):
    """The node does not have this model."""

    verdict: ClassVar[Verdict] = Verdict.FINAL


class RequestRefused(NodeError):
    """The node refuses this very request (4xx); it would refuse it again."""

    verdict: ClassVar[Verdict] = Verdict.FINAL


class LoadTimeout(NodeError):
    """The model was not loaded within its limit."""


class FirstTokenTimeout(NodeError):
    """The prompt was not processed within its limit."""


class StreamStalled(NodeError):
    """Tokens stopped coming for longer than the stall limit."""


class StreamTruncated(NodeError):
    """The stream ended without its final `done` line."""
