"""How many may watch: each process has so many places, each user so many of them, strangers few."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gaelp_tasks.errors import QueueFull
from gaelp_tasks.models.caller import Caller

__all__ = ["MOST_STRANGERS", "Places"]

MOST_STRANGERS = 100  #: who have not said yet who they are


class Places:
    """The places of one process. Used on its event loop only."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._taken: Counter[tuple[str, str]] = Counter()  #: by tenant and user
        self._strangers = 0

    def __len__(self) -> int:
        return self._taken.total()

    @contextmanager
    def stranger(self) -> Iterator[None]:
        """A place in the entrance. Raises QueueFull."""
        if self._strangers >= MOST_STRANGERS or len(self) >= self._most:
            raise QueueFull("As many watch as may watch here: try again later, or another replica.")
        self._strangers += 1
        try:
            yield
        finally:
            self._strangers -= 1

    @contextmanager
    def known(self, caller: Caller) -> Iterator[None]:
        """A place of somebody's own. Raises QueueFull."""
        who = caller.tenant, caller.name
        if self._taken[who] >= self._most_of_one:
            raise QueueFull(f"You watch {self._most_of_one} times already, which is as many as you may here.")
        self._taken[who] += 1
        try:
            yield
        finally:
            self._taken[who] -= 1
            if not self._taken[who]:
                del self._taken[who]
