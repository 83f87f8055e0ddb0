"""What streams need of a connection to Redis, on both of its kinds and on a real server."""

import asyncio

import pytest
from redis.asyncio import Connection

from gaelp_tasks import line as lines
from gaelp_tasks.connections import Refused, connect_async, lost
from gaelp_tasks.line import Line, PlainLine, open_line
from gaelp_tasks.settings import Settings
from support.redis_server import RedisServer

pytestmark = pytest.mark.redis

KINDS = {"line": Line, "plain": lambda settings: PlainLine(connect_async(settings))}


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture(params=KINDS)
async def line(request, server):
    made = KINDS[request.param](Settings(broker_url=server.url))
    yield made
    await made.aclose()


async def test_replies_come_in_the_order_of_the_commands(line):
    texts = ["", "é€👩‍💻", "line\r\nbreak", "x" * 100_000]
    replies = await line.ask(*[("ECHO", text) for text in texts], ("STRLEN", "nothing"), ("GET", "nothing"))
    assert replies == [*texts, 0, None]


async def test_an_error_is_a_reply_and_spoils_no_other(line):
    _, error, after = await line.ask(("SET", "s", "x"), ("LPUSH", "s", "y"), ("GET", "s"))
    assert isinstance(error, Refused)
    assert after == "x"


async def test_a_connection_that_was_cut_is_opened_again(line, server):
    await line.ask(("PING",))
    with server.client() as other:
        other.client_kill_filter(_type="normal", skipme=True)
    assert await line.ask(("ECHO", "again")) == ["again"]


async def test_a_question_given_up_does_not_answer_the_next_one(line):
    waiting = asyncio.create_task(line.ask(("BLPOP", "never", 0)))
    await asyncio.sleep(0.05)  # whether or not it was sent by now, the next answer must be its own
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await line.ask(("ECHO", "mine")) == ["mine"]


async def test_a_server_that_is_away_is_lost(server):
    line = Line(Settings(broker_url="redis://127.0.0.1:1/0"))
    with pytest.raises(lost):
        await line.ask(("PING",))


async def test_a_server_that_never_answers_is_lost_and_found_again(server, monkeypatch):
    monkeypatch.setattr(lines, "ANSWER_S", 0.2)
    line = Line(Settings(broker_url=server.url))
    await line.ask(("PING",))
    server.freeze()
    try:
        with pytest.raises(lost):
            await line.ask(("PING",))
    finally:
        server.thaw()
    assert await line.ask(("ECHO", "back")) == ["back"]
    await line.aclose()


async def test_a_line_speaks_to_the_database_and_with_the_password_of_the_address(server):
    with server.client() as admin:
        admin.acl_setuser("me", enabled=True, passwords=["+pass"], keys="*", commands=["+@all"])
    line = Line(Settings(broker_url=f"redis://me:pass@127.0.0.1:{server.port}/3"))
    assert await line.ask(("ACL", "WHOAMI"), ("SET", "here", "3")) == ["me", "OK"]
    await line.aclose()
    with server.client() as admin:
        admin.select(3)
        assert admin.get("here") == "3"


async def test_without_hiredis_redis_py_does_all_of_it(server, monkeypatch):
    monkeypatch.setattr(lines, "hiredis", None)
    line = open_line(Settings(broker_url=server.url))
    assert isinstance(line, PlainLine)
    assert await line.ask(("ECHO", "hi")) == ["hi"]
    await line.aclose()


def test_redis_py_still_keeps_the_transport_where_dial_takes_it():
    """Private: redis.asyncio.Connection._writer and _reader."""
    assert Connection()._writer is None
    assert Connection()._reader is None
