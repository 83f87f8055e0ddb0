"""Names of a test's cases."""

import re

__all__ = ["case"]


def case(value: object) -> str:
    """The case as text, the same in every process: several of them run the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
