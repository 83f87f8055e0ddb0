"""Batches that work inside windows only, and until when nobody need work on one."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import UtcTime

revision = "0005_batch_windows"
down_revision = "0004_open_lines"


def upgrade() -> None:
    """Add both columns."""
    op.add_column("batches", sa.Column("hours", sa.Text(), nullable=True))
    op.add_column("batches", sa.Column("waits_until", UtcTime(), nullable=True))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("batches", "waits_until")
    op.drop_column("batches", "hours")
