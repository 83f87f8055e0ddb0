"""Whose batches and schedules are; nobody is known of those that were there before."""

import sqlalchemy as sa
from alembic import op

revision = "0011_owners"
down_revision = "0010_training"

TABLES = ("batches", "schedules")


def upgrade() -> None:
    """Add the column to both; a process of an earlier release that still runs leaves it out."""
    for table in TABLES:
        op.add_column(table, sa.Column("owner", sa.String(200), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop it."""
    for table in TABLES:
        op.drop_column(table, "owner")
