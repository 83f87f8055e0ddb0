"""Requests made up from the API's own OpenAPI document, good ones and bad ones: none breaks it."""

import shutil
import warnings

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings

from gaelp_tasks.models.caller import Role
from support.api_server import ApiServer
from support.openapi import VERBS

pytestmark = [pytest.mark.redis, pytest.mark.timeout(600)]

SHORT, LONG = 1, 60  #: requests of each operation, of each kind
BROKEN = 500


@pytest.fixture(scope="module")
def server(broker, newest_tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    shutil.copy(newest_tables, folder / "api.db")
    with ApiServer(folder, GAELP_API_RATE_PER_S="0", GAELP_API_FAILURES_PER_MINUTE="100000") as made:
        yield made


def operations_of(document):
    """Schemathesis' own, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports is not ours to mend
        import schemathesis

        schemathesis.serializer("application/jsonl")(lambda _, value: str(value).encode("utf-8", "replace"))
        found = schemathesis.openapi.from_dict(document)
        return {
            f"{one.method.upper()} {one.path}": one for one in (r.ok() for r in found.get_all_operations())
        }


def tried(operation, mode, count, send):
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case):
        send(case)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each()


def test_nothing_that_the_document_allows_or_forbids_breaks_it(server, request):
    from schemathesis import GenerationMode

    long = request.config.getoption("--long")
    count = LONG if long else SHORT
    document = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    broken, told = [], dict.fromkeys(range(1, 6), 0)
    with server.session(Role.ADMIN, name="whoever-tries-this") as session:

        def send(case):
            answer = case.call(base_url=server.url, session=session, timeout=20)
            told[answer.status_code // 100] += 1
            if answer.status_code == BROKEN:
                broken.append((case.method, case.formatted_path, case.query, case.body))

        found = operations_of(document)
        assert len(found) == sum(verb in item for item in document["paths"].values() for verb in VERBS)
        both = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        for number, operation in enumerate(found.values()):
            for mode in both if long else (both[number % 2],):
                try:
                    tried(operation, mode, count, send)
                except Exception as error:
                    if "Unsatisfiable" not in type(error).__name__:  # nothing about it can be wrong
                        raise
    if long:
        print(f"\n{sum(told.values()):,} requests: {told}")  # noqa: T201  a figure of the long form
    assert not broken, f"{broken[:5]}\n{server.log()[-3000:]}"
    assert told[2]
    assert told[4]
