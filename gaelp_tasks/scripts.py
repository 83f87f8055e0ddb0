"""Lua scripts from files: each is one atomic step in Redis; its head names its keys."""

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

from gaelp_tasks.connections import ScriptUnknown, SyncRedis

__all__ = ["Script"]


class Script(str):
    """The text of a script, with the name under which Redis keeps it."""

    __slots__ = ("sha",)
    sha: str

    @classmethod
    def read(cls, package: str, name: str) -> "Script":
        """The script of a file in a package's lua/."""
        text = (files(package) / "lua" / f"{name}.lua").read_text()
        script = cls(text)
        script.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        return script

    def run(self, redis: SyncRedis, keys: Sequence[str], arguments: Iterable[Any]) -> Any:
        """What it gives; a Redis that has forgotten it is taught it. Raises what redis-py raises."""
        given = (len(keys), *keys, *arguments)
        try:
            return redis.evalsha(self.sha, *given)
        except ScriptUnknown:
            return redis.eval(self, *given)
