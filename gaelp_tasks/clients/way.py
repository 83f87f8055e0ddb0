"""The way of one call through the nodes: where it goes next, and what it raises in the end."""

import math
from collections.abc import Sequence

from gaelp_tasks.clients.routers.base import Kind, Lease, NodeRouter, NodeState, Outcome
from gaelp_tasks.clients.watch import Watch
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import ModelMissing, NodeBusy, NodeError, NodeUnreachable, RequestRefused

__all__ = ["Way", "outcome_of", "the_error"]

#: Error -> what it says about the node; the first that fits.
OUTCOMES: tuple[tuple[type[NodeError], Outcome], ...] = (
    (NodeUnreachable, Outcome.UNREACHABLE),
    (NodeBusy, Outcome.BUSY),
    (ModelMissing, Outcome.MISSING),
    (RequestRefused, Outcome.REFUSED),
    (NodeError, Outcome.FAILED),
)


def outcome_of(error: NodeError) -> Outcome:
    """What an error says about the node it came from."""
    return next(outcome for kind, outcome in OUTCOMES if isinstance(error, kind))


def the_error(errors: Sequence[NodeError], model: str, nodes: int) -> NodeError:
    """What a call raises that went wrong on all `nodes`, after these errors.

    The most hopeful one: a busy node will have room, the one first that asks for the shortest wait; a failed
    one may come back; a model is missing only where no node failed.
    """
    busy = [error for error in errors if isinstance(error, NodeBusy)]
    if busy:
        return min(busy, key=lambda error: math.inf if error.retry_after_s is None else error.retry_after_s)
    failed = [error for error in errors if not isinstance(error, ModelMissing)]
    if failed or nodes == 1 or not model:
        return (failed or errors)[0]
    return ModelMissing(
        f"None of the {nodes} nodes has the model '{model}'; pull it there: gaelp models pull {model}; "
        "or name another."
    )


class Way:
    """Where one call has been, and where it goes next."""

    def __init__(self, router: NodeRouter, watch: Watch, model: str, kind: Kind, est_tokens: int) -> None:
        self.model = model
        self.watch = watch
        self._router = router
        self._kind = kind
        self._est_tokens = est_tokens
        self._errors: dict[str, NodeError] = {}  # node -> what came of it

    async def next(self) -> Lease:
        """A place on a node that was not asked yet. Raises the NodeError that the call ends with."""
        tried = exclude = frozenset(self._errors)
        if tried and not self._sure():
            # one look at all others at once: to call one after the other would cost a limit each
            others = frozenset(self._router.nodes()) - tried
            exclude |= others - await self.watch.scout(others, self._good)
        lease = self._router.acquire(self.model, self._kind, self._est_tokens, exclude=exclude)
        if lease is None:
            silent = [error for url in exclude - tried if (error := self.watch.reason(url)) is not None]
            raise the_error([*self._errors.values(), *silent], self.model, len(self._router.nodes()))
        return lease

    def failed(self, lease: Lease, error: NodeError, *, final: bool = False) -> None:
        """The node failed. Raises the error itself where no other one may be asked."""
        outcome = outcome_of(error)
        wait_s = error.retry_after_s if isinstance(error, NodeBusy) else None
        lease.report(outcome, retry_after_s=wait_s)
        self.watch.mind()
        if final or outcome is Outcome.REFUSED:
            raise error
        self._errors[lease.node] = error

    def _sure(self) -> bool:
        """Whether there is a node that may well take the call, as far as is known without a look."""
        *_, last = self._errors.values()
        return isinstance(last, NodeBusy) and any(
            self._suits(node) and not node.busy
            for node in self._router.snapshot()
            if node.url not in self._errors
        )

    def _good(self, url: str) -> bool:
        return any(node.url == url and self._suits(node) for node in self._router.snapshot())

    def _suits(self, node: NodeState) -> bool:
        name = canonical(self.model) if self.model else ""
        return node.healthy(name) and not node.lacks(name)
