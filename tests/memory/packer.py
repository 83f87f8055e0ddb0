"""What one who knows everything could finish, first come first served: true sizes, and what others will take.

It packs without risk: a job starts only where its model fits until the job's end, so nothing is ever cut.
Models that nobody needs are unloaded in no time, and stay loaded where they are in nobody's way.
"""

from math import ceil, inf

from memory.traces import LENGTH_S, RESERVE_BYTES, Job, Trace

CELL_S = 0.5
CELLS = int(LENGTH_S / CELL_S) + 1


class Packer:
    """One trace; `work` once."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.room = room(trace)
        self.until = dict.fromkeys(trace.models, -1)  #: the last cell in which a model is resident
        self.ready = dict.fromkeys(trace.models, 0.0)  #: when its last load ended
        self.ends: dict[str, list[float]] = {name: [] for name in trace.models}

    def work(self) -> float:
        """Seconds of work that it finishes."""
        jobs = self.trace.jobs
        waiting: list[Job] = []
        done_s, arrived, now = 0.0, 0, 0.0
        while now < LENGTH_S:
            while arrived < len(jobs) and jobs[arrived].at_s <= now:
                waiting.append(jobs[arrived])
                arrived += 1
            waiting, finished_s = self.start(waiting, now)
            done_s += finished_s
            ahead = [end for ends in self.ends.values() for end in ends if end > now]
            ahead += [job.at_s for job in jobs[arrived : arrived + 1]]
            # between those moments others may give memory back
            now = min([*ahead, now + 1.0 if waiting else LENGTH_S, LENGTH_S])
        return done_s

    def start(self, waiting: list[Job], now: float) -> tuple[list[Job], float]:
        """Start what fits, in order; who waits on, and the work that will be finished in time."""
        left, done_s = [], 0.0
        failed = dict.fromkeys(self.trace.models, inf)  # what lasts so long does not fit now
        for job in waiting:
            ends = self.place(job.model, now, job.lasts_s) if job.lasts_s < failed[job.model] else 0.0
            if not ends:
                failed[job.model] = min(job.lasts_s, failed[job.model])
                left.append(job)
            elif ends <= LENGTH_S:
                done_s += job.lasts_s
        return left, done_s

    def place(self, name: str, now: float, lasts_s: float) -> float:
        """Start a job now; when it ends, 0 where it does not fit."""
        model = self.trace.models[name]
        self.ends[name] = [end for end in self.ends[name] if end > now]
        if len(self.ends[name]) >= model.footprint.num_parallel:
            return 0.0
        cell, size = int(now / CELL_S), model.true_bytes + 5 * model.growth_bytes
        stays = self.until[name] >= 0 and self.fits(self.until[name] + 1, cell, size)
        begins = max(now, self.ready[name]) if stays else now + model.load_s + model.kv_s
        ends = begins + lasts_s
        first = (self.until[name] + 1) if stays else cell
        last = min(CELLS - 1, ceil(ends / CELL_S))
        if not self.fits(first, last, size):
            return 0.0
        for at in range(first, last + 1):
            self.room[at] -= size
        self.until[name] = max(last, self.until[name])
        if not stays:
            self.ready[name] = begins
        self.ends[name].append(ends)
        return ends

    def fits(self, first: int, last: int, size: float) -> bool:
        """Whether there is room in all of these cells."""
        return all(self.room[at] >= size for at in range(first, min(last, CELLS - 1) + 1))


def room(trace: Trace) -> list[float]:
    """Bytes for our models in each cell: the least in it."""
    theirs = trace.theirs.true_bytes if trace.theirs else 0
    at = [
        trace.total_bytes - RESERVE_BYTES - theirs - others(trace, cell * CELL_S) for cell in range(CELLS + 1)
    ]
    found = [min(at[cell], at[cell + 1]) for cell in range(CELLS)]
    for moment, held in trace.others:
        cell = int(moment / CELL_S)
        if cell < CELLS:
            found[cell] = min(found[cell], trace.total_bytes - RESERVE_BYTES - theirs - held)
    return found


def others(trace: Trace, now: float) -> float:
    """Memory of others at a moment."""
    before, held = trace.others[0]
    for at, after in trace.others:
        if at >= now:
            return held + (after - held) * (now - before) / (at - before) if at > before else after
        before, held = at, after
    return held
