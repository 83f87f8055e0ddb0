"""Which database this is: one name for life, that its backups share, to tell it from another one."""

from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base
from gaelp_tasks.db.database import Database

__all__ = ["IdentityRow", "identity"]


class IdentityRow(Base):
    """The only row of its table; the first migration writes it."""

    __tablename__ = "identity"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)


async def identity(db: Database) -> str:
    """A UUID. Raises DatabaseUnavailable."""
    async with db.reading() as session:
        return str(await session.scalar(select(IdentityRow.id)))
