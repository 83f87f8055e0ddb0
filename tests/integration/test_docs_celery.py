"""docs/celery.md says what is so: every block on the page is run."""

from pathlib import Path

import pytest

from gaelp_tasks import app
from support.eventually import eventually
from support.service_process import Service
from support.snippets import run, snippets, write_files

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

BLOCKS = snippets(Path(__file__).parents[2] / "docs" / "celery.md")
PROGRAMS = [block for block in BLOCKS if not block.file]


@pytest.fixture(scope="module")
def service(plain_python, broker, worker, tmp_path_factory):
    """The service of the page, with a worker of its own."""
    folder = tmp_path_factory.mktemp("service")
    write_files(BLOCKS, folder)
    service = Service(plain_python, broker.url, folder, code=folder)
    with service.program("worker", "--pool=solo", "--hostname=service@test") as log:
        eventually(lambda: "ready." in log.read_text(), within_s=30, what="the service's own worker")
        yield service


@pytest.mark.parametrize("block", PROGRAMS, ids=lambda block: block.name)
def test_a_block_of_the_page_runs(service, broker, plain_python, block):
    ours = "gaelp_tasks" in block.code
    address = (
        {"GAELP_BROKER_URL": broker.url}
        if ours
        else {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": broker.url}
    )
    run(block, service.folder, python=None if ours else plain_python, **address)


def test_the_schedule_of_the_page_is_kept(service):
    before = sum(1 for _ in app.redis.scan_iter(match=app.keys.stream("*")))
    with service.program("beat", "--schedule=beat.db", "--max-interval=1", application="service_beat"):
        eventually(
            lambda: sum(1 for _ in app.redis.scan_iter(match=app.keys.stream("*"))) > before,
            within_s=30,
            what="an invocation for the schedule",
        )


def test_the_page_shows_both_kinds_of_senders():
    kinds = {"gaelp_tasks" in block.code for block in PROGRAMS}
    assert kinds == {True, False}
    assert len(PROGRAMS) >= 5
