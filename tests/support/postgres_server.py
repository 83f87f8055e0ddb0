"""A private PostgreSQL for a test: real, on loopback, in a folder of its own, and gone afterwards."""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import pytest

from support.eventually import eventually
from support.needs import lacking
from support.ports import free_port

NOBODY = ("postgres", "nobody")  #: PostgreSQL refuses to run as root


@cache
def postgres_binaries() -> Path:
    """The folder of `initdb` and `postgres`; without them the test is skipped."""
    known = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr/local").glob("pgsql*/bin")]
    on_path = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    for folder in [*on_path, *known]:
        if all((folder / name).exists() for name in ("initdb", "postgres")):
            return folder
    return lacking("no PostgreSQL server: neither initdb nor postgres on PATH or under /usr/lib/postgresql")


def _unprivileged() -> dict[str, Any]:
    """Who runs it, as arguments of Popen; the tests' own user unless that is root."""
    if os.geteuid() != 0:
        return {}
    users = {user.pw_name: user for user in pwd.getpwall()}
    for name in NOBODY:
        if name in users:
            return {"user": users[name].pw_uid, "group": users[name].pw_gid}
    pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody")


class PostgresServer:
    """`with PostgresServer() as server: server.new_database()`; a server that nobody else uses."""

    password = "a:b/c@d%"  # noqa: S105  a password with all that has to be escaped in an address

    def __init__(self) -> None:
        self._binaries = postgres_binaries()
        self._who = _unprivileged()
        self._folder = TemporaryDirectory(prefix="gaelp-postgres-")
        self._child: subprocess.Popen[bytes] | None = None
        self._made = 0
        self.port = 0

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder.name, **self._who)

    def __enter__(self) -> Self:
        folder = Path(self._folder.name)
        if self._who:
            os.chown(folder, int(self._who["user"]), int(self._who["group"]))
        secret = folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        initdb = [
            str(self._binaries / "initdb"),
            "-D",
            str(folder / "data"),
            "-U",
            "gaelp",
            "-A",
            "scram-sha-256",
        ]
        self._run(*initdb, "--pwfile", str(secret), "--encoding", "UTF8", "--locale", "C", "--no-sync")
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start(self) -> None:
        """Start it, on the same port as the time before, and wait until it answers."""
        self.port = self.port or free_port()
        folder = Path(self._folder.name)
        given = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": folder,
            "fsync": "off",
        }
        options = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            self._child = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(folder / "data"), *options],
                stdout=log,
                stderr=log,
                cwd=folder,
                **self._who,
            )
        eventually(self._answers, within_s=30)

    def _answers(self) -> bool:
        assert self._child is not None
        said = (Path(self._folder.name) / "log").read_text()
        assert self._child.poll() is None, said
        return "ready to accept connections" in said

    def stop(self) -> None:
        """End it; those who are connected are cut off."""
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)  # its "fast shutdown"
            self._child.wait(20)
            self._child = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    def url(self, database: str) -> str:
        return f"postgresql://gaelp:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The address of a database that has nothing in it."""
        import asyncpg

        self._made += 1
        name = f"gaelp_{self._made}_{secrets.token_hex(3)}"

        async def create() -> None:
            connection = await asyncpg.connect(self.url("postgres"))
            try:
                await connection.execute(f"CREATE DATABASE {name}")
            finally:
                await connection.close()

        with ThreadPoolExecutor(1) as beside:  # the test may have a loop of its own
            beside.submit(asyncio.run, create()).result()
        return self.url(name)
