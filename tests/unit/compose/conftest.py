"""Each service of compose.yaml in turn."""

import pytest

from support.compose import SERVICES


@pytest.fixture(params=SERVICES)
def service(request):
    return SERVICES[request.param]
