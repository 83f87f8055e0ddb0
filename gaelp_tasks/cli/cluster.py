"""What `gaelp doctor --cluster` looks at: the whole cluster as Redis and SQL tell it, from any machine.

It needs no more than the user `reader` of docs/redis.md may do.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from time import monotonic, sleep, time
from typing import Any, NamedTuple

import requests

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cli import backlog, checks
from gaelp_tasks.cli.database import database, history
from gaelp_tasks.cli.findings import Check, listed
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.connections import connect, worded
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.footprints import in_words
from gaelp_tasks.models.capacity import NodeSnapshot
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.settings import Settings, masked
from gaelp_tasks.survey import Figures, Survey

__all__ = ["cluster_checks"]

OLDEST_REDIS = (6, 2)  #: that the tests have run on
NEARLY_FULL, FULL = 0.75, 0.9  #: of the memory of Redis; the cache gives its part back at the second
APART_S = 2.0  #: clocks that differ by more are told
SEEN_S = 3.0  #: a beat that has not ticked for longer is no more; as long as its lease
PATIENCE_S = 2.0  #: for a worker to announce anew, beyond its poll
API_S = 5.0  #: for the API to answer
LOOK_S = 0.05  #: between two looks for that

Place = tuple[str, str]  #: a worker and one of its nodes


class Heard(NamedTuple):
    """What listening to the nodes for a poll or so has told; seconds, against Redis' own clock."""

    here_s: float  #: how far the clock of this machine is ahead; negative: behind
    ahead_s: Mapping[Place, float]  #: the same of each worker that has announced anew
    redis_s: float  #: Redis' clock at the end, Unix time


def cluster_checks(app: GaelpApp, patience_s: float | None = None) -> Iterator[Check]:
    """Every check, in the order in which trouble is best looked for.

    `patience_s` is how long workers may take to announce anew; None: a poll and a bit. Raises
    BrokerUnavailable where Redis goes away meanwhile.
    """
    yield checks.versions()
    found = list(checks.broker(app))
    yield from found
    if found[0].verdict == "fail":
        yield from database(app.settings, machines=0)
        return
    yield from redis_itself(app)
    yield results(app)
    yield namespace(app)
    figures, held = Survey(app).take(), backlog.held(app)
    nodes = figures.nodes
    heard = listen(
        app, nodes, app.settings.poll_interval_s + PATIENCE_S if patience_s is None else patience_s
    )
    yield from database(app.settings, checks.machines_of(nodes))
    yield from history(app)
    yield beat(app, figures, heard.redis_s)
    yield api(app.settings)
    yield clocks(heard)
    if not nodes:
        advice = "Start one beside each Ollama server: `gaelp worker`."
        yield Check("workers", "fail", "none is announced", advice)
    for one in nodes:
        yield node(one, heard)
    if nodes:
        yield addresses(nodes)
        yield releases(nodes)
        yield from settings(nodes)
    yield from backlog.queues(figures)
    yield from backlog.waits(figures)
    yield backlog.parked(app, heard.redis_s)
    yield backlog.suspects(figures.suspects)
    yield backlog.leases(held, backlog.held(app), live_nodes(app), heard.redis_s)
    yield from checks.letters(app)


# --- Redis ------------------------------------------------------------------------------


def redis_itself(app: GaelpApp) -> Iterator[Check]:
    """Its version, its room, and whether it can write to its disk."""
    with worded(app.settings):
        told: Any = app.redis.info()
    number = tuple(int(part) for part in re.findall(r"\d+", told["redis_version"])[:2])
    oldest = ".".join(map(str, OLDEST_REDIS))
    if number < OLDEST_REDIS:
        finding = f"Redis {told['redis_version']} is older than {oldest}, the oldest that is tested"
        yield Check("redis version", "warn", finding, "Update Redis.")
    else:
        yield Check("redis version", "ok", f"{told['redis_version']}, {oldest} or newer is tested")
    yield _room(told)
    wrong = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if told.get(name) == "err"]
    if wrong:
        advice = "Look into its log: often its disk is full. It refuses writes until one has worked."
        yield Check("redis disk", "fail", f"Redis could not write to its disk ({', '.join(wrong)})", advice)
    else:
        yield Check("redis disk", "ok", "its last write has worked")


def _room(told: Mapping[str, Any]) -> Check:
    used, most = int(told["used_memory"]), int(told.get("maxmemory") or 0)
    there = most or int(told.get("total_system_memory") or 0)
    if not there:
        return Check("redis memory", "ok", f"{in_words(used)} used")
    whose = "maxmemory" if most else "its machine's memory (no maxmemory is set)"
    finding, share = f"{in_words(used)} used, {used / there:.0%} of {whose}", used / there
    if share < NEARLY_FULL:
        return Check("redis memory", "ok", finding)
    advice = "A full Redis takes no work: raise its maxmemory, or see what is there by `gaelp status`."
    return Check("redis memory", "warn" if share < FULL else "fail", finding, advice)


def results(app: GaelpApp) -> Check:
    """Results are where the queues are, or at least in reach."""
    given = app.settings
    if given.results_url == given.broker_url:
        return Check("results", "ok", "in the same Redis as the queues")
    there, place = given.model_copy(update={"broker_url": given.results_url}), masked(given.results_url)
    try:
        with worded(there), connect(there, answer_s=given.connect_timeout_s) as redis:
            redis.ping()
    except BrokerUnavailable as error:
        return Check("results", "fail", str(error), "Correct GAELP_RESULT_BACKEND, or leave it empty.")
    finding = f"in another Redis ({place}): a worker that dies may tell an answer twice"
    return Check("results", "warn", finding, "Leave GAELP_RESULT_BACKEND empty, here and on every worker.")


def namespace(app: GaelpApp) -> Check:
    """Workers are announced under our namespace, and not under another one alone."""
    mark = app.keys.node("", "").removeprefix(app.keys.namespace).rstrip(":")
    with worded(app.settings):
        keys = app.redis.scan_iter(match=f"*{mark}:*", count=1000)
        found = Counter(key.partition(mark)[0] for key in keys)
    ours = app.settings.namespace
    said = f"'{ours}'" if ours else "none"
    others = listed([f"'{name}'" if name else "none" for name in sorted(found.keys() - {ours})])
    if others and not found[ours]:
        advice = "Set GAELP_NAMESPACE as the workers have it."
        finding = f"no worker is announced under ours ({said}), but under: {others}"
        return Check("namespace", "fail", finding, advice)
    return Check("namespace", "ok", f"{said}; this Redis also serves: {others}" if others else said)


# --- beat -------------------------------------------------------------------------------


def beat(app: GaelpApp, figures: Figures, now_s: float) -> Check:
    """One leads, and where there are several machines another one stands by."""
    if not figures.beat_leads:
        if figures.beat_terms:
            finding = "none leads: no schedule is kept, and no history is recorded"
            return Check("beat", "fail", finding, "Start it again: `gaelp beat`.")
        finding = "none has ever run: there are no schedules and no history"
        return Check("beat", "warn", finding, "Start two, on two machines: `gaelp beat`.")
    with worded(app.settings):
        lease: Any = app.redis.get(app.keys.beat) or ""
        there: Any = app.redis.zcount(app.keys.beat_seen, int((now_s - SEEN_S) * 1000), "+inf")
    leads = f"{lease.rpartition(':')[0] or 'one'} leads"
    if there > 1:
        return Check("beat", "ok", f"{leads}, {there - 1} stand by")
    if checks.machines_of(figures.nodes) > 1:
        advice = "Start another one on another machine: `gaelp beat`."
        return Check("beat", "warn", f"{leads}, and none stands by", advice)
    return Check("beat", "ok", f"{leads}, none stands by")


def api(settings: Settings) -> Check:
    """Whether the API answers where GAELP_API_URL says; who has none has said nothing there."""
    place, given = masked(settings.api_url), "api_url" in settings.model_fields_set
    with requests.Session() as session:
        session.trust_env = False
        try:
            answer = session.get(f"{settings.api_url.rstrip('/')}/health", timeout=API_S)
        except requests.RequestException:
            if not given:
                return Check("api", "ok", f"none answers at {place}, and GAELP_API_URL names no other")
            advice = "Start `gaelp api`, or correct GAELP_API_URL."
            return Check("api", "fail", f"none answers at {place}", advice)
    if answer.ok:
        return Check("api", "ok", f"answers at {place}, and SQL and Redis answer it")
    finding = f"answers at {place} with status {answer.status_code}: it is unwell"
    return Check("api", "fail", finding, "See what its log says: often SQL or Redis is away from it.")


# --- nodes ------------------------------------------------------------------------------


def listen(app: GaelpApp, nodes: Sequence[NodeSnapshot], patience_s: float) -> Heard:
    """Wait until each of these has announced itself anew, and compare clocks meanwhile."""
    before = {(one.worker, one.url): one.seen_at for one in nodes}
    ahead_s: dict[Place, float] = {}
    end = monotonic() + patience_s
    while True:
        silent = [place for place in before if place not in ahead_s]
        with worded(app.settings), app.redis.pipeline(transaction=False) as pipe:
            asked_at = time()
            pipe.time()
            for place in silent:
                pipe.get(app.keys.node(*place))
            (seconds, millionths), *texts = pipe.execute()
            here_s = (asked_at + time()) / 2
        redis_s = seconds + millionths / 1e6
        for place, text in zip(silent, texts, strict=True):
            with suppress(ValueError):  # gone, or written by another release
                seen_at = NodeSnapshot.model_validate_json(text or "").seen_at
                if seen_at != before[place]:
                    ahead_s[place] = seen_at - redis_s
        if len(ahead_s) == len(before) or monotonic() >= end:
            return Heard(here_s - redis_s, ahead_s, redis_s)
        sleep(LOOK_S)


def clocks(heard: Heard) -> Check:
    """They agree with Redis' own, by which leases and schedules go."""
    apart = {"this machine": heard.here_s} | {
        worker: ahead_s for (worker, _), ahead_s in sorted(heard.ahead_s.items())
    }
    wrong = [
        f"{who} is {abs(ahead_s):,.0f} s {'ahead' if ahead_s > 0 else 'behind'}"
        for who, ahead_s in apart.items()
        if abs(ahead_s) > APART_S
    ]
    if not wrong:
        return Check("clocks", "ok", f"{len(apart)} agree with that of Redis within {APART_S:g} s")
    advice = "Have each machine keep time (systemd-timesyncd, chrony): deadlines and ages go by their clocks."
    return Check("clocks", "warn", f"against that of Redis {listed(wrong)}", advice)


def node(found: NodeSnapshot, heard: Heard) -> Check:
    """One worker and one of its servers: well, open, and heard of just now."""
    told = checks.worker(found)
    if told.verdict == "fail":
        return told
    if (found.worker, found.url) not in heard.ahead_s:
        age_s = max(0.0, heard.redis_s - found.seen_at)
        finding = f"last announced {age_s:,.0f} s ago, and not while we listened"
        advice = (
            "Its worker was killed, hangs, or cannot reach Redis: see its log. Others take over what it held."
        )
        return told._replace(verdict="warn", finding=finding, advice=advice)
    if found.closed:
        resume = f"`gaelp nodes resume {found.worker}` ends that."
        advice = "It ends by itself." if found.closed == "stopping" else resume
        finding = f"{found.closed}: takes nothing new; {told.finding}"
        return told._replace(verdict="warn", finding=finding, advice=advice)
    return told


def addresses(nodes: Iterable[NodeSnapshot]) -> Check:
    """Each server has an address, and a worker, of its own."""
    workers: defaultdict[str, set[str]] = defaultdict(set)
    for one in nodes:
        workers[one.url].add(one.worker)
    twice = [f"{url} by {listed(sorted(names))}" for url, names in sorted(workers.items()) if len(names) > 1]
    if not twice:
        return Check("node addresses", "ok", "each node is announced by one worker")
    advice = (
        "If it is one server, leave it to one worker: each hands out all of its slots. If these are several, "
    )
    advice += (
        "write their hosts' names into GAELP_OLLAMA_NODES: metrics and results tell nodes by their address."
    )
    return Check("node addresses", "warn", f"announced by several workers: {listed(twice)}", advice)


def releases(nodes: Iterable[NodeSnapshot]) -> Check:
    """All workers run the release that is installed here."""
    ours = version("gaelp-tasks")
    others = {one.worker: one.release or "an earlier release" for one in nodes if one.release != ours}
    if not others:
        return Check("releases", "ok", f"every worker runs {ours}, as is installed here")
    finding = listed([f"{worker} runs {release}" for worker, release in sorted(others.items())])
    advice = "Upgrade one machine after the other: docs/bare-metal.md. Both work side by side meanwhile."
    return Check("releases", "warn", f"{ours} is installed here, but {finding}", advice)


def settings(nodes: Sequence[NodeSnapshot]) -> Iterator[Check]:
    """Workers whose nodes have a model in common give it the same context and as many slots."""
    having: defaultdict[str, list[NodeSnapshot]] = defaultdict(list)
    for one in nodes:
        for model in {canonical(name) for name in one.models}:
            having[model].append(one)
    yield _alike(
        "GAELP_NUM_CTX",
        having,
        lambda one: one.num_ctx,
        "Set it alike: the context of a model is one value, or answers and the cache differ by node.",
    )
    yield _alike(
        "GAELP_NUM_PARALLEL",
        having,
        lambda one: one.num_parallel or None,
        "Right where the machines differ (`gaelp plan` tells what each may have); else set it alike.",
    )


def _alike(
    variable: str,
    having: Mapping[str, Sequence[NodeSnapshot]],
    told: Callable[[NodeSnapshot], int | None],
    advice: str,
) -> Check:
    by_value: defaultdict[int, set[str]] = defaultdict(set)
    differing: list[str] = []
    for model, nodes in sorted(having.items()):
        values = {one.worker: value for one in nodes if (value := told(one)) is not None}
        if len(set(values.values())) > 1:
            differing.append(model)
            for worker, value in values.items():
                by_value[value].add(worker)
    if not differing:
        return Check(variable, "ok", "the same on all nodes that have a model in common")
    told_by = "; ".join(f"{value} at {listed(sorted(names))}" for value, names in sorted(by_value.items()))
    return Check(variable, "warn", f"differs for {listed(differing)}: {told_by}", advice)
