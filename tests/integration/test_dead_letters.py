"""What could not run is shown with its reason, goes back when it is told to, or is thrown away."""

import base64
import json
from itertools import count

import pytest
from typer.testing import CliRunner

from gaelp_tasks import app, dead_letters
from gaelp_tasks.cli.app import cli
from gaelp_tasks.dead_letters import Which
from gaelp_tasks.queues import INBOXES
from gaelp_workers.dispatch import OTHERS, Free, Offer
from gaelp_workers.leases import Leases

pytestmark = pytest.mark.redis

BATCHES = count()


@pytest.fixture
def empty(broker):
    app.redis.flushdb()


@pytest.fixture
def letters(empty):
    """Three of them: no JSON, no text at all, and one from a sender who compresses."""
    refuse(b"junk", b"\xff\xfe", _message("1", compression="gzip"))
    return list(dead_letters.listed(app, most=10))


def refuse(*messages, queue="batch"):
    """Have a claim look at messages that it refuses."""
    app.redis.lpush(queue, *messages)
    leases = Leases(
        app.redis,
        app.keys,
        holder=f"a{next(BATCHES)}",
        ttl_s=60,
        claims_ttl_s=60,
        poison_deaths=10,
        results="",
    )
    leases.load()
    while app.redis.llen(queue):
        offered = Offer((queue,), (0,))
        command = leases.claim_command(
            offered, Free({OTHERS: 3}, 3, 0), INBOXES, most_bytes=int(app.settings.max_message_bytes)
        )
        assert app.redis.execute_command(*command)[0] == []


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
    assert dead_letters.find(app, ours.id) == ours
    assert dead_letters.find(app, "nothing") is None


def test_an_id_is_one_word_for_a_shell(letters):
    for letter in letters:
        assert letter.id.replace(":", "").replace(".", "").isalnum()


def test_a_replayed_one_is_in_its_queue_again_as_it_was(letters):
    assert dead_letters.replay(app, [letters[0].id, letters[0].id]) == 1
    with dead_letters.connect(app.settings, text=False) as redis:
        assert redis.lrange("batch", 0, -1) == [letters[0].message]
    assert dead_letters.count(app) == 2


def test_a_replayed_one_goes_to_the_very_list_it_came_from(empty):
    refuse(b"junk", queue="batch\x06\x163")
    [letter] = dead_letters.listed(app, most=1)
    assert letter.queue == "batch"
    assert dead_letters.replay(app, [letter.id]) == 1
    assert app.redis.llen("batch\x06\x163") == 1


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
    code, told = gaelp("replay", "1")
    assert code == 0
    assert sorted(told.splitlines()) == ["1 published again", "gaelp: 1 of them will come back: compressed."]
    assert gaelp("purge", "--all") == (0, "2 thrown away\n")
    assert gaelp("list") == (0, "There are no dead letters.\n")
    assert app.redis.llen("batch") == 1


def test_thousands_are_paged_filtered_counted_replayed_and_purged(empty):
    refuse(*(f"junk {number}" for number in range(2000)))
    refuse(*(_message(str(number), compression="zlib") for number in range(1500)), queue="interactive")
    told = gaelp("list")[1]
    assert len(told.splitlines()) == 52, "a head, fifty, and how many there are"
    assert "3,500 there are" in told
    pages = [
        json.loads(gaelp("list", "--json", "--most=1200", f"--skip={skip}")[1]) for skip in (0, 1200, 2400)
    ]
    assert [len(page) for page in pages] == [1200, 1200, 1100]
    assert len({letter["id"] for page in pages for letter in page}) == 3500
    assert json.loads(gaelp("list", "--by=reason", "--json")[1]) == {"not JSON": 2000, "compressed": 1500}
    assert json.loads(gaelp("list", "--by=queue", "--reason=not", "--json")[1]) == {"batch": 2000}
    assert gaelp("list", "--task=nothing")[1] == "No dead letter is like this.\n"
    assert "1,500 published again" in gaelp("replay", "--queue=inter")[1]
    assert (app.redis.llen("interactive"), dead_letters.count(app)) == (1500, 2000)
    assert gaelp("purge", "--reason=not JSON") == (0, "2,000 thrown away\n")
    assert dead_letters.count(app) == 0
    assert not app.redis.exists(app.keys.dead_messages)


def test_large_ones_are_read_few_at_a_time(empty, monkeypatch):
    refuse(*(f"{number}" * 1000 for number in range(10, 40)))
    monkeypatch.setattr(dead_letters, "READ_BYTES", 5000)
    with dead_letters.connect(app.settings, text=False) as redis:
        names = redis.zrange(app.keys.dead, 0, -1)
        batches = list(dead_letters._batches(redis, app.keys.dead_messages, names))
    assert {len(batch) for batch in batches} == {2}
    assert len(list(dead_letters.listed(app, most=100))) == 30
    assert dead_letters.replay(app, [letter.id for letter in dead_letters.listed(app, most=100)]) == 30


def test_what_was_oversized_comes_back_unless_the_limit_was_raised(empty, monkeypatch):
    refuse(b"x" * (app.settings.max_message_bytes + 1))
    [letter] = dead_letters.listed(app, most=1)
    assert letter.reason == "oversized"
    assert "will come back: oversized" in gaelp("replay", letter.id)[1]
    app.redis.delete("batch")
    refuse(b"x" * (app.settings.max_message_bytes + 1))
    raised = app.settings.model_copy(update={"max_message_bytes": 10 * 1024**2})
    monkeypatch.setattr(app, "settings", raised)
    assert gaelp("replay", "--all") == (0, "1 published again\n")


def test_nothing_in_a_message_reaches_the_terminal_as_a_command(empty):
    evil = "\x1b]0;owned\x07\x1b[31m\x9b2J[red]\r\b"
    refuse(_message("2", compression="zlib", task=evil), b"\x1b[2J\xff\x00\x9b")
    shown = [
        gaelp("list"),
        gaelp("list", "--by=task"),
        gaelp("list", "--json"),
        gaelp("list", "--by=task", "--json"),
    ]
    for letter in dead_letters.listed(app, most=2):
        shown += [gaelp("show", letter.id, *more) for more in ((), ("--message",), ("--message", "--json"))]
    for code, told in shown:
        assert code == 0
        assert all(mark.isprintable() or mark == "\n" for mark in told), repr(told)
    assert "[red]" in gaelp("list")[1], "markup is text"
    assert gaelp("show", "\x1b[31m")[1] == "gaelp: there is no dead letter \\x1b[31m.\n"


def test_json_holds_what_is_no_text_whole(letters):
    [binary] = [letter for letter in letters if letter.message == b"\xff\xfe"]
    told = json.loads(gaelp("show", binary.id, "--message", "--json")[1])
    assert base64.b64decode(told["message_base64"]) == b"\xff\xfe"


def test_which_ones_are_meant_is_said_by_how_they_begin(letters):
    assert [letter.task_id for letter in letters if Which(task="gaelp.").means(letter)] == ["1"]
    assert [letter for letter in letters if Which(reason="compressed", queue="system").means(letter)] == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("show", "unknown"), 1),
        (("replay",), 2),
        (("purge",), 2),
        (("purge", "1", "--all"), 2),
        (("replay", "1", "--reason=x"), 2),
        (("list", "--by=colour"), 2),
        (("list", "--most=0"), 2),
    ],
)
def test_a_wrong_word_is_one_sentence(letters, words, code):
    found, told = gaelp(*words)
    assert found == code
    assert "Traceback" not in told
    assert dead_letters.count(app) == 3
