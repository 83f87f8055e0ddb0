"""The list of planted bugs fits the code; `python -m faults.planted` shows that each is caught."""

import pytest

from faults.planted import BUGS, ROOT
from simulation.plants import PLANTS


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_each_bug_can_be_planted_and_its_test_exists(bug):
    assert (ROOT / bug.file).read_text().count(bug.right) == 1
    file, _, name = bug.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()
    assert bug.right != bug.wrong


def test_they_are_named_apart():
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 15


def test_the_page_lists_each_with_its_test():
    page = (ROOT / "docs/reliability.md").read_text()
    for bug in BUGS:
        file, _, name = bug.test.partition("::")
        assert f"| {bug.name} | `{name}` ({file.rpartition('/')[2]}) |" in page
    assert [name for name in PLANTS if f"| {name} | " not in page] == []
