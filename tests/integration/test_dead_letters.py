"""What could not run is shown with its reason, goes back when it is told to, or is thrown away."""

import json

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app, dead_letters
from gaelp_tasks.cli.app import cli
from gaelp_workers.leases import Leases

pytestmark = pytest.mark.redis


@pytest.fixture
def letters(broker):
    """Three of them: no JSON, no text at all, and one from a sender who compresses."""
    app.redis.flushdb()
    app.redis.lpush("batch", b"junk", b"\xff\xfe", _message("1", compression="gzip"))
    leases = Leases(app.redis, app.keys, holder="a", ttl_s=60, claims_ttl_s=60, results="")
    leases.load()
    assert app.redis.execute_command(*leases.claim_command(["batch"], 3, most_bytes=10_000)) == []
    return list(dead_letters.listed(app, most=10))


def _message(task_id: str, **headers: str) -> str:
    given = {"id": task_id, "task": "gaelp.invoke_agent", **headers}
    return json.dumps({"body": "secret", "headers": given, "properties": {"delivery_info": {}}})


def gaelp(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["dlq", *words])
    return done.exit_code, done.output


def test_each_tells_why_and_where_from(letters):
    assert {letter.reason for letter in letters} == {"not JSON", "compressed"}
    assert {letter.queue for letter in letters} == {"batch"}
    [ours] = [letter for letter in letters if letter.task]
    assert (ours.task, ours.task_id) == ("gaelp.invoke_agent", "1")
    assert dead_letters.find(app, "1") == ours
    assert dead_letters.find(app, "nothing") is None


def test_a_replayed_one_is_in_its_queue_again_as_it_was(letters):
    assert dead_letters.replay(app, [letters[0].id, letters[0].id]) == 1
    with dead_letters.connect(app.settings, text=False) as redis:
        assert redis.lrange("batch", 0, -1) == [letters[0].message]
    assert dead_letters.count(app) == 2


def test_the_command_lists_them_without_their_texts(letters):
    code, told = gaelp("list")
    assert code == 0
    assert "compressed" in told
    assert "secret" not in told
    assert "secret" not in gaelp("show", "1")[1]
    assert "secret" in gaelp("show", "1", "--message")[1]
    assert [one["reason"] for one in json.loads(gaelp("list", "--json")[1])] == [
        letter.reason for letter in letters
    ]


def test_the_command_replays_and_purges(letters):
    assert gaelp("replay", "1") == (0, "1 published again\n")
    assert gaelp("purge", "--all") == (0, "2 thrown away\n")
    assert gaelp("list") == (0, "There are no dead letters.\n")
    assert app.redis.llen("batch") == 1


@pytest.mark.parametrize(("words", "code"), [(("show", "unknown"), 1), (("replay",), 2), (("purge",), 2)])
def test_a_wrong_word_is_one_sentence(letters, words, code):
    found, told = gaelp(*words)
    assert found == code
    assert "Traceback" not in told
