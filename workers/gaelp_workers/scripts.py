"""The Lua scripts of this folder, and all that a worker runs."""

from functools import partial

from gaelp_tasks.scripts import Script
from gaelp_tasks.sweeping import SWEEP

__all__ = ["ALL", "BURY", "CLAIM", "GIVE_BACK", "HEADS", "PUT_OFF", "RENEW", "SORT", "TIDY"]

_read = partial(Script.read, __package__)

CLAIM = _read("claim")
RENEW = _read("renew")
GIVE_BACK = _read("give_back")
BURY = _read("bury")
PUT_OFF = _read("put_off")
SORT = _read("sort")
TIDY = _read("tidy")
HEADS = _read("heads")
ALL = (CLAIM, RENEW, GIVE_BACK, SWEEP, BURY, SORT, TIDY, HEADS)
