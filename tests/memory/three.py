"""An hour of three models that do not fit together, as a seed decides: who comes, for which, how urgent."""

from enum import StrEnum
from random import Random

from gaelp_tasks.models.invocation import Tier
from gaelp_workers.ledger import Footprint
from memory.traces import GB, Job, Model, Trace

HOUR_S = 3600.0
TAIL_S = 16 * HOUR_S  #: for all that arrived within the hour to be finished, by whoever takes longest
TOTAL_BYTES = 24 * GB
SLOTS = 4
SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}  #: of the work
RUN_S = (1.0, 10.0)
LOAD_S = (2.0, 6.0)
RARE_WORK_S = 0.01  #: in each second, of each lower tier of a model
TIERS = {Tier.INTERACTIVE: 0.1, Tier.BATCH: 0.5, Tier.BACKGROUND: 0.4}


class Scene(StrEnum):
    """What the hour is like."""

    ONE = "one fits"  #: at a time
    TWO = "two fit"
    SAME = "one tier"  #: one fits at a time, and no tier goes before another
    ENDLESS = (
        "endless"  #: one fits at a time; interactive runs on it, never a moment without; the others rarely
    )


def hour(scene: Scene, seed: int, load: float, length_s: float = HOUR_S) -> Trace:
    """One hour; `load` is the share of its slots' time that the runs of all models take together."""
    rng = Random(f"{scene} {seed}")
    at_once = 2 if scene is Scene.TWO else 1
    models = {name: model(rng, name, at_once) for name in SHARES}
    jobs = []
    for name, share in SHARES.items():
        if scene is Scene.ENDLESS:
            jobs += endless(rng, name, load, length_s) if name == "a" else rare(rng, name, length_s)
            continue
        for tier, part in ({Tier.BATCH: 1.0} if scene is Scene.SAME else TIERS).items():
            jobs += arrivals(rng, name, tier, part * load * share * at_once * SLOTS, length_s)
    return Trace(
        seed,
        TOTAL_BYTES,
        models,
        sorted(jobs, key=lambda job: job.at_s),
        others=[(0.0, GB // 2)],
        theirs=None,
        sees_loads=rng.random() < 0.5,
        length_s=length_s + TAIL_S,
        ends_when_done=True,
    )


def taken(seed: int, length_s: float) -> Trace:
    """One tier, little to do, and for most of the time others leave no room for c, though for a or b."""
    what = hour(Scene.SAME, seed, 0.4, length_s)
    sizes = {"a": 8 * GB, "b": 8 * GB, "c": 12 * GB}
    models = {
        name: one._replace(
            footprint=Footprint(sizes[name] * 4 // 5, sizes[name] // 5 // SLOTS, SLOTS),
            weights_bytes=sizes[name] * 4 // 5,
            kv_bytes=sizes[name] // 5,
        )
        for name, one in what.models.items()
    }
    little, much = GB // 2, GB // 2 + 9 * GB
    others = [(0.2, little), (0.21, much), (0.7, much), (0.71, little)]
    return what._replace(
        models=models, others=[(0.0, little), *((part * length_s, held) for part, held in others)]
    )


def model(rng: Random, name: str, at_once: int) -> Model:
    """A model of which so many fit on the node; its true size is 0.9 to 1.1 times the estimate."""
    estimate = rng.uniform(11.0, 12.0) * GB if at_once == 1 else rng.uniform(7.5, 8.5) * GB
    kv = estimate * rng.uniform(0.1, 0.3)
    wrong = rng.uniform(0.9, 1.1)
    return Model(
        name,
        Footprint(int(estimate - kv), int(kv / SLOTS), SLOTS),
        int((estimate - kv) * wrong),
        int(kv * wrong),
        load_s=rng.uniform(*LOAD_S),
        kv_s=rng.uniform(0.05, 0.3),
        unload_s=rng.uniform(0.05, 0.3),
        growth_bytes=0,
    )


def arrivals(rng: Random, name: str, tier: Tier, work_s: float, length_s: float) -> list[Job]:
    """Runs of a tier that come by chance (Poisson), with so much work in each second."""
    found: list[Job] = []
    gap_s = sum(RUN_S) / 2 / work_s
    at_s = rng.expovariate(1.0 / gap_s)
    while at_s < length_s:
        found.append(Job(f"{name}.{tier}.{len(found)}", name, tier, at_s, rng.uniform(*RUN_S)))
        at_s += rng.expovariate(1.0 / gap_s)
    return found


def endless(rng: Random, name: str, load: float, length_s: float) -> list[Job]:
    """Interactive runs of which each comes before the last one could have ended."""
    found: list[Job] = []
    shortest_s, longest_s = RUN_S[1] / 2, RUN_S[1]
    gap_s = (shortest_s + longest_s) / 2 / (load * SLOTS)
    at_s = 0.0
    while at_s < length_s:
        lasts_s = rng.uniform(shortest_s, longest_s)
        found.append(Job(f"{name}.{len(found)}", name, Tier.INTERACTIVE, at_s, lasts_s))
        at_s += gap_s * rng.uniform(0.5, 1.5)
    return found


def rare(rng: Random, name: str, length_s: float) -> list[Job]:
    """A run of the lower tiers every five minutes or so."""
    tiers = (Tier.BATCH, Tier.BACKGROUND)
    return [job for tier in tiers for job in arrivals(rng, name, tier, RARE_WORK_S, length_s)]
