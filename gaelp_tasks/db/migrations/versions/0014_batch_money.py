"""Batches that a budget pays for: what their lines may cost at most, and bills that are not settled yet."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import JsonText

revision = "0014_batch_money"
down_revision = "0013_turns"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "batch_bills",
        sa.Column("batch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("hold", sa.String(255), nullable=False),
        sa.Column("counted_to", sa.Integer(), nullable=False),
        sa.Column("charges", JsonText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch"], ["batches.key"], name=op.f("fk_batch_bills_batch_batches"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch", name=op.f("pk_batch_bills")),
    )
    op.create_table(
        "batch_bounds",
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("wasted_tokens", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["batch"], ["batches.key"], name=op.f("fk_batch_bounds_batch_batches"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("batch", "number", name=op.f("pk_batch_bounds")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("batch_bounds")
    op.drop_table("batch_bills")
