"""A replica dies while it answers under an Idempotency-Key: who asks again has its answer; it was done once.

The short form dies on SQLite between the commit and the answer, and just before that commit; `--long` at each
place, on both databases.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests

from support.api_server import ApiServer
from support.eventually import eventually

pytestmark = [pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(120)]

SHORT = ("replay:noted", "replay:done")
PLACES = ("replay:begun", *SHORT, "replay:kept")
AGENTS = "/api/v1/agents"
WITHIN_S = 20.0  #: far below a day


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request, newest_tables, tmp_path):
    if request.param == "sqlite":
        return {"GAELP_DATABASE_URL": f"sqlite:///{shutil.copy(newest_tables, tmp_path / 'api.db')}"}
    if not request.config.getoption("--long"):
        pytest.skip("PostgreSQL is for the long form")
    return {"GAELP_DATABASE_URL": request.getfixturevalue("postgres").new_database()}


def asked(server, place):
    """The answer to who wants an agent, None where nobody answers."""
    headers = {"Authorization": f"Bearer {server.token()}", "Idempotency-Key": place}
    body = {"name": place, "type": "simulation"}
    try:
        return requests.post(server.url + AGENTS, json=body, headers=headers, timeout=20)
    except requests.ConnectionError:
        return None


def test_who_asks_again_has_the_answer_of_what_was_done_once(broker, settings, tmp_path, request):
    places = PLACES if request.config.getoption("--long") else SHORT
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        dying = [ApiServer(tmp_path, place, "1", program="faults.dying_api", **settings) for place in places]
        living = ApiServer(tmp_path, "nowhere", "0", program="faults.dying_api", **settings)
        list(pool.map(stack.enter_context, [living, *dying]))
        for place, server in zip(places, dying, strict=True):
            assert asked(server, place) is None, "it died"
            assert server.process.wait(timeout=10) == -9
        seen = {place: set() for place in places}

        def answered(place):
            """Two at once, as impatient clients do."""
            told = list(pool.map(lambda _: asked(living, place), range(2)))
            seen[place] |= {one.status_code for one in told}
            return next((one for one in told if one.ok), None)

        for place in places:
            first = eventually(
                lambda at=place: answered(at), within_s=WITHIN_S, what=f"an answer after {place}"
            )
            again = asked(living, place)
            assert (again.status_code, again.json()) == (201, first.json()), place
            assert seen[place] <= {201, 409}, place
        with living.session() as session:
            names = [one["name"] for one in session.get(living.url + AGENTS, timeout=20).json()]
        assert sorted(names) == sorted(places)
