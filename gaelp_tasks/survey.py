"""The cluster at one moment, for what watches and scales it: what waits, what runs, what nodes announce.

A survey reads sizes and ages, in a few round trips however many messages there are. It needs no more than the
user `reader` of docs/redis.md may do.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic, time
from typing import Any, NamedTuple

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import ScriptUnknown, worded
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import runners
from gaelp_tasks.queues import ANY, EMBED, INBOXES, SEPARATOR, lists, model_of, plain, route, tier_of
from gaelp_tasks.waiting import LATEST

__all__ = ["INBOX", "Figures", "Load", "Survey", "waits_since"]

INBOX = "inbox"  #: in place of a model: what no worker has sorted yet
MOST_QUEUES = 2000  #: looked at; callers may name as many models as they like
AT_ONCE = 50  #: queues in one script: 500 lists, a millisecond of Redis
NODES_EVERY_S = 10.0  #: between two searches for workers; to search is to go through all keys
FIXED = 10  #: questions of each look; then comes one for each node
PAUSE = 50  #: times as long as a search took, at least, until the next

#: KEYS lists of queues. ARGV 1 bytes of the largest message that is read, 2 prefix of the keys that say how
#: often a task had to make way: it ran, so its age is no waiting. Gives for each list that holds something
#: its number among the keys, how many it holds, and of the next message its id, when it was published (Unix
#: seconds) and when it is due (ISO 8601); '' for what is not told. The message itself stays there.
HEADS = """
local found = {}
for i = 1, #KEYS do
  local count = redis.pcall('LLEN', KEYS[i])
  if type(count) == 'number' and count > 0 then
    local message = redis.call('LRANGE', KEYS[i], -1, -1)[1] or ''
    local ok, told = false, nil
    if #message <= tonumber(ARGV[1]) then ok, told = pcall(cjson.decode, message) end
    local headers = ok and type(told) == 'table' and told['headers']
    if type(headers) ~= 'table' then headers = {} end
    local id, at, due = headers['id'], headers['gaelp_published_at'], headers['eta']
    if type(id) == 'string' and redis.call('EXISTS', ARGV[2] .. id) == 1 then at = nil end
    found[#found + 1] = i
    found[#found + 1] = count
    found[#found + 1] = type(id) == 'string' and id or ''
    found[#found + 1] = type(at) == 'number' and string.format('%.3f', at) or ''
    found[#found + 1] = type(due) == 'string' and due or ''
  end
end
return found
"""
HEADS_SHA = hashlib.sha1(HEADS.encode(), usedforsecurity=False).hexdigest()
FIELDS = 5  #: of what HEADS gives for each list
READ_AT_MOST = 256 * 1024  #: bytes of a message whose age is read; a larger one waits since it was first seen


class Load(NamedTuple):
    """What one tier asks of one model."""

    queued: int = 0
    running: int = 0
    oldest_s: float = 0.0  #: how long the one that waits longest has waited; 0 where none does


class Figures(NamedTuple):
    """What a survey has found."""

    #: by tier and model; a model is called as its node calls it, else as its queue does
    loads: Mapping[tuple[str, str], Load]
    nodes: tuple[NodeSnapshot, ...]
    counts: Mapping[str, int]  #: what rarely happens, see gaelp_tasks.counts
    dead: int  #: dead letters
    parked: int  #: messages that are not due
    suspects: int  #: messages that wait to run alone
    held: int  #: messages that workers have claimed and not settled
    beat_leads: bool
    beat_terms: int  #: how often a beat began to lead; 0: none ever did
    #: since the leading beat last read its schedules in the database; None: none ever did
    schedules_age_s: float | None = None
    history: int = 0  #: ends of invocations that are not in the database yet


class _Head(NamedTuple):
    """The next message of a list, and how many wait there with it."""

    size: int
    id: str  #: '' where it cannot be read
    since_s: float | None  #: Unix time; None: not told


class Survey:
    """Looks again and again; the connection of `app` says how long it waits for an answer.

    `now` gives Unix seconds, `tick` seconds to measure with. What tells no time of its own waits since it was
    first seen here.
    """

    def __init__(
        self, app: GaelpApp, now: Callable[[], float] = time, tick: Callable[[], float] = monotonic
    ) -> None:
        self._app = app
        self._now = now
        self._tick = tick
        self._node_keys: list[str] = []
        self._search_at_s = float("-inf")  #: the next search for workers
        self._seen: dict[str, tuple[str, float]] = {}  # list -> its next message, and since when we see that

    def take(self) -> Figures:
        """Look once. Raises BrokerUnavailable."""
        redis, keys = self._app.redis, self._app.keys
        with worded(self._app.settings):
            self._search()
            with redis.pipeline(transaction=False) as pipe:
                pipe.smembers(keys.queues)
                pipe.hgetall(keys.counts)
                pipe.zcard(keys.dead)
                pipe.zcard(keys.parked)
                pipe.llen(keys.suspects)
                pipe.hlen(keys.unacked)
                pipe.exists(keys.beat)
                pipe.get(keys.beat_fence)
                pipe.get(keys.beat_read)
                pipe.xlen(keys.history)
                for key in self._node_keys:
                    pipe.get(key)
                replies = pipe.execute()
            known, counts, dead, parked, suspects, held, leads, terms, read_ms, history = replies[:FIXED]
            nodes = tuple(_snapshots(replies[FIXED:]))
            heads = self._heads(_queues(known, nodes))
        loads = self._loads(heads, nodes)
        times = {what: int(number) for what, number in counts.items()}
        age_s = None if read_ms is None else max(0.0, self._now() - int(read_ms) / 1000)
        beat = bool(leads), int(terms or 0), age_s
        return Figures(loads, nodes, times, dead, parked, suspects, held, *beat, history)

    def _search(self) -> None:
        """Find who announces nodes; it goes through every key that is there."""
        began = self._tick()
        if began >= self._search_at_s:
            found: Any = self._app.redis.scan_iter(match=self._app.keys.node("*"), count=1000)
            self._node_keys = sorted(found)
            self._search_at_s = began + max(NODES_EVERY_S, PAUSE * (self._tick() - began))

    def _heads(self, queues: list[str]) -> dict[str, _Head]:
        """What waits first in each list of these queues that holds anything."""
        found: dict[str, _Head] = {}
        for start in range(0, len(queues), AT_ONCE):
            names = [name for queue in queues[start : start + AT_ONCE] for name in lists(queue)]
            told = self._ask([self._app.keys.queue(name) for name in names])
            for at, size, named, sent, due in zip(
                *(told[part::FIELDS] for part in range(FIELDS)), strict=True
            ):
                found[names[at - 1]] = _Head(size, named, waits_since(sent, due))
        return found

    def _ask(self, lists_of_them: list[str]) -> Any:
        redis: Any = self._app.redis
        given = (len(lists_of_them), *lists_of_them, READ_AT_MOST, self._app.keys.preempted(""))
        try:
            return redis.evalsha(HEADS_SHA, *given)
        except ScriptUnknown:  # Redis forgets it when it restarts
            redis.script_load(HEADS)
            return redis.evalsha(HEADS_SHA, *given)

    def _loads(
        self, heads: Mapping[str, _Head], nodes: tuple[NodeSnapshot, ...]
    ) -> dict[tuple[str, str], Load]:
        now, before, known = self._now(), self._seen, _names(nodes)
        self._seen = {
            name: before[name] if name in before and before[name][0] == head.id else (head.id, now)
            for name, head in heads.items()
        }
        loads = {(tier, model): Load() for tier in INBOXES for model in (INBOX, ANY, EMBED, *known.values())}
        for name, head in heads.items():
            queue = name.partition(SEPARATOR)[0]
            place = queue.partition(".")[0], _called(model_of(queue) or INBOX, known)
            load = loads.get(place, Load())
            since_s = self._seen[name][1] if head.since_s is None else head.since_s
            waited_s = max(load.oldest_s, now - since_s)  # by a clock of the sender's, which may be ahead
            loads[place] = load._replace(queued=load.queued + head.size, oldest_s=waited_s)
        for run in runners(self._app, nodes):
            if run.tier not in INBOXES:
                continue  # its start is on its way
            nameless = EMBED if run.agent == EMBED else ANY
            place = run.tier, _called(run.model or nameless, known)
            load = loads.get(place, Load())
            loads[place] = load._replace(running=load.running + 1)
        return loads


def waits_since(published_at: str, due: str) -> float | None:
    """Since when a message waits, by its headers, Unix seconds: what it was delayed by is no waiting.

    `published_at` in Unix seconds, `due` in ISO 8601, '' where the message does not tell; None: neither does.
    """
    times = [float(published_at)] if published_at else []
    with suppress(ValueError):
        at = datetime.fromisoformat(due)
        times.append((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())
    return max(times, default=None)


def _snapshots(texts: Iterable[str | None]) -> Iterator[NodeSnapshot]:
    for text in texts:
        with suppress(ValueError):  # gone since the search, or written by another release
            yield NodeSnapshot.model_validate_json(text or "")


def _queues(known: Iterable[str], nodes: tuple[NodeSnapshot, ...]) -> list[str]:
    """Inboxes first, then what names no model, what nodes serve, and what was called out."""
    unnamed = [route(tier, embeds=embeds) for tier in Tier for embeds in (False, True)]
    served = [
        f"{tier}.{name}" for tier in INBOXES for model in _names(nodes).values() for name in _spelled(model)
    ]
    called_out = sorted(name for name in known if tier_of(name) and model_of(name))
    return list(dict.fromkeys([*INBOXES, *unnamed, *served, *called_out]))[:MOST_QUEUES]


def _spelled(model: str) -> list[str]:
    """How queues may call a model: the tag `latest` may be left out."""
    short = model.removesuffix(LATEST)
    return [plain(model)] if ":" in short else [plain(short), plain(short + LATEST)]


def _names(nodes: Iterable[NodeSnapshot]) -> dict[str, str]:
    """Every model of the nodes, by what is the same in all spellings of its name."""
    return {
        _key(model): model for node in nodes for model in sorted({*node.models, *node.loaded}, reverse=True)
    }


def _called(model: str, known: Mapping[str, str]) -> str:
    """A model by the name that its node gives it; as it is where no node has it."""
    return known.get(_key(model), model)


def _key(model: str) -> str:
    return plain(model).removesuffix(plain(LATEST))
