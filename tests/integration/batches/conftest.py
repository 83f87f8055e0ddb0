"""The batches of an empty database."""

import pytest

from gaelp_tasks.db.batches import Batches


@pytest.fixture
def batches(db):
    return Batches(db)
