"""The Lua scripts of this folder: each is one atomic step in Redis; its head names its keys."""

import hashlib
from importlib.resources import files

__all__ = ["ALL", "BURY", "CLAIM", "GIVE_BACK", "HEADS", "RENEW", "SORT", "SWEEP", "TIDY", "Script"]


class Script(str):
    """The text of a script, with the name under which Redis keeps it."""

    __slots__ = ("sha",)
    sha: str

    @classmethod
    def read(cls, name: str) -> "Script":
        """The script of a file in lua/."""
        text = (files(__package__) / "lua" / f"{name}.lua").read_text()
        script = cls(text)
        script.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return script


CLAIM = Script.read("claim")
RENEW = Script.read("renew")
GIVE_BACK = Script.read("give_back")
SWEEP = Script.read("sweep")
BURY = Script.read("bury")
SORT = Script.read("sort")
TIDY = Script.read("tidy")
HEADS = Script.read("heads")
ALL = (CLAIM, RENEW, GIVE_BACK, SWEEP, BURY, SORT, TIDY, HEADS)
