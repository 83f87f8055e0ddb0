"""Training jobs, their logs and checkpoints."""

revision = "0010_training"
down_revision = "0009_accepted"


def upgrade() -> None:
    """Make the tables."""


def downgrade() -> None:
    """Drop them."""
