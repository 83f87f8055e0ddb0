"""What `gaelp doctor` says of the database: in reach, up to date, and in the right place."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.cli.findings import Check
from gaelp_tasks.connections import worded
from gaelp_tasks.db import address
from gaelp_tasks.errors import DatabaseUnavailable, GaelpError, SettingsError
from gaelp_tasks.settings import Settings, masked

__all__ = ["database", "file_system", "history"]

ANSWER_S = 5.0  #: for the database
#: file systems that other machines may share, where SQLite's locks do not hold; and so all of FUSE
NETWORK = frozenset({"9p", "afs", "cifs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf", "virtiofs"})
CLUSTER = frozenset({"beegfs", "ceph", "gfs2", "glusterfs", "gpfs", "lustre", "ocfs2"})


def database(settings: Settings, machines: int) -> Iterator[Check]:
    """SQL answers and has the tables of this release, where that many machines may need it."""
    try:
        url = settings.sql_url
    except SettingsError as error:
        yield Check("database", "fail", str(error), "Write GAELP_DATABASE_URL=sqlite:////its/file.")
        return
    if not address.is_postgres(url):
        file = address.sqlite_file(url)
        if file is None:
            advice = "Set GAELP_DATABASE_URL to a file, or to PostgreSQL."
            yield Check("database", "warn", "in memory: each program has its own, gone with it", advice)
            return
        try:
            is_here = address.is_here(url)
        except OSError as error:
            advice = "Run this as the user that workers and beats run as."
            yield Check("database", "fail", f"{file} cannot be looked at ({error.strerror})", advice)
            return
        if not is_here:
            yield Check("database", "ok", f"{file} is not there yet: whatever needs it first makes it")
            return
        yield from _sharing(file, machines)
    yield _tables(url)


def _sharing(file: Path, machines: int) -> Iterator[Check]:
    """Whether a file will do: it is this machine's alone."""
    kind = file_system(file)
    shared = kind in NETWORK | CLUSTER or kind.startswith("fuse.")
    advice = "Set GAELP_DATABASE_URL to the same PostgreSQL wherever beat or batches run: docs/database.md."
    if machines > 1:
        where = f"{file}, on {kind}" if shared else str(file)
        finding = f"SQLite ({where}) is for one machine, and workers of {machines} are announced"
        yield Check("shared database", "fail" if shared else "warn", finding, advice)
    elif shared:
        finding = f"{file} lies on {kind}: SQLite's locks do not hold where other machines write, too"
        yield Check("shared database", "warn", finding, f"Move it to a local disk. {advice}")


def file_system(file: Path) -> str:
    """The kind of file system that a file lies on; '' where that is not told."""
    place = file.resolve()
    mounts = [one for one in psutil.disk_partitions(all=True) if place.is_relative_to(one.mountpoint)]
    # of two on one place the later hides the other
    found = max(reversed(mounts), key=lambda one: len(one.mountpoint), default=None)
    return found.fstype if found else ""


def _tables(url: str) -> Check:
    from gaelp_tasks.db import migrations  # noqa: PLC0415  SQLAlchemy is no small thing

    try:
        found = asyncio.run(_revision(url))
    except SettingsError as error:  # says what to install
        return Check("database", "fail", str(error))
    except DatabaseUnavailable as error:
        return Check("database", "fail", str(error), "Start it, or set GAELP_DATABASE_URL.")
    known, place = migrations.revisions(), masked(url)
    migrate = "`gaelp schedule list` brings it there, and so does beat when it starts"
    if found == known[-1]:
        return Check("database", "ok", f"{place}, tables of revision {found}, the newest")
    if found is None:
        return Check("database", "warn", f"{place} has no tables yet", f"{migrate[0].upper()}{migrate[1:]}.")
    if found in known:
        finding = f"{place} has tables of an earlier release ({found}; the newest is {known[-1]})"
        return Check("database", "warn", finding, f"Back it up (docs/database.md); {migrate}.")
    finding = f"{place} has tables of a later release ({found}; the newest known here is {known[-1]})"
    return Check("database", "fail", finding, "Update gaelp-tasks here, or restore the backup.")


async def _revision(url: str) -> str | None:
    from gaelp_tasks.db.database import Database  # noqa: PLC0415  SQLAlchemy is no small thing

    made = Database(url, answer_s=ANSWER_S)
    try:
        return await made.revision()
    finally:
        await made.close()


def history(app: GaelpApp) -> Iterator[Check]:
    """The history goes to the database that we see; nothing where either is not known."""
    with worded(app.settings):
        home: Any = app.redis.get(app.keys.history_home)
    with suppress(GaelpError, OSError):  # other checks tell of it
        url = app.settings.sql_url
        if not home or not address.is_here(url):
            return
        if asyncio.run(_name_of(url)) == home:
            yield Check("history", "ok", "goes to this database")
            return
        yield Check(
            "history",
            "warn",
            "goes to another database than the one seen from here",
            "Set the same GAELP_DATABASE_URL here and wherever workers and beats run.",
        )


async def _name_of(url: str) -> str:
    from gaelp_tasks.db.database import Database  # noqa: PLC0415  SQLAlchemy is no small thing
    from gaelp_tasks.db.identity import identity  # noqa: PLC0415  the same
    from gaelp_tasks.db.migrations import revisions  # noqa: PLC0415  the same

    made = Database(url, answer_s=ANSWER_S)
    try:
        if await made.revision() not in revisions():
            raise DatabaseUnavailable(f"The database {made.place} has no tables of this release.")
        return await identity(made)
    finally:
        await made.close()
