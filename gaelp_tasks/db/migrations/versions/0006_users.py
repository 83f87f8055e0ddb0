"""Users of the API, their keys, and what their idempotency keys stand for."""

revision = "0006_users"
down_revision = "0005_batch_windows"


def upgrade() -> None:
    """Make the tables."""


def downgrade() -> None:
    """Drop them."""
