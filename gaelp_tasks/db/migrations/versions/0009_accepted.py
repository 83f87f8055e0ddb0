"""Invocations accepted over HTTP, until they are settled."""

revision = "0009_accepted"
down_revision = "0008_agents"


def upgrade() -> None:
    """Make the tables."""


def downgrade() -> None:
    """Drop them."""
