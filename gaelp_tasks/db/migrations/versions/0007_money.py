"""Budgets, what is held of them, the ledger; quotas and what is held of those."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import UtcTime

revision = "0007_money"
down_revision = "0006_users"

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
RESOURCES = ("cpu_milli", "memory_bytes", "gpus", "storage_bytes")


def upgrade() -> None:
    """Make the tables."""
    _budgets()
    _ledger()
    _quotas()


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", KEY, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("owner_kind", sa.String(16), nullable=False),
        sa.Column("owner_id", sa.String(255), nullable=False),
        sa.Column("available_micro", sa.BigInteger(), nullable=False),
        sa.Column("held_micro", sa.BigInteger(), nullable=False),
        sa.Column("spent_micro", sa.BigInteger(), nullable=False),
        sa.Column("period", sa.String(16), nullable=False),
        sa.Column("period_start", UtcTime(), nullable=True),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
        sa.UniqueConstraint(
            "tenant", "owner_kind", "owner_id", name=op.f("uq_budgets_tenant_owner_kind_owner_id")
        ),
    )
    op.create_table(
        "budget_holds",
        sa.Column("id", KEY, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("job", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("bound_micro", sa.BigInteger(), nullable=False),
        sa.Column("asked_micro", sa.BigInteger(), nullable=True),
        sa.Column("spent_micro", sa.BigInteger(), nullable=False),
        sa.Column("most_prompt_tokens", sa.BigInteger(), nullable=True),
        sa.Column("most_tokens", sa.BigInteger(), nullable=True),
        sa.Column("held_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_holds")),
        sa.UniqueConstraint("tenant", "key", name=op.f("uq_budget_holds_tenant_key")),
    )
    only = sa.text("state = 'held'")
    op.create_index(
        "ix_budget_holds_open", "budget_holds", ["held_at"], sqlite_where=only, postgresql_where=only
    )


def _ledger() -> None:
    op.create_table(
        "budget_entries",
        sa.Column("id", KEY, nullable=False),
        sa.Column("budget", KEY, nullable=False),
        sa.Column("hold", KEY, nullable=True),
        sa.Column("move", sa.String(16), nullable=False),
        sa.Column("amount_micro", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("made_by", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budget_entries")),
        sa.ForeignKeyConstraint(["budget"], ["budgets.id"], name=op.f("fk_budget_entries_budget_budgets")),
        sa.ForeignKeyConstraint(
            ["hold"], ["budget_holds.id"], name=op.f("fk_budget_entries_hold_budget_holds")
        ),
    )
    op.create_index(op.f("ix_budget_entries_budget"), "budget_entries", ["budget"])
    op.create_index(op.f("ix_budget_entries_hold"), "budget_entries", ["hold"])
    op.create_table(
        "costs",
        sa.Column("id", KEY, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("hold", KEY, nullable=False),
        sa.Column("agent", sa.String(255), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        sa.Column("job", sa.String(255), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("amount_micro", sa.BigInteger(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_costs")),
        sa.ForeignKeyConstraint(["hold"], ["budget_holds.id"], name=op.f("fk_costs_hold_budget_holds")),
    )
    op.create_index(op.f("ix_costs_hold"), "costs", ["hold"])
    op.create_index("ix_costs_tenant_at", "costs", ["tenant", "at"])
    op.create_index("ix_costs_tenant_agent_at", "costs", ["tenant", "agent", "at"])


def _quotas() -> None:
    op.create_table(
        "quotas",
        sa.Column("id", KEY, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("user_name", sa.String(255), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=True) for name in (*RESOURCES, "runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quotas")),
        sa.UniqueConstraint("tenant", "user_name", name=op.f("uq_quotas_tenant_user_name")),
    )
    op.create_table(
        "quota_holds",
        sa.Column("id", KEY, nullable=False),
        sa.Column("quota", KEY, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in (*RESOURCES, "runs")),
        sa.Column("held_at", UtcTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quota_holds")),
        sa.ForeignKeyConstraint(["quota"], ["quotas.id"], name=op.f("fk_quota_holds_quota_quotas")),
        sa.UniqueConstraint("tenant", "key", name=op.f("uq_quota_holds_tenant_key")),
    )
    op.create_index(op.f("ix_quota_holds_quota"), "quota_holds", ["quota"])


def downgrade() -> None:
    """Drop them."""
    for table in ("quota_holds", "quotas", "costs", "budget_entries", "budget_holds", "budgets"):
        op.drop_table(table)
