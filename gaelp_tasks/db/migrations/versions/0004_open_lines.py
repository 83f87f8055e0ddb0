"""An index of the lines of batches that have no outcome: few, however long a batch is."""

import sqlalchemy as sa
from alembic import op

revision = "0004_open_lines"
down_revision = "0003_batches"


def upgrade() -> None:
    """Make it."""
    only = sa.text("outcome IS NULL")
    op.create_index(
        "ix_batch_lines_open", "batch_lines", ["batch", "number"], sqlite_where=only, postgresql_where=only
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_batch_lines_open", table_name="batch_lines")
