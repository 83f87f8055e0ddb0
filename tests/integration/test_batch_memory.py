"""A long file takes no more memory than a short one, and less than 200 MB; `--long` tries a million lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_MIB = 200
TESTS = Path(__file__).parents[1]


def measured(count, folder):
    """What batch_measure tells of a file of so many lines."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "support.batch_measure", str(count), str(folder)],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
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
    with (tmp_path / "many" / "out.jsonl").open() as out:
        assert all(json.loads(line)["custom_id"] == f"line-{number}" for number, line in enumerate(out))
    assert long["written_mib"] < MOST_MIB
    assert long["written_mib"] - few["written_mib"] < (MOST_MIB / 4 if many > 10_000 else 16)
