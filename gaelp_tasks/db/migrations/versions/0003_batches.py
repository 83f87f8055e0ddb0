"""Batches of requests from files, and their lines."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import UtcTime

revision = "0003_batches"
down_revision = "0002_schedules"


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "batches",
        sa.Column("key", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("tier", sa.String(16), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("started_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.Column("expires_at", UtcTime(), nullable=True),
        sa.Column("seen_at", UtcTime(), nullable=True),
        sa.Column("conductor", sa.String(64), nullable=True),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("ticket", sa.Integer(), nullable=False),
        sa.Column("published_to", sa.Integer(), nullable=False),
        sa.Column("disturbed_to", sa.Integer(), nullable=False),
        sa.Column("cleared_to", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("invalid", sa.Integer(), nullable=False),
        sa.Column("expired", sa.Integer(), nullable=False),
        sa.Column("cancelled", sa.Integer(), nullable=False),
        sa.Column("trouble", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_batches")),
        sa.UniqueConstraint("id", name=op.f("uq_batches_id")),
    )
    op.create_index(op.f("ix_batches_tenant"), "batches", ["tenant"])
    op.create_index(op.f("ix_batches_state"), "batches", ["state"])
    op.create_table(
        "batch_lines",
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("custom_id", sa.String(200), nullable=True),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("embeds", sa.Boolean(), nullable=False),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("body_bytes", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.Column("result_bytes", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(100), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch"], ["batches.key"], name=op.f("fk_batch_lines_batch_batches"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch", "number", name=op.f("pk_batch_lines")),
        sa.UniqueConstraint("batch", "custom_id", name=op.f("uq_batch_lines_batch_custom_id")),
    )


def downgrade() -> None:
    """Drop both."""
    op.drop_table("batch_lines")
    op.drop_index(op.f("ix_batches_state"), table_name="batches")
    op.drop_index(op.f("ix_batches_tenant"), table_name="batches")
    op.drop_table("batches")
