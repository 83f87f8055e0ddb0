"""Users and keys in SQL, and what a token or a key makes of whoever sends it."""

from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from gaelp_tasks.db.database import Database
from gaelp_tasks.db.users import Keys, Users
from gaelp_tasks.errors import Conflict, NotAllowed, NotFound, NotSignedIn
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.user import NewKey, NewUser, UserChanges
from gaelp_tasks.services.identity import REMEMBERED_S, Identity
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.services.users import make_key
from gaelp_tasks.settings import Settings
from support.api import SECRET

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SETTINGS = Settings(jwt_secret=SECRET)
ANN = Caller(name="ann", tenant="acme", role=Role.OPERATOR)


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest_asyncio.fixture
async def one_db(api_sql):
    """Where what both databases do alike is no question: SQLite alone."""
    made = Database(api_sql)
    yield made
    await made.close()


@pytest.fixture
def identity(one_db, clock):
    return Identity(SETTINGS, one_db, clock)


def token(**changes):
    return Tokens(SETTINGS).issue(ANN.model_copy(update=changes), 60)


async def add(db, **changes):
    return await Users(db, None).add(NewUser(**{"name": "ann", "tenant": "acme", **changes}), NOW)


async def test_a_user_is_kept_changed_and_removed(db):
    users = Users(db, None)
    ann = await add(db, role=Role.OPERATOR)
    assert await users.get(ann.id) == await users.find("ann") == ann
    changed = await users.change(ann.id, UserChanges(role=Role.ADMIN, disabled=True), NOW)
    assert (changed.role, changed.disabled, changed.tenant) == (Role.ADMIN, True, "acme")
    await users.remove(ann.id, NOW)
    assert await users.listed() == []
    with pytest.raises(NotFound):
        await users.get(ann.id)


async def test_a_name_stands_for_one_user(db):
    await add(db)
    with pytest.raises(Conflict, match="already"):
        await add(db, tenant="other")


async def test_a_tenant_sees_its_own_users_only(db):
    ann = await add(db)
    other = Users(db, "other")
    assert await other.listed() == []
    assert await other.find("ann") is None
    for ask in (other.get(ann.id), other.change(ann.id, UserChanges(), NOW), other.remove(ann.id, NOW)):
        with pytest.raises(NotFound):
            await ask


async def test_whom_sql_does_not_know_the_token_alone_vouches_for(identity):
    assert await identity.caller(token()) == ANN


@pytest.mark.parametrize(
    ("has", "claims", "gets"),
    [
        (Role.USER, Role.ADMIN, Role.USER),
        (Role.ADMIN, Role.USER, Role.USER),
        (Role.OPERATOR, Role.OPERATOR, Role.OPERATOR),
    ],
)
async def test_a_token_is_worth_no_more_than_its_user(one_db, identity, has, claims, gets):
    await add(one_db, role=has)
    assert (await identity.caller(token(role=claims))).role is gets


async def test_a_disabled_user_is_refused_within_seconds_elsewhere_and_at_once_here(one_db, identity, clock):
    ann = await add(one_db)
    assert await identity.caller(token())
    await Users(one_db, None).change(ann.id, UserChanges(disabled=True), NOW)
    assert await identity.caller(token()), "another replica still remembers"
    clock.now_s += REMEMBERED_S
    with pytest.raises(NotSignedIn):
        await identity.caller(token())
    await Users(one_db, None).change(ann.id, UserChanges(disabled=False), NOW)
    identity.forget()
    assert await identity.caller(token())


async def test_a_removed_user_does_not_come_back_by_an_old_token(one_db, identity):
    ann = await add(one_db)
    await Users(one_db, None).remove(ann.id, NOW)
    with pytest.raises(NotSignedIn):
        await identity.caller(token())
    old = token()
    await Users(one_db, None).add(
        NewUser(name="ann", tenant="acme"), datetime.now(UTC) + timedelta(seconds=10)
    )
    identity.forget()
    with pytest.raises(NotSignedIn):
        await identity.caller(old)


async def test_who_is_signed_out_needs_a_new_token(one_db, identity):
    ann = await add(one_db)
    old = Tokens(SETTINGS).issue(ANN, 3600, now=datetime.now(UTC).timestamp() - 60)
    assert await identity.caller(old)
    await Users(one_db, None).change(ann.id, UserChanges(sign_out=True), datetime.now(UTC))
    identity.forget()
    with pytest.raises(NotSignedIn):
        await identity.caller(old)
    assert await identity.caller(token())


async def test_a_token_of_another_tenant_is_refused(one_db, identity):
    await add(one_db)
    with pytest.raises(NotSignedIn):
        await identity.caller(token(tenant="other"))


async def test_a_key_comes_in_until_it_is_removed_and_only_its_hash_is_kept(one_db, identity):
    await add(one_db, role=Role.OPERATOR)
    made = await make_key(one_db, ANN, NewKey(name="ci"))
    assert await identity.caller(made.key) == ANN
    [kept] = await Keys(one_db, "ann").listed()
    assert (kept.key, kept.name, kept.prefix) == (None, "ci", made.key[: len(kept.prefix)])
    found = await Keys(one_db, None).find(kept.prefix)
    assert made.key.rpartition("_")[2] not in repr(found)
    await Keys(one_db, "ann").remove(kept.id)
    identity.forget()
    with pytest.raises(NotSignedIn):
        await identity.caller(made.key)


async def test_a_key_ends_when_it_was_to_end(one_db, identity):
    await add(one_db)
    made = await make_key(one_db, ANN, NewKey(ttl_s=60), now=datetime.now(UTC) - timedelta(seconds=61))
    with pytest.raises(NotSignedIn):
        await identity.caller(made.key)


async def test_a_key_never_does_more_than_who_made_it_or_whose_it_is(one_db, identity):
    ann = await add(one_db, role=Role.ADMIN)
    with pytest.raises(NotAllowed):
        await make_key(one_db, ANN, NewKey(role=Role.ADMIN))
    made = await make_key(one_db, ANN, NewKey())
    assert (await identity.caller(made.key)).role is Role.OPERATOR
    await Users(one_db, None).change(ann.id, UserChanges(role=Role.USER), NOW)
    identity.forget()
    assert (await identity.caller(made.key)).role is Role.USER


async def test_whom_sql_does_not_know_gets_no_key(one_db):
    with pytest.raises(NotFound, match="ann"):
        await make_key(one_db, ANN, NewKey())


async def test_nobody_removes_the_key_of_another(one_db):
    await add(one_db)
    made = await make_key(one_db, ANN, NewKey(role=Role.USER))
    with pytest.raises(NotFound):
        await Keys(one_db, "bob").remove(made.id)


@pytest.mark.parametrize("spoil", [str.upper, lambda key: key[:-1], lambda key: key[:-1] + "g", "".join])
async def test_a_spoilt_key_is_refused(one_db, identity, spoil):
    await add(one_db)
    made = await make_key(one_db, ANN, NewKey(role=Role.USER))
    bad = spoil(made.key) if spoil != "".join else made.prefix + "_" + "0" * 64
    with pytest.raises(NotSignedIn):
        await identity.caller(bad)


async def test_forged_tokens_cost_no_sql(one_db, clock):
    forger = Tokens(Settings(jwt_secret=SECRET[::-1]))
    closed = Identity(SETTINGS, None, clock)  # it would fail where it asks SQL
    for number in range(80):
        with pytest.raises(NotSignedIn):
            await closed.caller(forger.issue(ANN.model_copy(update={"name": f"u{number}"}), 60))


async def test_users_and_keys_over_http(api):
    admin = api.as_(Role.ADMIN, name="root")
    made = await admin.post("/api/v1/users", json={"name": "bea", "tenant": "acme", "role": "operator"})
    assert made.status_code == 201
    path = f"/api/v1/users/{made.json()['id']}"
    assert (await admin.get(path)).json() == made.json()
    assert (await admin.post("/api/v1/users", json={"name": "bea"})).status_code == 409
    bea = api.as_(Role.ADMIN, name="bea", tenant="acme")
    assert (await bea.get("/api/v1/users/me")).json() == {"name": "bea", "tenant": "acme", "role": "operator"}
    assert (await bea.get("/api/v1/users")).status_code == 403
    key = (await bea.post("/api/v1/keys", json={"name": "ci"})).json()
    by_key = api.with_headers(Authorization=f"Bearer {key['key']}")
    assert (await by_key.get("/api/v1/users/me")).json()["name"] == "bea"
    [listed] = (await by_key.get("/api/v1/keys")).json()
    assert "key" not in listed or listed["key"] is None
    assert (await by_key.delete(f"/api/v1/keys/{listed['id']}")).status_code == 204
    assert (await by_key.get("/api/v1/users/me")).status_code == 401
    assert (await admin.patch(path, json={"disabled": True})).json()["disabled"]
    assert (await bea.get("/api/v1/users/me")).status_code == 401
    assert (await admin.delete(path)).status_code == 204
    assert (await admin.get(path)).status_code == 404
