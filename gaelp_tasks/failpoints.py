"""Named places between two writes, at which a fault test has its process die. Elsewhere they do nothing.

No setting and no variable arms them: only a program that calls `arm` before it begins.
"""

from collections.abc import Callable

__all__ = ["arm", "reach"]

_armed: dict[str, Callable[[], None]] = {}


def arm(name: str, act: Callable[[], None]) -> None:
    """Have `act` called whenever the place of this name is reached."""
    _armed[name] = act


def reach(name: str) -> None:
    """The place of this name is reached."""
    if _armed and (act := _armed.get(name)) is not None:
        act()
