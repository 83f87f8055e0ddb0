"""What is published when: a task or an agent's invocation, and the times at which it is due."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from gaelp_tasks.errors import GaelpError
from gaelp_tasks.models import cron
from gaelp_tasks.models.frozen import Frozen, JsonObject, JsonText
from gaelp_tasks.models.invocation import Embedding, Invocation, PositiveSeconds, Tier, one_sentence

__all__ = [
    "DAYS",
    "INVOKE",
    "YEARS",
    "Day",
    "Hours",
    "InvalidSchedule",
    "Missed",
    "Moment",
    "Overlap",
    "Schedule",
    "Window",
]

INVOKE = "gaelp.invoke_agent"
#: tasks that call a model, and what reads their arguments
CALLS: dict[str, type[Invocation | Embedding]] = {INVOKE: Invocation, "gaelp.embed": Embedding}
ANY_SIZE = 2**63  #: bytes; the limit of prompts is a setting, and publishing knows it
RUN_ITSELF = {
    "idempotency_key": "each run gets an id of its own from its due time",
    "tier": "it is a field of the schedule",
    "tenant": "it is the schedule's",
}

YEARS = range(1970, 9001)  #: in which anything is due; zones cannot be reckoned with at the calendar's ends


def _in_reach(moment: datetime) -> datetime:
    if moment.year not in YEARS:
        raise ValueError(f"take a year from {YEARS[0]} to {YEARS[-1]}")
    return moment


def _known(zone: str) -> str:
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, LookupError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("there is no such time zone; write one as Europe/Berlin or UTC") from None
    return zone


Moment = Annotated[AwareDatetime, AfterValidator(_in_reach)]
Zone = Annotated[str, AfterValidator(_known)]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
ORDER: tuple[str, ...] = DAYS


class InvalidSchedule(GaelpError, ValueError):
    """A schedule cannot be what was asked for; nothing was changed."""


class Missed(StrEnum):
    """What becomes of runs whose time passed while no beat lived."""

    SKIP = "skip"  #: none is made up for
    ONCE = "once"  #: one run for all of them
    ALL = "all"  #: each of them, one after the other


class Overlap(StrEnum):
    """What becomes of a run that is due while the one before is not over."""

    SKIP = "skip"  #: it is left out
    QUEUE = "queue"  #: it waits until the old one is over
    CANCEL = "cancel"  #: the old one is cancelled


class Window(Frozen):
    """Times of day, on some weekdays; one over midnight belongs to the day on which it begins."""

    start: time
    end: time  #: not in it any more; the same as start: all day
    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS

    @field_validator("start", "end")
    @classmethod
    def _of_the_zone(cls, value: time) -> time:
        if value.tzinfo is not None:
            raise ValueError("leave the offset out: a window is in the time zone of its schedule")
        return value

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Read `22:00-06:00` or `mon-fri,sun 22:00-06:00`. Raises InvalidSchedule."""
        days, _, hours = text.strip().lower().rpartition(" ")
        begin, _, end = hours.partition("-")
        try:
            return cls(start=_clock(begin), end=_clock(end), days=_days(days) if days else DAYS)
        except ValueError:
            raise InvalidSchedule(
                f"window: {text!r} is none; write one as '22:00-06:00' or 'mon-fri 22:00-06:00'."
            ) from None

    def holds(self, local: datetime) -> bool:
        """Whether a moment lies in it, by the clock on the wall of its zone."""
        today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
        at = local.time()
        if self.start < self.end:
            return today in self.days and self.start <= at < self.end
        return (today in self.days and at >= self.start) or (yesterday in self.days and at < self.end)

    def opens(self, day: date, zone: ZoneInfo) -> list[datetime]:
        """When it opens on a day, in UTC: twice in an hour that comes twice, never on another weekday."""
        return _instants(day, self.start, zone) if DAYS[day.weekday()] in self.days else []

    def __str__(self) -> str:
        hours = f"{self.start:%H:%M}-{self.end:%H:%M}"
        return hours if set(self.days) == set(DAYS) else f"{','.join(self.days)} {hours}"


def _instants(day: date, clock: time, zone: ZoneInfo) -> list[datetime]:
    """The moments at which a clock on the wall shows a time; where it skips it, the end of the gap."""
    first, second = (datetime.combine(day, clock, zone).replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    if first <= second:
        return [first, second]
    before = second.astimezone(zone).utcoffset()  # the gap begins after `second`, and is over at `first`
    low, high = int(second.timestamp()), int(first.timestamp())
    while high - low > 1:
        middle = (low + high) // 2
        is_before = datetime.fromtimestamp(middle, zone).utcoffset() == before
        low, high = (middle, high) if is_before else (low, middle)
    return [datetime.fromtimestamp(high, UTC)]


def _clock(text: str) -> time:
    return time() if text == "24:00" else time.fromisoformat(text)


def _days(text: str) -> tuple[Day, ...]:
    """The days of `mon-wed,fri`. Raises ValueError."""
    found = set()
    for part in text.replace(" ", "").split(","):
        first, _, last = part.partition("-")
        begin, end = ORDER.index(first), ORDER.index(last or first)
        found |= {DAYS[day % len(DAYS)] for day in range(begin, end + 1 if end >= begin else end + 8)}
    return tuple(day for day in DAYS if day in found)


class Hours(Frozen):
    """Windows by the clock of a zone: something may begin in any of them, and not outside."""

    windows: Annotated[tuple[Window, ...], Field(min_length=1, max_length=50)]
    zone: Zone = "UTC"

    @classmethod
    def parse(cls, windows: Iterable[str], zone: str = "UTC") -> "Hours":
        """Read windows as `Window.parse` does. Raises InvalidSchedule."""
        try:
            return cls(windows=tuple(Window.parse(text) for text in windows), zone=zone)
        except ValidationError as error:
            raise InvalidSchedule(one_sentence(error)) from None

    def hold(self, moment: datetime) -> bool:
        """Whether a moment lies in one of them."""
        local = moment.astimezone(ZoneInfo(self.zone))
        return any(window.holds(local) for window in self.windows)

    def opens(self, moment: datetime) -> datetime:
        """When the next of them opens, after this moment or at it; in UTC."""
        zone = ZoneInfo(self.zone)
        today = moment.astimezone(zone).date()
        return min(
            opening
            for ahead in range(len(DAYS) + 1)
            for window in self.windows
            for opening in window.opens(today + timedelta(days=ahead), zone)
            if opening >= moment
        )

    def __str__(self) -> str:
        return f"{' or '.join(map(str, self.windows))} ({self.zone})"


class Schedule(Frozen):
    """One schedule; just one of `cron`, `interval_s` and `at` says when it is due."""

    name: Annotated[JsonText, Field(min_length=1, max_length=100)]
    task: Annotated[JsonText, Field(min_length=1, max_length=200)] = INVOKE
    args: tuple[JsonValue, ...] = ()
    kwargs: JsonObject = Field(default_factory=dict)  #: of an invocation: prompt, agent, model, ...
    queue: Annotated[JsonText, Field(min_length=1, max_length=200)] | None = None  #: None: by tier, or routed
    tier: Tier | None = None  #: None: batch for what calls a model, none for other tasks
    cron: str | None = None  #: five fields, or a name such as @daily
    zone: Zone = "UTC"  #: IANA name; of the cron expression and the windows
    interval_s: Annotated[float, Field(ge=1, lt=366 * 86_400)] | None = None  #: counted from start, else 1970
    at: Moment | None = None  #: once
    start: Moment | None = None  #: not due before
    end: Moment | None = None  #: not due after
    windows: Annotated[tuple[Window, ...], Field(max_length=50)] = ()  #: due in any of them only; (): always
    only_when_idle: bool = False  #: waits while anything is queued or running in a higher tier
    missed: Missed = Missed.ONCE
    overlap: Overlap = Overlap.SKIP
    paused: bool = False
    expires_s: PositiveSeconds | None = None  #: a run that has not begun so long after its time is dropped

    @field_validator("name")
    @classmethod
    def _speakable(cls, value: str) -> str:
        if not value.isprintable() or value != value.strip() or value.startswith("-"):
            raise ValueError("take printable characters, no '-' at its beginning and no spaces around it")
        return value

    @field_validator("cron")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            cron.check(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> "Schedule":
        if sum(given is not None for given in (self.cron, self.interval_s, self.at)) != 1:
            raise ValueError("give one of cron, interval_s and at")
        if self.start and self.end and self.end <= self.start:
            raise ValueError("end: it must come after start")
        if self.queue is not None and self.tier is not None:
            raise ValueError("give either queue or tier, not both")
        if self.only_when_idle and self.higher == ():
            raise ValueError("only_when_idle: no tier is higher than interactive")
        if self.task in CALLS:
            self._check_call(CALLS[self.task])
        return self

    def _check_call(self, reads: type[Invocation | Embedding]) -> None:
        if self.args:
            raise ValueError(f"args: {self.task} takes named arguments only (kwargs)")
        for name, why in RUN_ITSELF.items():
            if name in self.kwargs:
                raise ValueError(f"kwargs: leave {name} out, {why}")
        if unknown := sorted(set(self.kwargs) - set(reads.model_fields)):
            raise ValueError(f"kwargs: {self.task} does not know {unknown[0]}")
        reads.parse(self.kwargs, max_prompt_bytes=ANY_SIZE)

    @classmethod
    def parse(cls, given: dict[str, Any]) -> "Schedule":
        """Build from plain values. Raises InvalidSchedule with one sentence that repeats no prompt."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise InvalidSchedule(one_sentence(error)) from None

    def wire(self) -> dict[str, Any]:
        """Everything as JSON values; what is as by default is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @property
    def calls_model(self) -> bool:
        """Whether a run is an invocation or an embedding."""
        return self.task in CALLS

    @property
    def counts_as(self) -> Tier | None:
        """The tier of its runs; None for a task on a queue that has none."""
        if self.tier is not None:
            return self.tier
        head = (self.queue or "").partition(".")[0]
        if head in list(Tier):
            return Tier(head)
        return Tier.BATCH if self.calls_model else None

    @property
    def higher(self) -> tuple[Tier, ...]:
        """The tiers that come before its runs; all of them for a task without one."""
        tier = self.counts_as
        return tuple(Tier) if tier is None else tuple(Tier)[: tier.rank]

    @property
    def when(self) -> str:
        """When it is due, in a few words."""
        if self.cron is not None:
            return f"{self.cron} ({self.zone})"
        if self.interval_s is not None:
            return f"every {self.interval_s:g} s"
        assert self.at is not None  # noqa: S101  one of the three is given
        return f"once, {self.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

    def in_window(self, moment: datetime) -> bool:
        """Whether a moment lies in one of its windows, or it has none."""
        return not self.windows or self._hours.hold(moment)

    def opens(self, moment: datetime) -> datetime:
        """When the next of its windows opens, after this moment or at it; in UTC."""
        return self._hours.opens(moment)

    @property
    def _hours(self) -> Hours:
        return Hours.model_construct(windows=self.windows, zone=self.zone)  # both are checked already
