"""Quotas on both databases: all or nothing under a key, given back once."""

import asyncio

import pytest

from gaelp_tasks.errors import QuotaExceeded
from gaelp_tasks.models.quota import Limits, Share
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.services import quotas
from gaelp_tasks.settings import Settings

SETTINGS = Settings()


@pytest.fixture
def db(kept_db):
    return kept_db


async def hold(db, key, resources, user="ann", tenant="t"):
    async with db.writing() as session:
        return await quotas.hold(session, key, user, resources, tenant=tenant, settings=SETTINGS)


async def release(db, key, tenant="t"):
    async with db.writing() as session:
        return await quotas.release(session, key, tenant=tenant)


async def held(db, user="ann", tenant="t"):
    return (await quotas.show(db, tenant, user, SETTINGS)).held


async def test_a_user_has_the_defaults_until_he_has_limits_of_his_own(db):
    shown = await quotas.show(db, "t", "ann", SETTINGS)
    assert shown.limit == Share(10_000, 20 * 1024**3, 2, 100 * 1024**3, 64)
    async with db.writing() as session:
        await quotas.set_limits(session, "ann", Limits(gpus=8, runs=0), tenant="t")
    shown = await quotas.show(db, "t", "ann", SETTINGS)
    assert shown.limit == Share(10_000, 20 * 1024**3, 8, 100 * 1024**3, 0)
    assert shown.own == Limits(gpus=8, runs=0)


async def test_what_is_held_comes_back_once(db):
    assert await hold(db, "job:1", Resources(cpu_milli=4000, gpus=1))
    assert not await hold(db, "job:1", Resources(cpu_milli=4000, gpus=1))
    assert await held(db) == Share(cpu_milli=4000, gpus=1, runs=1)
    assert await release(db, "job:1")
    assert not await release(db, "job:1")
    assert await held(db) == Share()


async def test_what_never_fits_is_told_from_what_does_not_fit_now(db):
    with pytest.raises(
        QuotaExceeded, match="more cpu and gpu than the whole quota of ann: it would never fit"
    ) as caught:
        await hold(db, "job:1", Resources(cpu_milli=10_001, gpus=3))
    assert caught.value.never
    await hold(db, "job:1", Resources(gpus=1))
    await hold(db, "job:2", Resources(gpus=1))
    with pytest.raises(QuotaExceeded, match="not enough gpu left now: it may fit later") as caught:
        await hold(db, "job:3", Resources(cpu_milli=1, gpus=1))
    assert not caught.value.never
    assert await held(db) == Share(gpus=2, runs=2)
    await release(db, "job:1")
    assert await hold(db, "job:3", Resources(cpu_milli=1, gpus=1))


async def test_each_user_of_each_tenant_has_a_quota_of_his_own(db):
    for user, tenant in (("ann", "t"), ("bob", "t"), ("ann", "u")):
        assert await hold(db, f"job:{user}", Resources(gpus=2), user=user, tenant=tenant)
    await release(db, "job:ann", tenant="u")
    assert (await held(db)).gpus == 2
    assert (await held(db, tenant="u")).gpus == 0


async def test_of_many_who_ask_for_the_last_of_it_at_once_one_gets_it(db):
    for user in ("ann", "bob", "carl"):
        await hold(db, f"job:{user}", Resources(gpus=1), user=user)
        asked = (hold(db, f"job:{user}-{number}", Resources(gpus=1), user=user) for number in range(8))
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert [one for one in told if not isinstance(one, QuotaExceeded)] == [True]
        assert (await held(db, user=user)).gpus == 2
