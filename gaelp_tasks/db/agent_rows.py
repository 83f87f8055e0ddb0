"""The tables of agents: their versions, secrets, deployments and metrics, and what was decided about them."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from gaelp_tasks.db.base import Base, JsonText, UtcTime
from gaelp_tasks.models.batch import LONGEST_TENANT

__all__ = ["AgentRow", "DecisionRow", "DeploymentRow", "MetricsRow", "SecretRow", "VersionRow"]

Number = BigInteger().with_variant(Integer(), "sqlite")  #: SQLite counts up only what it calls INTEGER
NAME = 200  #: characters of a name
OF_AN_AGENT = "agents.id"


class AgentRow(Base):
    """An agent as it stands."""

    __tablename__ = "agents"
    __table_args__ = (
        Index(None, "tenant", "id"),
        {"sqlite_autoincrement": True},  # an id is never given again
    )

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    owner: Mapped[str] = mapped_column(String(NAME))
    name: Mapped[str] = mapped_column(String(NAME))  #: of the newest version
    type: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    version: Mapped[int] = mapped_column(Integer)  #: the newest
    secrets_by: Mapped[str] = mapped_column(String(NAME), server_default="")  #: who changed them last
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcTime)


class VersionRow(Base):
    """What an agent is made of; written once."""

    __tablename__ = "agent_versions"

    agent: Mapped[int] = mapped_column(ForeignKey(OF_AN_AGENT), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    author: Mapped[str] = mapped_column(String(NAME))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    rolled_back_to: Mapped[int | None] = mapped_column(Integer)
    spec: Mapped[dict[str, Any]] = mapped_column(JsonText)


class SecretRow(Base):
    """A secret of an agent, sealed."""

    __tablename__ = "agent_secrets"

    agent: Mapped[int] = mapped_column(ForeignKey(OF_AN_AGENT), primary_key=True)
    name: Mapped[str] = mapped_column(String(NAME), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    author: Mapped[str] = mapped_column(String(NAME), server_default="")  #: '' where nobody is known
    sealed: Mapped[str] = mapped_column(Text)
    changed_at: Mapped[datetime] = mapped_column(UtcTime)


class DeploymentRow(Base):
    """An agent at work somewhere."""

    __tablename__ = "agent_deployments"
    __table_args__ = (Index(None, "agent", "id"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    agent: Mapped[int] = mapped_column(ForeignKey(OF_AN_AGENT))
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    version: Mapped[int] = mapped_column(Integer)
    environment: Mapped[str] = mapped_column(String(16))
    replicas: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(16))
    created_by: Mapped[str] = mapped_column(String(NAME))
    approved_by: Mapped[str | None] = mapped_column(String(NAME))
    approved_at: Mapped[datetime | None] = mapped_column(UtcTime)
    withdrawn_at: Mapped[datetime | None] = mapped_column(UtcTime)  #: the approval; None: it holds
    why: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class MetricsRow(Base):
    """One record of what an agent is measured by."""

    __tablename__ = "agent_metrics"
    __table_args__ = (Index(None, "agent", "id"), Index(None, "at"))

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    agent: Mapped[int] = mapped_column(ForeignKey(OF_AN_AGENT))
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    at: Mapped[datetime] = mapped_column(UtcTime)
    step: Mapped[int | None] = mapped_column(BigInteger)
    job: Mapped[int | None] = mapped_column(BigInteger)
    values: Mapped[dict[str, float]] = mapped_column(JsonText)
    resources: Mapped[dict[str, float] | None] = mapped_column(JsonText)


class DecisionRow(Base):
    """What was decided, for good; nothing changes or removes a row but the age that a setting names."""

    __tablename__ = "decisions"
    __table_args__ = (Index(None, "tenant", "at"), Index(None, "agent", "at"), {"sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    tenant: Mapped[str] = mapped_column(String(LONGEST_TENANT))
    at: Mapped[datetime] = mapped_column(UtcTime)
    agent: Mapped[int | None] = mapped_column(BigInteger)  #: None: it never came to be
    actor: Mapped[str] = mapped_column(String(NAME))
    role: Mapped[str] = mapped_column(String(16))
    act: Mapped[str] = mapped_column(String(32))
    allowed: Mapped[bool] = mapped_column(Boolean)
    rule: Mapped[str] = mapped_column(String(32))  #: that was broken; '' where it was allowed
    why: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(String(255))  #: what it was about beside the agent; '' for nothing
