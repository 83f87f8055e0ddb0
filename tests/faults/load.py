"""Invocations on the workers of a cluster, and what became of each; the faults are the caller's."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.history.cluster import Cluster, journal_in
from faults.history.model_server import model_server, prompt
from faults.history.subjects import Ours
from gaelp_tasks.connections import unavailable
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_workers.leases import TOLD
from support.elsewhere import Elsewhere, elsewhere


class Load:
    """`with load(server, url, folder) as work: work.publish(20); work.drain()`."""

    def __init__(self, subject: Ours, cluster: Cluster, place: Elsewhere) -> None:
        self.cluster, self.place = cluster, place
        self.acknowledged: list[str] = []
        self.answers: dict[str, set[str]] = defaultdict(set)
        self._subject = subject
        self._count = 0

    def publish(self, count: int, *, seconds: float = 0.2) -> list[str]:
        """Ask for so many that take so long; their ids. Raises what the publisher is told."""
        for _ in range(count):
            self._count += 1
            task_id = f"{id(self):x}-{self._count}"
            pace_s = self._subject.pace_s
            asked = prompt(task_id, 1 + round(seconds / pace_s), pace_s)
            self.place.app.send_task("gaelp.invoke_agent", [asked], task_id=task_id, queue="interactive")
            self.acknowledged.append(task_id)
        return self.acknowledged[-count:]

    def started(self) -> set[str]:
        """Ids that were started so far."""
        self.cluster.look()
        return {start.id for start in self.cluster.starts}

    def under_way(self, ids: list[str], count: int) -> None:
        """Returns when so many of these have started."""
        assert self.cluster.until(lambda: len(self.started() & set(ids)) >= count), "nothing starts"

    def starts_after(self, at: float) -> float:
        """Seconds from that moment to the first start that followed it."""
        found = self.cluster.until(
            lambda: next((start for start in self.cluster.starts if start.at > at), None), within_s=30
        )
        assert found, "nothing was started any more"
        return found.at - at

    def look(self) -> bool:
        """Hear the answers that can be read now; True when there is one for each."""
        try:
            for told in self._subject.answers(self.place.app.redis, tuple(self.acknowledged)):
                assert told.ok, self.place.app.backend.get_task_meta(told.id)
                self.answers[told.id].add(told.answer)
        except (*unavailable, BrokerUnavailable):
            return False
        return self.answers.keys() >= set(self.acknowledged)

    def drain(self, *, within_s: float = 60.0) -> None:
        """Wait for an answer to each; nobody has ended, and no client was told two answers."""
        whole = self.cluster.until(self.look, within_s=within_s)
        missing = sorted(set(self.acknowledged) - self.answers.keys())
        assert whole, f"{len(missing)} of {len(self.acknowledged)} lost: {missing[:5]}"
        self.cluster.pause(0.3)
        self.look()
        twice = {task_id: told for task_id, told in self.answers.items() if len(told) > 1}
        assert not twice, f"accepted twice: {twice}"
        assert self.cluster.quit == [], "every worker lives"

    def again(self) -> list[str]:
        """Ids that were started more than once."""
        self.cluster.look()
        seen: set[str] = set()
        return [start.id for start in self.cluster.starts if start.id in seen or seen.add(start.id)]

    def settled(self) -> bool:
        """Nothing is held; each worker's keeper, doorbell and ear for cancellations are connected."""
        redis, keys, workers = self.place.app.redis, self.place.app.keys, len(self.cluster.workers)
        try:
            names = [client["name"] for client in redis.client_list() if client["name"].startswith("gaelp:")]
            heard = dict(redis.pubsub_numsub(TOLD, keys.cancellations))
            held = redis.hlen(keys.unacked)
        except unavailable:
            return False
        return not held and len(set(names)) == workers and set(heard.values()) == {workers}


@contextmanager
def load(server, url: str, folder: Path, *, proxies: bool = False, workers: int = 2) -> Iterator[Load]:
    """Workers at `server`, which has a `url` and, for proxies, a `port`; a publisher at `url`."""
    with model_server(folder, journal_in(folder)) as node, elsewhere(url) as place:
        subject = Ours(node=node, slots=4)
        cluster = Cluster(subject, server, folder, workers=workers, proxies=proxies)
        try:
            cluster.look()
            assert cluster.until(lambda: all(worker.ready_at for worker in cluster.workers)), cluster.quit
            yield Load(subject, cluster, place)
        finally:
            cluster.close()


def lasting(seconds: float) -> float:
    """Wait so long, as an outage does; returns its end on the clock of the journal."""
    time.sleep(seconds)  # no event ends an outage
    return time.monotonic()
