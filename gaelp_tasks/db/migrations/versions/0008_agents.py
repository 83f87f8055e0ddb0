"""Agents with versions, secrets, deployments, metrics; decisions about them."""

revision = "0008_agents"
down_revision = "0007_money"


def upgrade() -> None:
    """Make the tables."""


def downgrade() -> None:
    """Drop them."""
