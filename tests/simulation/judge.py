"""Looks after every command at what Redis holds, and at what the processes do, and says what is broken."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from gaelp_tasks.lifecycle import CAUSES, MESSAGE_CAUSES, Cause, Invariant, MessageState, State, state_from
from gaelp_tasks.streams import End, Piece, parse
from gaelp_tasks.sweeping import connection_name
from simulation import ours
from simulation.server import Server

SLACK_S = 0.05  #: claims and renewals are timed in ms, and take no time here


class Broken(AssertionError):
    """An invariant does not hold. Only the simulation raises it: the code under test would catch it."""

    def __init__(self, invariant: Invariant, what: str) -> None:
        super().__init__(f"{invariant.name}: {what}. ({invariant})")
        self.invariant = invariant


Answer = tuple[str, str, str]


class Judge:
    """`alive(holder)` tells whether a process is there; `moment` counts the commands that it has seen."""

    def __init__(self, server: Server, alive: Callable[[str], bool]) -> None:
        self._server = server
        self._alive = alive
        self.moment = 0
        self.broken: Broken | None = None  #: the first thing that was
        self.accepted: set[str] = set()  #: ids that a sender was told are published
        self.retried: Counter[str] = Counter()  #: Retry outcomes by id
        self.answers: dict[str, Answer] = {}
        self._told_at: dict[str, int] = {}
        self._cancelled_at: dict[str, int] = {}
        self._claimed_at: dict[str, int] = {}  # by tag
        self._number: Counter[str] = Counter()  # the highest claim of each id
        self._renewed: dict[str, float] = {}  # tag -> when its lease was begun or renewed
        self._messages: dict[str, tuple[ours.Message, MessageState]] = {}
        self._states: dict[str, State] = defaultdict(lambda: State.UNKNOWN)
        self._held: dict[str, ours.HeldMessage] = {}
        self._leased: set[str] = set()
        self.seen = ours.Seen()

    def after(self, who: str, said: list[bytes]) -> None:
        """A command was executed."""
        cause = ours.cause_of(said)
        if cause is None:
            return
        self.moment += 1
        if ours.is_renewal(said):
            now = self._server.clock()
            self._renewed |= dict.fromkeys(ours.renewed(said), now)
        if cause is Cause.SETTLE:
            self._hear(said)
        self.seen = seen = ours.look(self._server)
        self._leases(seen, cause)
        self._places(seen, cause)
        self._times(seen)
        self._held, self._leased = seen.held, seen.leases

    # -- messages

    def _places(self, seen: ours.Seen, cause: Cause) -> None:
        now_at: dict[str, tuple[ours.Message, MessageState]] = {}
        for one, place in seen.places():
            if one.copy in now_at:
                self._break(Invariant.ONE_PLACE, f"{one.copy} is {now_at[one.copy][1]} and {place}")
            now_at[one.copy] = one, place
        gone = {
            copy: (self._messages[copy][0], MessageState.GONE)
            for copy in self._messages.keys() - now_at.keys()
        }
        for copy, (one, place) in (now_at | gone).items():
            before = self._messages.get(copy, (one, MessageState.GONE))[1]
            self._legal(copy, before, place, cause, MESSAGE_CAUSES[cause])
            if one.retries > self.retried[one.id]:
                spent = f"{copy} has spent {one.retries} attempts, retried {self.retried[one.id]} times"
                self._break(Invariant.ATTEMPTS, spent)
        self._messages = now_at
        self._ids(cause)

    def _ids(self, cause: Cause) -> None:
        by_id: dict[str, set[MessageState]] = defaultdict(set)
        for one, place in self._messages.values():
            if not one.junk:
                by_id[one.id].add(place)
        for task_id in self.accepted - self.answers.keys() - by_id.keys():
            self._break(Invariant.KEPT, f"{task_id} is nowhere and has no answer")
        for task_id in by_id.keys() | self._states.keys():
            state = self._state(task_id, by_id[task_id])
            before = self._states[task_id]
            if before is State.FAILED and task_id not in self.answers:
                before = state if state is State.FAILED else State.UNKNOWN  # a dead letter begins anew
            self._legal(task_id, before, state, cause, CAUSES[cause])
            self._states[task_id] = state

    def _state(self, task_id: str, places: set[MessageState]) -> State:
        match self.answers.get(task_id):
            case None:
                return state_from(places)
            case ("error", *_):
                return State.FAILED
            case (_, _, stop_reason):
                return State.DONE if stop_reason == "stop" else State.CUT

    def _legal(self, what: str, before: Any, after: Any, cause: Cause, moves: Any) -> None:
        if before != after and (before, after) not in moves:
            self._break(Invariant.LEGAL_MOVE, f"{what} went from {before} to {after} by «{cause}»")

    # -- leases and claims

    def _leases(self, seen: ours.Seen, cause: Cause) -> None:
        now = self._server.clock()
        live: set[str] = set()
        for tag, held in seen.held.items():
            one = held.message
            if tag not in self._held:
                self._claimed(tag, held, now)
            if held.until is not None and held.until > now:
                if one.id in live:
                    self._break(Invariant.ONE_HOLDER, f"{one.id} is held twice at once")
                live.add(one.id)
        for tag in self._held.keys() - seen.held.keys():
            ends = self._renewed[tag] + ours.LEASE_S
            if cause is Cause.SWEEP and ends > now + SLACK_S and self._lives(tag.partition("|")[0], now):
                self._break(Invariant.LIVE_LEASE, f"{tag} was swept {ends - now:.2f} s before its lease ends")
        for tag in seen.leases - self._leased:  # what never came is marked just before it is given back
            if self._server.exists(ours.KEYS.swept(tag)):
                self._break(Invariant.NOT_REVIVED, f"{tag} was swept and has a lease again")

    def _lives(self, holder: str, now: float) -> bool:
        """Not where it has neither a connection nor renewed or claimed anything between three looks."""
        begun = [at for tag, at in self._renewed.items() if tag.partition("|")[0] == holder]
        silent = now - max(begun) >= 2 * ours.BEAT_S - SLACK_S
        return self._alive(holder) and not (silent and not self._server.knows(connection_name(holder)))

    def _claimed(self, tag: str, held: ours.HeldMessage, now: float) -> None:
        one = held.message
        self._claimed_at[tag] = self.moment
        self._renewed[tag] = now
        if held.claim <= self._number[one.id]:
            numbers = f"{one.id} was claimed with number {held.claim} after {self._number[one.id]}"
            self._break(Invariant.NUMBERS_GROW, numbers)
        self._number[one.id] = held.claim
        if one.due is not None and one.due > now + SLACK_S and one.id not in self._cancelled_at:
            self._break(Invariant.NOT_EARLY, f"{one.copy} was taken {one.due - now:.2f} s before it is due")

    def _times(self, seen: ours.Seen) -> None:
        now = self._server.clock()
        for one in seen.queued:
            before = self._messages.get(one.copy)
            waits = one.due is not None and one.due > now + SLACK_S and one.id not in self._cancelled_at
            if waits and before is not None and before[1] is MessageState.PARKED:
                self._break(Invariant.NOT_EARLY, f"{one.copy} was queued before it is due")

    def swept(self, began_s: float) -> None:
        """A beat that began then went well from end to end."""
        seen = ours.look(self._server)
        for one, due in seen.parked:
            if due is None or (0 < due < began_s - SLACK_S):
                self._break(Invariant.NOT_LATE, f"{one.copy} is due and still parked")
        for tag, held in seen.held.items():
            if self._renewed[tag] + ours.LEASE_S < began_s - SLACK_S:
                self._break(Invariant.NOT_LATE, f"nobody holds {held.message.copy} any more ({tag})")

    # -- answers

    def _hear(self, said: list[bytes]) -> None:
        if said[0] == b"SET" and said[1].startswith(ours.RESULTS.encode()):
            told = json.loads(said[2])
            self._answer(said[1].decode().removeprefix(ours.RESULTS), _of_result(told))
        elif b"XADD" in said:
            for at in (at for at, word in enumerate(said) if word == b"XADD"):
                self._stream(said[at + 1].decode())
        elif b"SET" in said and said[said.index(b"SET") + 1].startswith(ours.KEYS.cancel("").encode()):
            task_id = said[said.index(b"SET") + 1].decode().removeprefix(ours.KEYS.cancel(""))
            self._cancelled_at.setdefault(task_id, self.moment)

    def _stream(self, key: str) -> None:
        task_id = key.removeprefix(ours.KEYS.stream(""))
        texts: dict[int, str] = defaultdict(str)
        for entry in self._server.raw.xrange(key):
            event = parse(*entry)
            if isinstance(event, Piece):
                texts[event.claim] += event.text
                if len({run for run in texts[event.claim].split() if run}) > 1:
                    self._break(Invariant.FENCED, f"{task_id}: two runs wrote as claim {event.claim}")
            if isinstance(event, End):
                self._answer(task_id, _of_end(event.facts, texts[event.claim]))

    def _answer(self, task_id: str, answer: Answer) -> None:
        before = self.answers.setdefault(task_id, answer)
        self._told_at.setdefault(task_id, self.moment)
        if before != answer:
            self._break(Invariant.ONE_ANSWER, f"{task_id} has the answers {before} and {answer}")

    def calls(self, task_id: str, tag: str) -> None:
        """A run that was claimed with this tag calls the model."""
        claimed_at = self._claimed_at[tag]
        if self._told_at.get(task_id, claimed_at + 1) < claimed_at:
            self._break(Invariant.NOT_AGAIN, f"{task_id} calls the model by {tag}")
        if self._cancelled_at.get(task_id, claimed_at + 1) < claimed_at:
            self._break(Invariant.CANCELLED, f"{task_id} starts by {tag}")

    @property
    def cancels(self) -> int:
        """How many ids were cancelled so far."""
        return len(self._cancelled_at)

    @property
    def open(self) -> set[str]:
        """Accepted ids without an answer or a dead letter, and ids with messages that are no dead letters."""
        moving = {one.id for one, place in self.seen.places() if place is not MessageState.DEAD}
        dead = {one.id for one in self.seen.dead if not one.junk}
        return (self.accepted - self.answers.keys() - dead) | moving

    def _break(self, invariant: Invariant, what: str) -> None:
        if self.broken is None:
            self.broken = Broken(invariant, what)


def _of_result(told: dict[str, Any]) -> Answer:
    if told["status"] == "FAILURE":
        return "error", told["result"]["exc_type"], told["result"]["exc_message"]
    return "text", told["result"]["text"], told["result"]["stop_reason"]


def _of_end(facts: dict[str, Any], text: str) -> Answer:
    if facts["outcome"] == "failed":
        return "error", facts["error"], facts["message"]
    return "text", text, facts["stop_reason"]
