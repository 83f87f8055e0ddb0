"""A long file takes no more memory than a short one, and less than 200 MB; `--long` tries a million lines.

Twice: of the program alone, with invocations that end at once in it, and of it and a real Redis together.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from faults.history.probes import PATH

MOST_MIB = 200


def measured(count, folder, program="support.batch_measure", **settings):
    """What the program tells of a file of so many lines."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", program, str(count), str(folder)],
        env=os.environ | PATH | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_long_file_takes_no_more_memory_than_a_short_one(request, tmp_path):
    many = 1_000_000 if request.config.getoption("--long") else 6_000
    few = measured(2_000, tmp_path / "few")
    long = measured(many, tmp_path / "many")
    request.config.get_terminal_writer().line(f"{few}\n{long}")
    assert long["results"] == many
    assert in_order(tmp_path / "many" / "out.jsonl")
    assert long["written_mib"] < MOST_MIB
    assert long["written_mib"] - few["written_mib"] < (MOST_MIB / 4 if many > 10_000 else 16)
    shutil.rmtree(tmp_path)  # of a million lines pytest would keep a gigabyte or more


@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.timeout(10_800)
def test_redis_holds_a_few_of_its_lines_at_a_time(request, broker, tmp_path):
    many = 1_000_000 if request.config.getoption("--long") else 1_200
    with broker.client() as store:
        store.flushall()
    told = measured(many, tmp_path / "many", program="support.batch_in_redis", GAELP_BROKER_URL=broker.url)
    request.config.get_terminal_writer().line(f"{told}")
    assert (told["results"], told["state"]) == (many, "completed")
    assert in_order(tmp_path / "many" / "out.jsonl")
    assert told["process_mib"] < MOST_MIB
    # what ended within the last ten seconds is there, whatever the length of the file: more on a fast machine
    assert told["redis_mib"] < (MOST_MIB / 2 if many > 10_000 else 16)
    with broker.client() as store:
        assert not list(store.scan_iter("gaelp:stream:*", count=1000)), "all was cleared away"
        store.flushall()
    shutil.rmtree(tmp_path)


def in_order(file):
    with file.open() as out:
        return all(json.loads(line)["custom_id"] == f"line-{number}" for number, line in enumerate(out))
