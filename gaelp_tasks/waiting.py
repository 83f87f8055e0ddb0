"""Why an invocation that is queued waits, and when it starts: what the nodes announce, in words. Pure."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from gaelp_tasks.models.capacity import ModelSlots, NodeSnapshot
from gaelp_tasks.queues import ANY, EMBED, model_of, plain

__all__ = [
    "NO_WORKER",
    "Expected",
    "Waiting",
    "busy_slots",
    "expected",
    "has",
    "name_of",
    "nobody",
    "same",
    "slots_of",
    "why_not_begun",
    "why_queued",
]

NO_WORKER = "No worker is running: start one with `gaelp worker`, or everything with `make up`."
LATEST = ":latest"  #: the tag that Ollama adds where none is given
MOST_REASONS = 3  #: told of several nodes


class Waiting(NamedTuple):
    """Who waits in a queue."""

    queue: str
    position: int  #: 1 is next
    higher: int  #: how many wait for the same model in higher tiers
    model: str  #: as asked for; '' is the node's choice
    embeds: bool
    lower: int = 0  #: runs of lower tiers on its model, which give way to it

    @property
    def named(self) -> str:
        """Its model, as asked for or else as its queue calls it; '' is the node's choice."""
        return self.model or name_of(self.queue)

    @property
    def ahead(self) -> int:
        """How many are taken before it."""
        return self.position - 1 + self.higher


class Expected(NamedTuple):
    """When it starts, and what that was estimated from."""

    start_in_s: float | None  #: None where nobody can tell
    ahead: int  #: taken before it: of higher tiers, then of its own queue
    slots: int  #: of its model now, on all nodes that take work
    busy: int  #: of them
    run_s: float | None  #: how long a run of its model takes, on the mean; None before one has ended
    how: str  #: the estimate in words


def busy_slots(nodes: Iterable[NodeSnapshot]) -> int:
    """Slots that are taken. What no node has answered yet is told by all of its worker, and counts once."""
    told = list(nodes)
    embedding = {name for node in told for name in node.embedding}
    return len({name for node in told for name in (*node.running, *node.unplaced)} - embedding)


def name_of(queue: str) -> str:
    """The model of a queue, '' for one that names none: an inbox, `any`, `embed`."""
    model = model_of(queue)
    return "" if model in {ANY, EMBED} else model


def has(node: NodeSnapshot, model: str) -> bool:
    """Whether a node has this model, as asked for or as a queue calls it."""
    return any(same(one, model) for one in (*node.models, *node.loaded))


def slots_of(node: NodeSnapshot, model: str) -> ModelSlots | None:
    """What the node gives this model, as asked for or as a queue calls it; None where it does not tell."""
    return next((one for one in node.by_model if same(one.model, model)), None)


def same(listed: str, asked: str) -> bool:
    """Whether a model is the one asked for, or the one of a queue; the tag `latest` may be left out."""
    return plain(listed.removesuffix(LATEST)) == plain(asked).removesuffix(plain(LATEST))


def why_queued(waiting: Waiting, nodes: Sequence[NodeSnapshot]) -> str:
    """One or a few sentences on what it waits for."""
    if sentence := nobody(waiting, nodes):
        return sentence
    able = _able(waiting, nodes)
    where = f", {waiting.higher} of them in higher tiers" if waiting.higher else f" in queue {waiting.queue}"
    first = f"{waiting.ahead} ahead of it{where}"
    if reasons := _reasons(waiting, able):
        return " ".join([f"{first}.", *reasons])
    slots, busy = _slots(waiting, able)
    of_it = f" of {waiting.named}" if waiting.named else ""
    return f"{first}; {busy} of {slots} slots{of_it} are busy."


def nobody(waiting: Waiting, nodes: Sequence[NodeSnapshot]) -> str:
    """Why no node at all takes it; '' where one does."""
    if not nodes:
        return NO_WORKER
    model, open_ones = waiting.named, [node for node in nodes if not node.closed]
    if not open_ones:
        return f"Nobody takes new work: {_closed(nodes)}"
    having = [node for node in nodes if not model or has(node, model)]
    if not having:
        unsure = _troubles(node for node in nodes if not node.models)
        return " ".join([f"No node has model {model}: `gaelp models pull {model}` fetches it.", *unsure])
    if all(node.closed for node in having):
        return f"Who has {model} takes nothing new: {_closed(having)}"
    if not _able(waiting, nodes):
        troubles = _troubles(node for node in having if not node.closed)
        return " ".join(["No node that could run it is well.", *troubles])
    return ""


def _closed(nodes: Iterable[NodeSnapshot]) -> str:
    closed = ", ".join(_distinct(f"{node.worker} ({node.closed})" for node in nodes))
    return f"{closed}. `gaelp nodes resume WORKER` ends a cordon."


def _troubles(nodes: Iterable[NodeSnapshot]) -> list[str]:
    said = (node.trouble or f"{node.url} does not answer." for node in nodes if not node.healthy)
    return _distinct(said)[:MOST_REASONS]


def _able(waiting: Waiting, nodes: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
    """The nodes that take it."""
    model = waiting.named
    return [node for node in nodes if node.healthy and not node.closed and (not model or has(node, model))]


def _reasons(waiting: Waiting, able: Sequence[NodeSnapshot]) -> list[str]:
    """Why its model does not take it, by what the nodes say; nothing where none of them says anything."""
    model = waiting.named
    told = [(node, one) for node in able for one in node.by_model if not model or same(one.model, model)]
    if not model and any(one.slots > one.busy for _, one in told):
        return []
    if model and not told and any(node.by_model for node in able):
        return [f"{model} is not in memory yet."]
    reasons = [(node, _reason(node, one)) for node, one in told]
    texts = _distinct(reason for _, reason in reasons if reason)
    if len(texts) > 1 and model:  # each node has its own
        texts = [f"On {node.url}: {reason}" for node, reason in reasons if reason]
    return texts[:MOST_REASONS]


def _reason(node: NodeSnapshot, told: ModelSlots) -> str:
    if told.why:
        return told.why
    match told.phase:
        case "loading":
            return f"{told.model} is being loaded on {node.url}."
        case "draining":
            return f"{told.model} gives way on {node.url}: what runs there ends first."
        case "unloading":
            return f"{told.model} is being unloaded on {node.url}."
    return ""


def why_not_begun(model: str, nodes: Iterable[NodeSnapshot]) -> str:
    """Why who was taken by one of these nodes waits for a first token; '' while the model is in memory."""
    for node in nodes:
        for told in node.by_model:
            if told.phase != "loaded" and (not model or same(told.model, model)):
                return _reason(node, told)
    return ""


# --- when it starts ---------------------------------------------------------------------


def expected(waiting: Waiting, nodes: Sequence[NodeSnapshot], now: float) -> Expected:
    """When it starts, if all goes on as it does now; `now` in Unix seconds."""
    able = _able(waiting, nodes)
    slots, busy = _slots(waiting, able)
    run_s = _run_s(waiting, able)

    def told(start_in_s: float | None, how: str) -> Expected:
        return Expected(start_in_s, waiting.ahead, slots, busy, run_s, how)

    if not able:
        return told(None, "no node takes it now")
    if waiting.embeds:
        return told(None, "embeddings share calls and take no slot")
    if not slots:
        return _without_slots(waiting, able, run_s, now, told)
    missing = waiting.ahead + 1 - (slots - busy)
    if missing <= waiting.lower:
        return told(0.0, "a run of a lower tier gives way to it" if missing > 0 else "a slot is free")
    missing -= waiting.lower
    if run_s is None:
        return told(None, "no run of its model has ended here yet")
    how = f"{missing} runs have to end first, {slots} at once, {run_s:.1f} s each on the mean"
    return told(missing * run_s / slots, how)


def _without_slots(
    waiting: Waiting,
    able: Sequence[NodeSnapshot],
    run_s: float | None,
    now: float,
    told: Callable[[float | None, str], Expected],
) -> Expected:
    changes = [one.until for one in _given(waiting, able) if one.until is not None]
    if not changes:
        return told(None, "its model has no slot now")
    wait_s = max(0.0, min(changes) - now)
    if not waiting.ahead:
        return told(wait_s, "its model has no slot now, which may change by then")
    if run_s is None:
        return told(None, "its model has no slot now, and no run of it has ended here yet")
    how = f"its model may have a slot in {wait_s:.0f} s; then {waiting.ahead} runs, {run_s:.1f} s each"
    return told(wait_s + waiting.ahead * run_s, how)


def _given(waiting: Waiting, able: Iterable[NodeSnapshot]) -> list[ModelSlots]:
    model = waiting.named
    return [one for node in able for one in node.by_model if not model or same(one.model, model)]


def _slots(waiting: Waiting, able: Sequence[NodeSnapshot]) -> tuple[int, int]:
    """Slots that it could take one of, and how many of them are taken."""
    model = waiting.named
    untold = [node for node in able if not model or not node.by_model]  # those tell of all models together
    given = [one for node in able if node not in untold and (one := slots_of(node, model))]
    slots = sum(one.slots for one in given) + sum(node.slots for node in untold)
    return slots, sum(one.busy for one in given) + busy_slots(untold)


def _run_s(waiting: Waiting, able: Iterable[NodeSnapshot]) -> float | None:
    known = [one.run_s for one in _given(waiting, able) if one.run_s is not None]
    return fmean(known) if known else None


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
