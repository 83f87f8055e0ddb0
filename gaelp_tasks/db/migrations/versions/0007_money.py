"""Budgets, what is held of them, the ledger; quotas and what is held of those."""

revision = "0007_money"
down_revision = "0006_users"


def upgrade() -> None:
    """Make the tables."""


def downgrade() -> None:
    """Drop them."""
