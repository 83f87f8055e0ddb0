"""`gaelp users`, `keys`, `token`, and when `gaelp api` does not start; nothing here needs a Redis."""

import json
import socket

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app
from gaelp_tasks.cli.app import cli
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings
from support.api import SECRET


@pytest.fixture
def settings(api_sql):
    return Settings(broker_url="redis://127.0.0.1:1/0", database_url=api_sql, jwt_secret=SECRET)


@pytest.fixture
def gaelp(settings, monkeypatch):
    """Runs a verb; gives what it printed, after it ended as it should."""
    monkeypatch.delitem(app.__dict__, "redis", raising=False)

    def run(*words, code=0, **changes):
        monkeypatch.setitem(app.__dict__, "settings", settings.model_copy(update=changes))
        done = CliRunner().invoke(cli, words)
        said = done.stdout + done.stderr + (str(done.exception) if done.exit_code == 1 else "")
        assert done.exit_code == code, said
        return said.strip()

    yield run
    app.__dict__.pop("redis", None)


@pytest.fixture
def read(settings):
    return lambda token: Tokens(settings).read(token).caller


def test_a_user_is_added_shown_edited_and_removed(gaelp):
    added = json.loads(gaelp("users", "add", "ann", "--role", "operator", "--tenant", "acme", "--json"))
    assert (added["role"], added["tenant"], added["disabled"]) == ("operator", "acme", False)
    assert "already" in gaelp("users", "add", "ann", code=1)
    assert "operator" in gaelp("users", "list")
    edited = json.loads(gaelp("users", "edit", "ann", "--disable", "--role", "user", "--json"))
    assert (edited["disabled"], edited["role"], edited["tenant"]) == (True, "user", "acme")
    assert "removed" in gaelp("users", "remove", "ann")
    assert json.loads(gaelp("users", "list", "--json")) == []
    for verb in ("edit", "remove"):
        assert "no user" in gaelp("users", verb, "ann", code=1)


def test_a_key_is_printed_once_and_listed_by_how_it_begins(gaelp):
    gaelp("users", "add", "ann")
    key = gaelp("keys", "create", "--user", "ann", "--name", "ci", "--ttl", "90d")
    [kept] = json.loads(gaelp("keys", "list", "--json"))
    assert key.startswith(kept["prefix"])
    assert key not in gaelp("keys", "list") + json.dumps(kept)
    assert "removed" in gaelp("keys", "remove", str(kept["id"]))
    assert json.loads(gaelp("keys", "list", "--json")) == []
    assert "no user" in gaelp("keys", "create", "--user", "nobody", code=1)
    assert "role" in gaelp("keys", "create", "--user", "ann", "--role", "admin", code=1)


def test_a_token_of_somebody_known_says_what_is_known(gaelp, read):
    gaelp("users", "add", "ann", "--role", "operator", "--tenant", "acme")
    ann = Caller(name="ann", tenant="acme", role=Role.OPERATOR)
    assert read(gaelp("token", "create", "--user", "ann")) == ann
    assert read(gaelp("token", "create", "--user", "ann", "--role", "user")).role is Role.USER
    assert "role" in gaelp("token", "create", "--user", "ann", "--role", "admin", code=1)
    assert "tenant" in gaelp("token", "create", "--user", "ann", "--tenant", "other", code=1)
    gaelp("users", "edit", "ann", "--disable")
    assert "disabled" in gaelp("token", "create", "--user", "ann", code=1)


def test_a_token_of_somebody_unknown_says_what_was_asked_for(gaelp, read):
    words = ("token", "create", "--user", "bea", "--tenant", "acme", "--role", "admin")
    assert read(gaelp(*words)) == Caller(name="bea", tenant="acme", role=Role.ADMIN)
    told = json.loads(gaelp(*words, "--ttl", "2h", "--json"))
    assert (told["name"], told["ttl_s"]) == ("bea", 7200)
    assert read(gaelp("token", "create")).role is Role.USER


@pytest.mark.parametrize(
    "words",
    [
        ("token", "create", "--ttl", "soon"),
        ("token", "create", "--ttl", "0"),
        ("token", "create", "--role", "king"),
        ("keys", "create", "--user", "ann", "--ttl", "-1"),
        ("users", "add", "ann", "--role", "king"),
        ("api", "--loglevel", "loud"),
    ],
)
def test_what_cannot_be_is_a_mistake_of_usage(gaelp, words):
    gaelp(*words, code=2)


@pytest.mark.parametrize("name", [" ", "a\nb", "x" * 201])
def test_a_name_that_is_none_is_refused(gaelp, name):
    gaelp("users", "add", name, code=1)  # InvalidInvocation, which `main` answers with 2
    gaelp("token", "create", "--user", name, code=1)


@pytest.mark.parametrize("words", [("api",), ("token", "create")])
def test_without_a_secret_neither_begins_and_both_say_how_to_make_one(gaelp, words):
    said = gaelp(*words, code=1, jwt_secret=Settings().jwt_secret)
    assert "GAELP_JWT_SECRET" in said
    assert "openssl rand -hex 32" in said


def test_a_taken_address_is_told_in_one_sentence(gaelp):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = gaelp("api", code=1, api_address=f"127.0.0.1:{taken.getsockname()[1]}")
    assert "GAELP_API_ADDRESS" in said
