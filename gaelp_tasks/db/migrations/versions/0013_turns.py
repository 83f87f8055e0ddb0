"""Who answers what is under an idempotency key, until when nobody else does, and whether it was done."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import UtcTime

revision = "0013_turns"
down_revision = "0012_second_look"

TABLE = "idempotent_requests"
COLUMNS = ("made", "done", "until", "turn")


def upgrade() -> None:
    """Add the columns; what an earlier release has begun counts as done."""
    op.add_column(TABLE, sa.Column("turn", sa.Integer(), nullable=False, server_default="1"))
    op.add_column(TABLE, sa.Column("until", UtcTime(), nullable=True))
    op.add_column(TABLE, sa.Column("done", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column(TABLE, sa.Column("made", sa.String(300), nullable=False, server_default=""))


def downgrade() -> None:
    """Drop them."""
    for name in COLUMNS:
        op.drop_column(TABLE, name)
