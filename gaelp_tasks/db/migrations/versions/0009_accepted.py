"""Invocations accepted over HTTP, until they are settled and for a while after that."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import UtcTime

revision = "0009_accepted"
down_revision = "0008_agents"

IS_OPEN = sa.text("standing IN ('accepted', 'published')")


def upgrade() -> None:
    """Make the table."""
    key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "accepted",
        sa.Column("key", key, nullable=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("standing", sa.String(16), nullable=False),
        sa.Column("next_at", UtcTime(), nullable=True),
        sa.Column("agent_id", sa.BigInteger(), nullable=True),
        sa.Column("budget_micro", sa.BigInteger(), nullable=True),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("tier", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("published_at", UtcTime(), nullable=True),
        sa.Column("publications", sa.Integer(), nullable=False),
        sa.Column("life", sa.String(64), nullable=False),
        sa.Column("cancelled_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.Column("stop_reason", sa.String(16), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_accepted")),
        sa.UniqueConstraint("id", name=op.f("uq_accepted_id")),
    )
    op.create_index("ix_accepted_tenant_key", "accepted", ["tenant", "key"])
    op.create_index(
        "ix_accepted_open", "accepted", ["next_at"], sqlite_where=IS_OPEN, postgresql_where=IS_OPEN
    )
    op.create_index("ix_accepted_ended_at", "accepted", ["ended_at"])


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_accepted_ended_at", table_name="accepted")
    op.drop_index("ix_accepted_open", table_name="accepted")
    op.drop_index("ix_accepted_tenant_key", table_name="accepted")
    op.drop_table("accepted")
