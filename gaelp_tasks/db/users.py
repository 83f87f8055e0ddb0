"""Users of the API in SQL, and the keys by which they come in."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    ForeignKey,
    Integer,
    Select,
    String,
    UniqueConstraint,
    delete,
    func,
    select,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, UtcTime
from gaelp_tasks.db.database import Database
from gaelp_tasks.db.decisions import Decisions
from gaelp_tasks.db.idempotency import note_made
from gaelp_tasks.errors import Conflict, NotFound
from gaelp_tasks.models.audit import COMMAND, By, Deed, Kept
from gaelp_tasks.models.batch import LONGEST_TENANT
from gaelp_tasks.models.caller import LONGEST_USER, Role
from gaelp_tasks.models.user import Key, NewUser, User, UserChanges

__all__ = ["FoundKey", "Keys", "Users"]

Id = BigInteger().with_variant(Integer, "sqlite")  #: counts up by itself on both databases
LARGEST = 2**63 - 1  #: id


class UserRow(Base):
    """Somebody by name; who was removed stays, so that no old token brings the name back."""

    __tablename__ = "users"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(LONGEST_USER))
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    role: Mapped[str] = mapped_column(String(20))
    disabled: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    tokens_from: Mapped[datetime | None] = mapped_column(UtcTime)
    removed_at: Mapped[datetime | None] = mapped_column(UtcTime)


class KeyRow(Base):
    """A key of a user: how it begins, and a hash of all of it."""

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("prefix"),)

    id: Mapped[int] = mapped_column(Id, primary_key=True)
    user_id: Mapped[int] = mapped_column(Id, ForeignKey("users.id"), index=True)
    role: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(100))
    prefix: Mapped[str] = mapped_column(String(40))
    digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)


def _user(row: UserRow) -> User:
    return User.model_construct(
        id=row.id,
        name=row.name,
        tenant=row.tenant,
        role=Role(row.role),
        disabled=row.disabled or row.removed_at is not None,
        created_at=row.created_at,
        tokens_from=row.tokens_from,
    )


class Users:
    """The users of a tenant; None: of all of them. What is changed stands in the audit as done `by` one."""

    def __init__(self, db: Database, tenant: str | None, by: By = COMMAND) -> None:
        self._db = db
        self._tenant = tenant
        self._by = by

    async def add(self, new: NewUser, now: datetime) -> User:
        """Know somebody from now on; tokens that a removed one of this name had do not hold again.

        Raises Conflict where the name is taken.
        """
        try:
            async with self._db.writing() as session:
                row = await self._named(session, new.name)
                if row is not None and row.removed_at is None:
                    raise Conflict(_taken(new.name))
                if row is None:
                    row = UserRow(name=new.name, created_at=now)
                    session.add(row)
                else:
                    row.created_at = row.tokens_from = now
                row.tenant, row.role, row.disabled, row.removed_at = new.tenant, new.role, False, None
                await session.flush()
                note_made(session, f"users/{row.id}")
                said = f"user {row.name}: role={row.role}"
                await _note(session, self._by.did(Deed.ADD_USER, said, tenant=row.tenant, at=now))
        except IntegrityError:
            raise Conflict(_taken(new.name)) from None
        return _user(row)

    async def listed(self, skip: int = 0, limit: int | None = None) -> list[User]:
        """Some of them by name; `limit` None: the rest."""
        asked = self._mine().order_by(UserRow.name).offset(skip).limit(limit)
        async with self._db.reading() as session:
            return [_user(row) for row in await session.scalars(asked)]

    async def count(self) -> int:
        """How many there are."""
        async with self._db.reading() as session:
            return await session.scalar(select(func.count()).select_from(self._mine().subquery())) or 0

    async def get(self, user_id: int) -> User:
        """The one of this id. Raises NotFound."""
        async with self._db.reading() as session:
            return _user(await self._row(session, user_id))

    async def named(self, name: str) -> User:
        """The one of this name. Raises NotFound."""
        async with self._db.reading() as session:
            row = (await session.scalars(self._mine().where(UserRow.name == name))).one_or_none()
        if row is None:
            raise NotFound(f"There is no user {name!r}.")
        return _user(row)

    async def find(self, name: str) -> User | None:
        """The one of this name, also a removed one, who counts as disabled; None: there never was one."""
        asked = select(UserRow).where(UserRow.name == name)
        if self._tenant is not None:
            asked = asked.where(UserRow.tenant == self._tenant)
        async with self._db.reading() as session:
            row = (await session.scalars(asked)).one_or_none()
        return None if row is None else _user(row)

    async def change(self, user_id: int, changes: UserChanges, now: datetime) -> User:
        """Raises NotFound."""
        async with self._db.writing() as session:
            row = await self._row(session, user_id)
            given = changes.model_dump(exclude_none=True, exclude_defaults=True)
            said = ", ".join(f"{name}={value}" for name, value in given.items())
            subject = f"user {row.name}: {said or 'nothing'}"
            tenants = [row.tenant]
            if changes.tenant is not None:
                tenants.append(changes.tenant)
                row.tenant = changes.tenant
            if changes.role is not None:
                row.role = changes.role
            if changes.disabled is not None:
                row.disabled = changes.disabled
            if changes.sign_out:
                row.tokens_from = now
            for tenant in dict.fromkeys(tenants):
                await _note(session, self._by.did(Deed.CHANGE_USER, subject, tenant=tenant, at=now))
        return _user(row)

    async def remove(self, user_id: int, now: datetime) -> User:
        """Nobody comes in by this name any more, and its keys are gone. Raises NotFound."""
        async with self._db.writing() as session:
            row = await self._row(session, user_id)
            row.removed_at = now
            await session.execute(delete(KeyRow).where(KeyRow.user_id == row.id))
            said = f"user {row.name}"
            await _note(session, self._by.did(Deed.REMOVE_USER, said, tenant=row.tenant, at=now))
        return _user(row)

    def _mine(self) -> Select[tuple[UserRow]]:
        asked = select(UserRow).where(UserRow.removed_at.is_(None))
        return asked if self._tenant is None else asked.where(UserRow.tenant == self._tenant)

    async def _row(self, session: AsyncSession, user_id: int) -> UserRow:
        if abs(user_id) > LARGEST:  # no database takes it
            raise NotFound(f"There is no user {user_id}.")
        asked = self._mine().where(UserRow.id == user_id).with_for_update()
        row = (await session.scalars(asked)).one_or_none()
        if row is None:
            raise NotFound(f"There is no user {user_id}.")
        return row

    async def _named(self, session: AsyncSession, name: str) -> UserRow | None:
        return (
            await session.scalars(select(UserRow).where(UserRow.name == name).with_for_update())
        ).one_or_none()


async def _note(session: AsyncSession, kept: Kept) -> None:
    await Decisions(session, kept.tenant).add([kept])


def _taken(name: str) -> str:
    return f"There is a user {name!r} already."


class FoundKey(NamedTuple):
    """What a key's beginning leads to."""

    digest: str
    role: Role
    expires_at: datetime | None
    user: User


class Keys:
    """The keys of one user by name; None: of all of them. What is changed stands in the audit."""

    def __init__(self, db: Database, user: str | None, by: By = COMMAND) -> None:
        self._db = db
        self._user = user
        self._by = by

    async def add(self, key: Key, digest: str) -> Key:
        """Keep a key by its hash; it comes back with its id. Raises NotFound where nobody is called so."""
        asked = select(UserRow).where(UserRow.name == key.user, UserRow.removed_at.is_(None))
        async with self._db.writing() as session:
            user = (await session.scalars(asked.with_for_update())).one_or_none()
            if user is None:
                raise NotFound(f"There is no user {key.user!r} to have a key; an admin adds users.")
            row = KeyRow(
                user_id=user.id,
                role=key.role,
                name=key.name,
                prefix=key.prefix,
                digest=digest,
                created_at=key.created_at,
                expires_at=key.expires_at,
            )
            session.add(row)
            said = f"key {key.prefix} of {user.name}: role={row.role}"
            kept = self._by.did(Deed.MAKE_KEY, said, tenant=user.tenant, at=key.created_at)
            await _note(session, kept)
        return key.model_copy(update={"id": row.id})

    async def listed(self, skip: int = 0, limit: int | None = None) -> list[Key]:
        """Some of them, the oldest first; `limit` None: the rest."""
        asked = self._mine().order_by(KeyRow.id).offset(skip).limit(limit)
        async with self._db.reading() as session:
            found: Sequence[tuple[KeyRow, UserRow]] = [tuple(one) for one in await session.execute(asked)]
        return [
            Key(
                id=key.id,
                user=user.name,
                role=Role(key.role),
                name=key.name,
                prefix=key.prefix,
                created_at=key.created_at,
                expires_at=key.expires_at,
            )
            for key, user in found
        ]

    async def remove(self, key_id: int) -> str:
        """Nobody comes in by it any more; how it began. Raises NotFound."""
        async with self._db.writing() as session:
            found = None
            if abs(key_id) <= LARGEST:
                found = (await session.execute(self._mine().where(KeyRow.id == key_id))).one_or_none()
            if found is None:
                raise NotFound(f"There is no key {key_id}.")
            key, user = found
            await session.delete(key)
            said = f"key {key.prefix} of {user.name}"
            await _note(
                session, self._by.did(Deed.REMOVE_KEY, said, tenant=user.tenant, at=datetime.now(UTC))
            )
            return str(key.prefix)

    async def find(self, prefix: str) -> FoundKey | None:
        """The one that begins so."""
        async with self._db.reading() as session:
            found = (await session.execute(self._mine().where(KeyRow.prefix == prefix))).one_or_none()
        if found is None:
            return None
        key, user = found
        return FoundKey(key.digest, Role(key.role), key.expires_at, _user(user))

    def _mine(self) -> Select[tuple[KeyRow, UserRow]]:
        asked = select(KeyRow, UserRow).join(UserRow, UserRow.id == KeyRow.user_id)
        return asked if self._user is None else asked.where(UserRow.name == self._user)
