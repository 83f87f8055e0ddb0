"""Which part of a list is asked for."""

from typing import Annotated

from fastapi import Depends, Query

from gaelp_tasks.models.frozen import Frozen

__all__ = ["MOST", "Page", "Paged"]

MOST = 1000  #: entries of one answer
FARTHEST = 2**31 - 1  #: what every database takes as an offset


class Page(Frozen):
    """`limit` entries after the first `skip`."""

    skip: int = 0
    limit: int = 100


async def _page(
    skip: Annotated[int, Query(ge=0, le=FARTHEST, description="leave out so many")] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST, description="at most so many")] = 100,
) -> Page:
    return Page.model_construct(skip=skip, limit=limit)


Paged = Annotated[Page, Depends(_page)]  #: in routes: `page: Paged`
