"""A place where runs are stopped and taken up at once."""

import pytest

from gaelp_tasks import streams
from support.stops import Place


@pytest.fixture
async def place(monkeypatch):
    monkeypatch.setattr(streams, "AGAIN_S", 0.0)
    made = Place()
    yield made
    await made.close()
