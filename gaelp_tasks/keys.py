"""The names of our keys in Redis, with the namespace before each. Pure."""

from dataclasses import dataclass

__all__ = ["Keys"]


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of our keys; docs/redis.md says who writes and reads each."""

    namespace: str = ""

    def stream(self, invocation_id: str) -> str:
        """Token stream of an invocation."""
        return f"{self.namespace}gaelp:stream:{invocation_id}"

    def claims(self, invocation_id: str) -> str:
        """How often an invocation was started: the fence."""
        return f"{self.namespace}gaelp:claims:{invocation_id}"

    def asked(self, invocation_id: str) -> str:
        """What was asked under an idempotency key, and whether it is published."""
        return f"{self.namespace}gaelp:asked:{invocation_id}"

    def attachment(self, invocation_id: str, place: str = "") -> str:
        """The heavy arguments of a long invocation; without `place` how all of its keys begin."""
        return f"{self.namespace}gaelp:attachment:{invocation_id}:{place}"

    def cancel(self, invocation_id: str) -> str:
        """A standing request to cancel an invocation."""
        return f"{self.namespace}gaelp:cancel:{invocation_id}"

    def node(self, worker: str, url: str = "*") -> str:
        """What a worker announces of one of its nodes; without `url`, or with '*', the pattern of all."""
        return f"{self.namespace}gaelp:node:{worker}:{url}"

    def learned(self, worker: str, url: str) -> str:
        """What a worker has learned of one of its nodes' models."""
        return f"{self.namespace}gaelp:learned:{worker}:{url}"

    def cordon(self, worker: str) -> str:
        """That a worker shall take nothing new, and how; of '*' the pattern of all."""
        return f"{self.namespace}gaelp:cordon:{worker}"

    def cached(self, name: str) -> str:
        """An entry of the cache."""
        return f"{self.namespace}gaelp:cache:entry:{name}"

    def continues(self, digest: str) -> str:
        """Whether a model goes on exactly from a text that was cut."""
        return f"{self.namespace}gaelp:continues:{digest}"

    @property
    def cache_index(self) -> str:
        """Every entry of the cache with its size, by the time it ends."""
        return f"{self.namespace}gaelp:cache:index"

    @property
    def cache_bytes(self) -> str:
        """The size of all entries of the cache."""
        return f"{self.namespace}gaelp:cache:bytes"

    @property
    def unacked(self) -> str:
        """What workers hold: tag -> record."""
        return f"{self.namespace}gaelp:unacked"

    @property
    def leases(self) -> str:
        """Until when each of them is held: tag -> Unix time in ms, by Redis' own clock."""
        return f"{self.namespace}gaelp:leases"

    def holder(self, invocation_id: str) -> str:
        """The tag under which a task is held, or was."""
        return f"{self.namespace}gaelp:holder:{invocation_id}"

    def preempted(self, invocation_id: str) -> str:
        """How often a run had to make way for a higher tier."""
        return f"{self.namespace}gaelp:preempted:{invocation_id}"

    def tenant(self, name: str) -> str:
        """The tags under which workers hold a tenant's invocations, or held them."""
        return f"{self.namespace}gaelp:tenant:{name}"

    def deaths(self, invocation_id: str) -> str:
        """How many workers died while they held a task."""
        return f"{self.namespace}gaelp:deaths:{invocation_id}"

    @property
    def suspects(self) -> str:
        """Messages that have seen workers die, and run alone."""
        return f"{self.namespace}gaelp:suspects"

    @property
    def suspects_taker(self) -> str:
        """The holder that finishes what it has, to take one of them."""
        return f"{self.namespace}gaelp:suspects:taker"

    @property
    def queues(self) -> str:
        """Queues of models that may hold something."""
        return f"{self.namespace}gaelp:queues"

    @property
    def models(self) -> str:
        """Models that nodes have, as queues call them -> Unix time in ms when that was last said."""
        return f"{self.namespace}gaelp:models"

    def swept(self, tag: str) -> str:
        """The mark of a message that was taken from its holder."""
        return f"{self.namespace}gaelp:swept:{tag}"

    @property
    def parked(self) -> str:
        """What is not due: task id -> Unix time in ms."""
        return f"{self.namespace}gaelp:parked"

    @property
    def parked_messages(self) -> str:
        """The messages that are parked: task id -> record."""
        return f"{self.namespace}gaelp:parked:messages"

    @property
    def dead(self) -> str:
        """Dead letters: tag -> Unix time in ms since when."""
        return f"{self.namespace}gaelp:dead"

    @property
    def dead_messages(self) -> str:
        """The dead letters themselves: tag -> record."""
        return f"{self.namespace}gaelp:dead:messages"

    @property
    def cancellations(self) -> str:
        """Channel on which cancel requests are called out."""
        return f"{self.namespace}gaelp:cancellations"

    @property
    def beat(self) -> str:
        """The lease of the beat that leads."""
        return f"{self.namespace}gaelp:beat:leader"

    @property
    def beat_seen(self) -> str:
        """Every beat, by its last tick in Unix ms."""
        return f"{self.namespace}gaelp:beat:seen"

    @property
    def beat_fence(self) -> str:
        """The number of the newest leader; it only grows."""
        return f"{self.namespace}gaelp:beat:fence"

    @property
    def beat_read(self) -> str:
        """When the leading beat last read its schedules in the database, Unix time in ms."""
        return f"{self.namespace}gaelp:beat:read"

    @property
    def beat_published(self) -> str:
        """Up to when each schedule's runs are published: its id -> Unix time in ms."""
        return f"{self.namespace}gaelp:beat:published"

    def beside(self, server: str) -> str:
        """The container of the worker that a model server of a compose project has."""
        return f"{self.namespace}gaelp:beside:{server}"

    @property
    def training_turn(self) -> str:
        """That a training job has just made way: the next one waits."""
        return f"{self.namespace}gaelp:training:turn"

    @property
    def history(self) -> str:
        """How invocations have ended, until it is in the database."""
        return f"{self.namespace}gaelp:history"

    @property
    def history_home(self) -> str:
        """Which database they go to, by its name."""
        return f"{self.namespace}gaelp:history:home"

    @property
    def accepted_life(self) -> str:
        """The name of this life of Redis: what was published in another one may be lost."""
        return f"{self.namespace}gaelp:accepted:life"

    @property
    def counts(self) -> str:
        """How often something rare has happened: name -> number."""
        return f"{self.namespace}gaelp:counts"

    def told(self, agent_id: int | str) -> str:
        """Channel on which it is told what happens to an agent."""
        return f"{self.namespace}gaelp:told:{agent_id}"

    def ticket(self, digest: str) -> str:
        """For whom a ticket for one WebSocket was made, by its SHA-256."""
        return f"{self.namespace}gaelp:ticket:{digest}"

    def rate(self, user: str) -> str:
        """How many requests a user of the API may still send; `user` is a hash of who it is."""
        return f"{self.namespace}gaelp:rate:{user}"

    def queue(self, name: str) -> str:
        """Celery's list for a queue."""
        return f"{self.namespace}{name}"
