"""Training jobs, their logs and checkpoints."""

import sqlalchemy as sa
from alembic import op

from gaelp_tasks.db.base import JsonText, UtcTime

revision = "0010_training"
down_revision = "0009_accepted"

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "training_jobs",
        sa.Column("id", NUMBER, nullable=False),
        sa.Column("tenant", sa.String(200), nullable=False),
        sa.Column("owner", sa.String(200), nullable=False),
        sa.Column("agent_id", sa.BigInteger(), nullable=False),
        sa.Column("agent_version", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("wish", sa.String(16), nullable=False),
        sa.Column("cpu_milli", sa.BigInteger(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("gpus", sa.BigInteger(), nullable=False),
        sa.Column("storage_bytes", sa.BigInteger(), nullable=False),
        sa.Column("hyperparameters", JsonText(), nullable=False),
        sa.Column("config", JsonText(), nullable=False),
        sa.Column("preemptible", sa.Boolean(), nullable=False),
        sa.Column("retries", sa.Integer(), nullable=False),
        sa.Column("timeout_s", sa.Float(), nullable=False),
        sa.Column("docker_image", sa.String(500), nullable=True),
        sa.Column("task_id", sa.String(36), nullable=False),
        sa.Column("claim", sa.BigInteger(), nullable=False),
        sa.Column("runner", sa.String(16), nullable=True),
        sa.Column("node", sa.String(255), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("starts", sa.Integer(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("preemptions", sa.Integer(), nullable=False),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("progress", sa.Float(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("checkpoint", sa.String(500), nullable=True),
        sa.Column("checkpoint_step", sa.BigInteger(), nullable=True),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("created_at", UtcTime(), nullable=False),
        sa.Column("admitted_at", UtcTime(), nullable=True),
        sa.Column("published_at", UtcTime(), nullable=True),
        sa.Column("due_at", UtcTime(), nullable=True),
        sa.Column("started_at", UtcTime(), nullable=True),
        sa.Column("run_at", UtcTime(), nullable=True),
        sa.Column("seen_at", UtcTime(), nullable=True),
        sa.Column("ended_at", UtcTime(), nullable=True),
        sa.Column("ran_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_jobs")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_training_jobs_tenant_id"), "training_jobs", ["tenant", "id"])
    op.create_index(op.f("ix_training_jobs_state_priority_id"), "training_jobs", ["state", "priority", "id"])
    op.create_index(op.f("ix_training_jobs_agent_id"), "training_jobs", ["agent_id"])
    op.create_table(
        "training_logs",
        sa.Column("job", NUMBER, nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("stream", sa.String(16), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"], ["training_jobs.id"], name=op.f("fk_training_logs_job_training_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job", "number", name=op.f("pk_training_logs")),
    )
    op.create_table(
        "training_checkpoints",
        sa.Column("job", NUMBER, nullable=False),
        sa.Column("path", sa.String(500), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("at", UtcTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job"],
            ["training_jobs.id"],
            name=op.f("fk_training_checkpoints_job_training_jobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job", "path", name=op.f("pk_training_checkpoints")),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("training_checkpoints")
    op.drop_table("training_logs")
    for columns in ("agent_id", "state_priority_id", "tenant_id"):
        op.drop_index(op.f(f"ix_training_jobs_{columns}"), table_name="training_jobs")
    op.drop_table("training_jobs")
