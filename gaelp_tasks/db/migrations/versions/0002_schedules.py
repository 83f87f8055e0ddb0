"""Schedules that beat publishes."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import JsonText, UtcTime

revision = "0002_schedules"
down_revision = "0001_history"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("spec", JsonText(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("decided_until", UtcTime(), nullable=False),
        sa.Column("waiting_since", UtcTime(), nullable=True),
        sa.Column("next_due", UtcTime(), nullable=True),
        sa.Column("last_due", UtcTime(), nullable=True),
        sa.Column("last_task", sa.String(255), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.UniqueConstraint("tenant", "name", name="uq_schedules_tenant_name"),
    )
    op.create_index("ix_schedules_paused_next_due", "schedules", ["paused", "next_due"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_schedules_paused_next_due", table_name="schedules")
    op.drop_table("schedules")
