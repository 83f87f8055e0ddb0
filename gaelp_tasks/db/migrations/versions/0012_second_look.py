"""Who has set secrets, and whether an approval was taken back since."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import UtcTime

revision = "0012_second_look"
down_revision = "0011_owners"


def upgrade() -> None:
    """Add the columns; nobody is known to have set the secrets that were there before."""
    op.add_column("agents", sa.Column("secrets_by", sa.String(200), nullable=False, server_default=""))
    op.add_column("agent_secrets", sa.Column("author", sa.String(200), nullable=False, server_default=""))
    op.add_column("agent_deployments", sa.Column("withdrawn_at", UtcTime(), nullable=True))


def downgrade() -> None:
    """Drop them; an approval that was taken back was none."""
    op.execute(
        "UPDATE agent_deployments SET approved_by = NULL, approved_at = NULL WHERE withdrawn_at IS NOT NULL"
    )
    op.drop_column("agent_deployments", "withdrawn_at")
    op.drop_column("agent_secrets", "author")
    op.drop_column("agents", "secrets_by")
