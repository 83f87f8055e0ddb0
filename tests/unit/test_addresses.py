"""Addresses of Redis: what they mean, and how Celery is told."""

import pytest

from gaelp_tasks.addresses import check, for_celery, sentinels
from gaelp_tasks.settings import masked


def test_what_is_the_same_for_all_sentinels_may_stand_at_any():
    found = sentinels("sentinel://a;sentinel://me:p%40w@b:2/3?master_name=m&sentinel_password=s")
    assert found.places == (("a", 26379), ("b", 2))
    assert (found.master, found.db, found.username, found.password) == ("m", 3, "me", "p@w")
    assert found.own_password == "s"  # noqa: S105  for this test
    assert for_celery("sentinel://a;sentinel://me:p%40w@b:2/3") == (
        "sentinel://me:p%40w@a:26379/3;sentinel://me:p%40w@b:2/3"
    )


def test_without_a_name_the_master_is_called_as_redis_own_example():
    assert sentinels("sentinel://[::1]:7").master == "mymaster"
    assert for_celery("sentinel://[::1]:7") == "sentinel://[::1]:7/0"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://h", "must start with redis://, rediss:// or sentinel://"),
        ("sentinel://", "each sentinel is written"),
        ("sentinel://a;redis://b", "each sentinel is written"),
        ("sentinel://a/1;sentinel://b/2", "different values of db"),
        ("sentinel://a/x", "must be a number"),
        ("sentinel://a?ssl_ca_certs=x", "takes no ssl_ca_certs"),
    ],
)
def test_what_cannot_be_used_is_told(url, told):
    with pytest.raises(ValueError, match=told):
        check(url)


def test_certificates_are_checked_unless_it_is_said_otherwise():
    assert (
        for_celery("rediss://h/0?ssl_ca_certs=/a/b")
        == "rediss://h/0?ssl_cert_reqs=required&ssl_ca_certs=/a/b"
    )
    assert for_celery("rediss://h/0?ssl_cert_reqs=none") == "rediss://h/0?ssl_cert_reqs=none"
    assert for_celery("redis://h/0") == "redis://h/0"


def test_no_password_of_a_sentinel_is_shown():
    url = "sentinel://:SECRET@a:1/0;sentinel://:SECRET@b:2/0?sentinel_password=SECRET"
    assert "SECRET" not in masked(url)
