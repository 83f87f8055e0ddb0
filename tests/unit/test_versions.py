"""Which messages are left to a later release, and for how long they wait."""

import pytest

from gaelp_tasks.models import ENVELOPE_VERSION
from gaelp_workers.versions import LONGEST_S, too_new, wait_s


@pytest.mark.parametrize("headers", [None, {}, {"gaelp_version": "9"}, {"gaelp_version": ENVELOPE_VERSION}])
def test_what_tells_no_version_or_ours_is_ours(headers):
    assert not too_new(headers)


def test_a_later_version_is_not():
    assert too_new({"gaelp_version": ENVELOPE_VERSION + 1})


def test_each_wait_is_twice_the_one_before_up_to_a_minute():
    assert [wait_s(claim, 2.0) for claim in (1, 2, 3, 10, 10**9)] == [2.0, 4.0, 8.0, LONGEST_S, LONGEST_S]
