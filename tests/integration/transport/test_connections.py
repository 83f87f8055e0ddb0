"""Connections that cannot be made, are kept for the next call, and are closed when a caller leaves."""

import asyncio
import gc
import socket
import subprocess
import sys
import threading
from contextlib import aclosing

import pytest

from gaelp_tasks.clients import Limits, LocalOllamaClient
from gaelp_tasks.errors import NodeFailed, NodeUnreachable
from support.answers import texts_of
from support.ports import free_port
from support.scripted_server import CHAT_MODEL, TOKENS

# --- connections that cannot be made ----------------------------------------------------------------


async def test_a_refused_connection_is_an_unreachable_node():
    async with LocalOllamaClient("m", f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(NodeUnreachable, match=r"Connection refused.*is Ollama running there\?"):
            await client.version()


async def test_a_name_that_does_not_resolve_is_an_unreachable_node():
    async with LocalOllamaClient("m", "http://no-such-host.invalid:11434") as client:
        with pytest.raises(NodeUnreachable, match="cannot be reached"):
            await client.version()


async def test_a_host_that_accepts_no_connection_is_unreachable_within_the_connect_limit():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = []
        for _ in range(3):  # fills the backlog: the kernel then drops what knocks
            knock = socket.socket()
            knock.setblocking(False)
            knock.connect_ex(full.getsockname())
            waiting.append(knock)
        limits = Limits(connect_s=0.2)
        async with LocalOllamaClient(
            "m", f"http://127.0.0.1:{full.getsockname()[1]}", limits=limits
        ) as client:
            with pytest.raises(NodeUnreachable, match=r"accepted no connection within 0\.2 s"):
                await client.version()
        for knock in waiting:
            knock.close()


async def test_a_server_of_another_protocol_is_a_failed_node(server, client):
    async def greets(request, reply):
        reply.raw(b"SSH-2.0-OpenSSH_9.6\r\n")

    server.on("/api/version", greets)
    with pytest.raises(NodeFailed, match="does not speak HTTP"):
        await client.version()


# --- leaving ----------------------------------------------------------------------------------------


class Watched:
    """A chat handler that tells when it was asked and when its client left."""

    def __init__(self, *, tokens=0):
        self.asked = asyncio.Event()
        self.left = asyncio.Event()
        self._tokens = tokens

    async def __call__(self, request, reply):
        if self._tokens:
            reply.head()
        for _ in range(self._tokens):
            reply.token("x")
        self.asked.set()
        await reply.gone.wait()
        self.left.set()


async def test_cancelling_before_the_first_token_closes_the_connection(server, client):
    watched = Watched()
    server.on("/api/chat", watched)
    task = asyncio.create_task(texts_of(client))
    await watched.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await watched.left.wait()


async def test_cancelling_between_tokens_closes_the_connection(server, client):
    watched = Watched(tokens=3)
    server.on("/api/chat", watched)
    got_one = asyncio.Event()

    async def read():
        async with aclosing(client.chat("Hi")) as stream:
            async for _ in stream:
                got_one.set()

    task = asyncio.create_task(read())
    await got_one.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await watched.left.wait()


async def test_leaving_the_stream_early_closes_the_connection(server, client):
    watched = Watched(tokens=3)
    server.on("/api/chat", watched)
    async with aclosing(client.chat("Hi")) as stream:
        async for chunk in stream:
            assert chunk.content == "x"
            break
    await watched.left.wait()


async def test_cancelling_a_question_closes_the_connection(server, client):
    watched = Watched()
    server.on("/api/generate", watched)
    task = asyncio.create_task(client.load())
    await watched.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await watched.left.wait()


async def test_a_node_that_keeps_the_connection_open_after_done_does_not_hold_the_answer_back(server, client):
    async def never_ends(request, reply):
        reply.head()
        reply.token("Once")
        reply.last()
        await reply.gone.wait()

    server.on("/api/chat", never_ends)
    assert await texts_of(client) == (["Once", ""], None)


# --- pooling ----------------------------------------------------------------------------------------


async def test_calls_one_after_another_share_one_connection(server, client):
    for _ in range(3):
        await client.version()
        assert (await texts_of(client))[1] is None
    assert server.connections == 1


async def test_an_answer_whose_end_comes_a_little_late_gives_its_connection_back_too(server, client):
    async def ends_late(request, reply):
        reply.head()
        reply.last()
        await asyncio.sleep(0.02)
        reply.end()

    server.on("/api/chat", ends_late)
    await texts_of(client)
    await client.version()
    assert server.connections == 1


async def test_an_answer_left_early_is_not_given_to_the_next_call(server, client):
    server.on("/api/chat", Watched(tokens=1))
    async with aclosing(client.chat("Hi")) as stream:
        await anext(stream)
    assert await client.version() == "0.33.0"
    assert server.connections == 2


async def test_calls_at_once_have_a_connection_each(server, client):
    both = asyncio.Barrier(2)

    async def together(request, reply):
        await both.wait()
        reply.whole({"version": "1"})

    server.on("/api/version", together)
    assert await asyncio.gather(client.version(), client.version()) == ["1", "1"]
    assert server.connections == 2


async def test_a_closed_client_opens_a_new_connection_when_it_is_used_again(server, client):
    await client.version()
    await client.close()
    await client.close()
    assert await client.version() == "0.33.0"
    assert server.connections == 2


async def test_a_client_serves_several_loops_and_closes_the_connections_of_each(server, client):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        there = asyncio.run_coroutine_threadsafe(client.version(), loop)
        assert [await client.version(), await asyncio.wrap_future(there)] == ["0.33.0", "0.33.0"]
        await client.close()
        await asyncio.gather(*[connection._gone.wait() for connection in server._open])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


async def test_a_client_outlives_the_loop_it_was_first_used_on(server):
    client = LocalOllamaClient(CHAT_MODEL, server.url)

    async def use_and_close():
        version = await client.version()
        await client.close()
        return version

    for _ in range(2):
        assert await asyncio.to_thread(asyncio.run, use_and_close()) == "0.33.0"


async def test_a_synchronous_script_that_closes_nothing_ends_without_a_word(server):
    script = (
        "import sys\nfrom gaelp_tasks.agents import ChatAgent\n"
        "from gaelp_tasks.clients import LocalOllamaClient\n"
        "agent = ChatAgent(LocalOllamaClient('tiny', sys.argv[1]))\nprint(agent.run_sync('Hi'), end='')\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, server.url]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("".join(TOKENS), "", 0)


async def test_a_forgotten_client_gives_its_connections_back(server):
    client = LocalOllamaClient(CHAT_MODEL, server.url)
    await client.version()
    [connection] = server._open
    del client
    gc.collect()
    await connection._gone.wait()
