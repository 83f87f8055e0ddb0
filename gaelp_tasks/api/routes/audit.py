"""What was decided about agents, and what they have spent."""

from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import StreamingResponse

from gaelp_tasks.api.access import needs
from gaelp_tasks.api.paging import Paged
from gaelp_tasks.api.routes.agents import Here
from gaelp_tasks.models.audit import AuditEntry, Span
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.schedule import Moment
from gaelp_tasks.models.stored import LONGEST_ID
from gaelp_tasks.services import audit

__all__ = ["router"]

router = APIRouter(prefix="/api/v1/audit", tags=["audit"])

Operator = Annotated[Caller, needs(Role.OPERATOR)]
OfAgent = Annotated[int | None, Query(ge=1, le=LONGEST_ID, description="of this agent alone")]


class Form(StrEnum):
    """Of an export."""

    JSONL = "jsonl"
    CSV = "csv"


TYPES = {Form.JSONL: "application/x-ndjson", Form.CSV: "text/csv"}


@router.get("")
async def listed(
    at: Here,
    caller: Operator,
    page: Paged,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query(alias="to")] = None,
    agent_id: OfAgent = None,
) -> list[AuditEntry]:
    """Decisions and violations, the oldest first."""
    span = Span(since, until)
    return await audit.listed(at.db, caller.scope, span, agent_id=agent_id, most=page.limit, skip=page.skip)


@router.get("/export", response_class=StreamingResponse)
async def export(
    at: Here,
    caller: Operator,
    since: Annotated[Moment | None, Query(alias="from")] = None,
    until: Annotated[Moment | None, Query(alias="to")] = None,
    agent_id: OfAgent = None,
    form: Annotated[Form, Query(alias="format")] = Form.JSONL,
) -> StreamingResponse:
    """Decisions, violations and spending of a period, by their times."""
    records = audit.entries(at.db, caller.scope, Span(since, until), agent_id=agent_id)
    lines = audit.as_csv(records) if form is Form.CSV else audit.as_jsonl(records)
    name = f'attachment; filename="audit.{form}"'
    return StreamingResponse(lines, media_type=TYPES[form], headers={"Content-Disposition": name})
