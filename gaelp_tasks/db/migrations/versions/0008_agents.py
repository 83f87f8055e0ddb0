"""Agents with versions, secrets, deployments, metrics; decisions about them."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import JsonText, UtcTime

revision = "0008_agents"
down_revision = "0007_money"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "agents",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agents")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_agents_tenant_id"), "agents", ["tenant", "id"])
    op.create_table(
        "agent_versions",
        sa.Column("agent", NUMBER, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("author", sa.String(200), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("rolled_back_to", sa.Integer(), nullable=True),
        sa.Column("spec", JsonText(), nullable=False),
        sa.ForeignKeyConstraint(["agent"], ["agents.id"], name=op.f("fk_agent_versions_agent_agents")),
        sa.PrimaryKeyConstraint("agent", "number", name=op.f("pk_agent_versions")),
    )
    op.create_table(
        "agent_secrets",
        sa.Column("agent", NUMBER, autoincrement=False, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("changed_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["agent"], ["agents.id"], name=op.f("fk_agent_secrets_agent_agents")),
        sa.PrimaryKeyConstraint("agent", "name", name=op.f("pk_agent_secrets")),
    )
    op.create_table(
        "agent_deployments",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("agent", NUMBER, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("replicas", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_by", sa.String(200), nullable=False),
        sa.Column("approved_by", sa.String(200), nullable=True),
        sa.Column("approved_at", UtcTime(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("updated_at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(["agent"], ["agents.id"], name=op.f("fk_agent_deployments_agent_agents")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_deployments")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_agent_deployments_agent_id"), "agent_deployments", ["agent", "id"])
    op.create_table(
        "agent_metrics",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("agent", NUMBER, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("job", sa.BigInteger(), nullable=True),
        sa.Column("values", JsonText(), nullable=False),
        sa.Column("resources", JsonText(), nullable=True),
        sa.ForeignKeyConstraint(["agent"], ["agents.id"], name=op.f("fk_agent_metrics_agent_agents")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_agent_metrics")),
    )
    op.create_index(op.f("ix_agent_metrics_agent_id"), "agent_metrics", ["agent", "id"])
    op.create_index(op.f("ix_agent_metrics_at"), "agent_metrics", ["at"])
    op.create_table(
        "decisions",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("agent", sa.BigInteger(), nullable=True),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("act", sa.String(32), nullable=False),
        sa.Column("allowed", sa.Boolean(), nullable=False),
        sa.Column("rule", sa.String(32), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_decisions_tenant_at"), "decisions", ["tenant", "at"])
    op.create_index(op.f("ix_decisions_agent_at"), "decisions", ["agent", "at"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index(op.f("ix_decisions_agent_at"), table_name="decisions")
    op.drop_index(op.f("ix_decisions_tenant_at"), table_name="decisions")
    op.drop_table("decisions")
    op.drop_index(op.f("ix_agent_metrics_at"), table_name="agent_metrics")
    op.drop_index(op.f("ix_agent_metrics_agent_id"), table_name="agent_metrics")
    op.drop_table("agent_metrics")
    op.drop_index(op.f("ix_agent_deployments_agent_id"), table_name="agent_deployments")
    op.drop_table("agent_deployments")
    op.drop_table("agent_secrets")
    op.drop_table("agent_versions")
    op.drop_index(op.f("ix_agents_tenant_id"), table_name="agents")
    op.drop_table("agents")
