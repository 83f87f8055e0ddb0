"""What a client makes of a node that misbehaves, over real sockets."""

import asyncio
import gc
import inspect
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, aclosing

import aiohttp
import pytest
import trustme

from gaelp_tasks.clients import Limits, LocalOllamaClient
from gaelp_tasks.clients.transport import Transport
from gaelp_tasks.clients.wire import MAX_LINE_BYTES
from gaelp_tasks.errors import (
    FirstTokenTimeout,
    LoadTimeout,
    ModelMissing,
    NodeBusy,
    NodeError,
    NodeFailed,
    NodeUnreachable,
    RequestRefused,
    SettingsError,
    StreamStalled,
    StreamTruncated,
)
from support.scripted_server import CHAT_MODEL, TOKENS, ScriptedServer


@pytest.fixture
async def server():
    async with ScriptedServer() as running:
        yield running


@pytest.fixture
async def client(server):
    async with LocalOllamaClient(CHAT_MODEL, server.url) as made:
        yield made


@pytest.fixture
async def impatient(server):
    """Make a client with one short limit; the others stay generous, whatever the machine is busy with."""
    async with AsyncExitStack() as stack:

        async def make(**limits):
            client = LocalOllamaClient(CHAT_MODEL, server.url, limits=Limits(**limits))
            return await stack.enter_async_context(client)

        yield make


async def texts_of(client, **options):
    """The texts that came, and the error that ended them."""
    texts, failure = [], None
    try:
        async with aclosing(client.chat("Why is the sky blue?", **options)) as stream:
            async for chunk in stream:
                texts.append(chunk.content)  # noqa: PERF401  what came before an error counts
    except NodeError as error:
        failure = error
    assert failure is None or (failure.node == client.node and client.node in str(failure))
    return texts, failure


# --- connections that cannot be made ----------------------------------------------------------------


async def test_a_refused_connection_is_an_unreachable_node():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with LocalOllamaClient("m", f"http://127.0.0.1:{port}") as client:
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


# --- limits -----------------------------------------------------------------------------------------


async def black_hole(request, reply):
    await reply.gone.wait()


async def test_a_question_that_is_never_answered_ends_as_unreachable(server, impatient):
    client = await impatient(answer_s=0.3)
    server.on("/api/version", black_hole)
    with pytest.raises(NodeUnreachable, match=r"did not answer /api/version within 0\.3 s"):
        await client.version()


async def test_a_load_that_never_ends_is_a_load_timeout(server, impatient):
    client = await impatient(load_s=0.3)
    server.on("/api/generate", black_hole)
    with pytest.raises(LoadTimeout, match=r"did not load 'tiny:latest' within 0\.3 s"):
        await client.load()


async def test_no_token_after_the_prompt_is_a_first_token_timeout(server, impatient):
    left = asyncio.Event()

    async def hang(request, reply):
        await reply.gone.wait()
        left.set()

    client = await impatient(first_token_s=0.3)
    await client.load()
    server.on("/api/chat", hang)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == ([], FirstTokenTimeout)
    assert "no first token within 0.3 s" in str(error)
    await left.wait()


async def test_headers_without_a_token_are_no_first_token(server, impatient):
    async def headers_only(request, reply):
        reply.head()
        reply.send(b'{"model":')  # a line that is not complete is no token either
        await reply.gone.wait()

    client = await impatient(first_token_s=0.3)
    await client.load()
    server.on("/api/chat", headers_only)
    _, error = await texts_of(client)
    assert isinstance(error, FirstTokenTimeout)


async def test_the_first_token_of_a_model_not_known_to_be_loaded_may_take_the_load_limit_too(
    server, impatient
):
    client = await impatient(load_s=0.3, first_token_s=0.1)
    server.on("/api/chat", black_hole)
    _, error = await texts_of(client)
    assert "no first token within 0.4 s" in str(error)


async def test_silence_between_tokens_is_a_stall(server, impatient):
    async def stall(request, reply):
        reply.head()
        reply.token("Once")
        await reply.gone.wait()

    server.on("/api/chat", stall)
    texts, error = await texts_of(await impatient(stall_s=0.3))
    assert (texts, type(error)) == (["Once"], StreamStalled)
    assert "sent nothing for 0.3 s" in str(error)


async def test_drops_of_a_line_that_never_ends_are_a_stall(server, impatient):
    async def drip(request, reply):
        reply.head()
        reply.token("Once")
        while not reply.gone.is_set():
            reply.send(b" ")
            await asyncio.sleep(0.05)

    server.on("/api/chat", drip)
    _, error = await texts_of(await impatient(stall_s=0.3))
    assert isinstance(error, StreamStalled)


@pytest.mark.parametrize("stall_timeout_s", [0, 30.0])
async def test_a_caller_may_replace_the_stall_limit(server, impatient, stall_timeout_s):
    async def slow(request, reply):
        reply.head()
        reply.token("Once")
        await asyncio.sleep(0.6)  # twice the client's own limit
        reply.last()
        reply.end()

    server.on("/api/chat", slow)
    texts, error = await texts_of(await impatient(stall_s=0.3), stall_timeout_s=stall_timeout_s)
    assert (texts, error) == (["Once", ""], None)


async def test_a_slow_reader_is_not_taken_for_a_stalled_node(impatient):
    client = await impatient(stall_s=0.3)
    texts = []
    async with aclosing(client.chat("Hi")) as stream:
        async for chunk in stream:
            texts.append(chunk.content)
            await asyncio.sleep(0.15)  # in sum beyond the limit
    assert "".join(texts) == "".join(TOKENS)


async def test_the_total_limit_ends_an_answer_that_keeps_coming(server, impatient):
    async def endless(request, reply):
        reply.head()
        while not reply.gone.is_set():
            reply.token("and ")
            await asyncio.sleep(0.02)

    server.on("/api/chat", endless)
    texts, error = await texts_of(await impatient(total_s=1.0))
    assert texts
    assert isinstance(error, StreamStalled)
    assert "did not finish its answer within 1 s" in str(error)


# --- streams that break -----------------------------------------------------------------------------


async def test_a_reset_connection_is_an_unreachable_node(server, client):
    async def reset(request, reply):
        reply.head()
        reply.token("Once")
        await asyncio.sleep(0)
        reply.reset()

    server.on("/api/chat", reset)
    _, error = await texts_of(client)
    assert isinstance(error, NodeUnreachable)
    assert "broke the connection" in str(error)


async def test_a_connection_closed_inside_the_body_is_an_unreachable_node(server, client):
    async def cut(request, reply):
        reply.head()
        reply.token("Once")
        reply.cut()

    server.on("/api/chat", cut)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == (["Once"], NodeUnreachable)


async def test_a_connection_closed_before_any_answer_is_an_unreachable_node(server, client):
    async def cut(request, reply):
        reply.cut()

    server.on("/api/chat", cut)
    assert isinstance((await texts_of(client))[1], NodeUnreachable)


async def test_a_stream_that_ends_without_done_is_truncated(server, client):
    async def truncated(request, reply):
        reply.head()
        reply.token("Once")
        reply.end()

    server.on("/api/chat", truncated)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == (["Once"], StreamTruncated)


async def test_a_stream_that_ends_inside_a_line_is_truncated(server, client):
    async def truncated(request, reply):
        reply.head()
        reply.token("Once")
        reply.send(b'{"message": {"content": " up')
        reply.end()

    server.on("/api/chat", truncated)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == (["Once"], StreamTruncated)


async def test_an_error_inside_the_stream_is_a_failed_node(server, client):
    async def fails(request, reply):
        reply.head()
        reply.token("Once")
        reply.line({"error": "llama runner process has terminated"})
        reply.end()

    server.on("/api/chat", fails)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == (["Once"], NodeFailed)
    assert "llama runner process has terminated" in str(error)


@pytest.mark.parametrize(
    "line",
    [
        b"this is no JSON",
        b'["a", "list"]',
        b'{"message": "a text", "done": false}',
        b'{"message": {"content": 7}, "done": false}',
        b'{"message": {"content": "x"}, "done": "maybe"}',
        b'{"message": {"tool_calls": "none"}, "done": false}',
        b'{"message": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}',
        b'{"message": {"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1e999}}}]}}',
        b'{"message": {"content": "\xff"}}',
        b'{"message": {"content": "\\ud800"}}',
        b"[" * 100_000,
    ],
    ids=lambda line: line[:60].decode("latin-1"),
)
async def test_a_line_of_another_shape_is_a_failed_node(server, client, line):
    async def garbles(request, reply):
        reply.head()
        reply.token("Once")
        reply.send(line + b"\n")
        reply.end()

    server.on("/api/chat", garbles)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == (["Once"], NodeFailed)
    assert "not Ollama's protocol" in str(error)


async def test_a_line_without_end_is_refused_at_its_bound(server, client):
    async def endless_line(request, reply):
        reply.head()
        for _ in range(MAX_LINE_BYTES // 2**20 + 2):
            reply.send(b"x" * 2**20)
        await reply.gone.wait()

    server.on("/api/chat", endless_line)
    _, error = await texts_of(client)
    assert isinstance(error, NodeFailed)
    assert f"more than {MAX_LINE_BYTES:,} bytes" in str(error)


@pytest.mark.parametrize("document", ["<html>hello</html>", [], {"models": 7}, {"models": [{"size": 3}]}])
async def test_a_document_of_another_shape_is_a_failed_node(server, client, document):
    async def garbles(request, reply):
        reply.whole(document)

    server.on("/api/tags", garbles)
    with pytest.raises(NodeFailed, match="not Ollama's protocol"):
        await client.models()


@pytest.mark.parametrize("vectors", [[], [[1.0]], [[1.0], []], [[1.0], [1.0, 2.0]]])
async def test_embeddings_that_do_not_match_the_texts_are_a_failed_node(server, client, vectors):
    async def garbles(request, reply):
        reply.whole({"embeddings": vectors})

    server.on("/api/embed", garbles)
    with pytest.raises(NodeFailed, match="for 2 texts; is that an embedding model"):
        await client.embed(["a", "b"], model="tiny-embed:latest")


# --- statuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "document", "headers", "kind", "words"),
    [
        (503, {"error": "server busy"}, {"Retry-After": "7"}, NodeBusy, r"busy \(503: server busy\)"),
        (503, {"error": "server busy"}, {}, NodeBusy, "try again later"),
        (429, "<html>slow down</html>", {"Retry-After": "1"}, NodeBusy, r"busy \(429\)"),
        (404, {"error": "model 'm' not found"}, {}, ModelMissing, "it there: gaelp models pull tiny:latest;"),
        (404, "<html>nginx</html>", {}, ModelMissing, "that address is no Ollama server"),
        (
            400,
            {"error": "invalid options"},
            {},
            RequestRefused,
            r"refuses the request \(400: invalid options\)",
        ),
        (401, "<html>login</html>", {}, RequestRefused, "GAELP_OLLAMA_HEADERS"),
        (413, {"error": "too large"}, {}, RequestRefused, "413: too large"),
        (302, "", {"Location": "http://127.0.0.1:1/"}, RequestRefused, r"redirects \(302\)"),
        (408, "", {}, NodeFailed, "gave up"),
        (499, {"error": "request cancelled"}, {}, NodeFailed, "gave up"),
        (500, "<html>Internal Server Error</html>", {}, NodeFailed, r"failed \(500\)"),
        (
            500,
            {"error": "model requires more\nsystem memory."},
            {},
            NodeFailed,
            "500: model requires more system",
        ),
        (500, {"error": {"message": "nested"}}, {}, NodeFailed, "500: nested"),
        (502, "x" * 200_000, {}, NodeFailed, "failed"),
    ],
)
async def test_a_status_becomes_its_error(server, client, status, document, headers, kind, words):
    async def refuses(request, reply):
        reply.whole(document, status, **headers)

    server.on("/api/chat", refuses)
    texts, error = await texts_of(client)
    assert (texts, type(error)) == ([], kind)
    with pytest.raises(kind, match=words):
        raise error
    assert "\n" not in str(error)
    assert "html" not in str(error)
    if kind is NodeBusy:
        wanted = headers.get("Retry-After")
        assert error.retry_after_s == (float(wanted) if wanted else None)


async def test_a_missing_path_is_not_taken_for_a_missing_model(server, client):
    async def lost(request, reply):
        reply.whole("<html>nginx</html>", 404)

    server.on("/api/version", lost)
    with pytest.raises(RequestRefused, match="answers 404 for /api/version"):
        await client.version()


# --- every error of the library ---------------------------------------------------------------------


#: Of WebSockets, and of the streams between them.
NOT_OF_HTTP = {"WebSocketError", "WSMessageTypeError", "EofStream"}


def foreign_errors():
    """Every exception class that aiohttp's client defines."""
    return sorted(
        {
            error
            for module in (aiohttp, aiohttp.client_exceptions, aiohttp.http_exceptions)
            for error in vars(module).values()
            if inspect.isclass(error) and issubclass(error, Exception) and not issubclass(error, Warning)
            if error.__module__.startswith("aiohttp") and error.__name__ not in NOT_OF_HTTP
        },
        key=lambda error: error.__name__,
    )


@pytest.mark.parametrize(
    "kind", [*foreign_errors(), OSError, TimeoutError, ConnectionResetError], ids=lambda e: e.__name__
)
async def test_no_error_of_aiohttp_leaves_the_transport_unmapped(server, monkeypatch, kind):
    error = kind.__new__(kind)
    BaseException.__init__(error)

    async def raises(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(aiohttp.ClientSession, "request", raises)
    transport = Transport(server.url, connect_s=1)
    until = asyncio.get_running_loop().time() + 60
    with pytest.raises(NodeError) as caught:
        await transport.ask("/api/version", until=until)
    assert server.url in str(caught.value)
    with pytest.raises(NodeError):
        async with transport.stream("/api/chat", b"{}", until=None):
            raise AssertionError("opened")
    await transport.close()


# --- TLS, headers, prefixes -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
async def tls_server(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with ScriptedServer(tls=context) as running:
        yield running


async def test_an_https_node_is_trusted_by_its_own_ca(tls_server, authority, tmp_path):
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    async with LocalOllamaClient(CHAT_MODEL, tls_server.url, ca_file=str(ca_file)) as client:
        texts, error = await texts_of(client)
    assert ("".join(texts), error) == ("".join(TOKENS), None)


async def test_an_https_node_of_an_unknown_ca_is_not_trusted(tls_server):
    async with LocalOllamaClient(CHAT_MODEL, tls_server.url) as client:
        with pytest.raises(NodeUnreachable, match="GAELP_OLLAMA_CA_FILE"):
            await client.version()
    assert tls_server.requests == []


async def test_https_to_a_plain_port_says_so():
    async def complain(reader, writer):
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(complain, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        async with LocalOllamaClient("m", f"https://127.0.0.1:{port}") as client:
            with pytest.raises(NodeUnreachable, match="is it http:// instead of https://"):
                await client.version()


async def test_http_to_a_tls_port_is_an_error_of_ours(tls_server):
    async with LocalOllamaClient("m", tls_server.url.replace("https:", "http:")) as client:
        with pytest.raises(NodeError):
            await client.version()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_said_at_once(tmp_path, content):
    ca_file = tmp_path / "ca.pem"
    if content:
        ca_file.write_text(content)
    with pytest.raises(SettingsError, match="GAELP_OLLAMA_CA_FILE"):
        LocalOllamaClient("m", "https://127.0.0.1:1", ca_file=str(ca_file))


async def test_headers_reach_the_node_and_a_prefix_is_kept(tmp_path):
    async with ScriptedServer(prefix="/ollama") as server:
        headers = {"Authorization": "Bearer s3cret"}
        async with LocalOllamaClient(CHAT_MODEL, server.url + "/", headers=headers) as client:
            assert await client.version() == "0.33.0"
            await texts_of(client)
    assert [request.path for request in server.requests] == ["/ollama/api/version", "/ollama/api/chat"]
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer s3cret"}
    assert {request.headers["accept-encoding"] for request in server.requests} == {"identity"}


@pytest.mark.parametrize("headers", [{"X": "a\r\nHost: evil"}, {"": "x"}, {"Ünicode": "x"}])
def test_a_header_that_would_break_the_request_is_refused(headers):
    with pytest.raises(SettingsError, match="GAELP_OLLAMA_HEADERS"):
        LocalOllamaClient("m", headers=headers)


@pytest.mark.parametrize(
    "address",
    ["", "localhost:11434", "ftp://host", "http://", "http://user:pw@", "http://h:99999", "http://[::1"],
)
def test_an_address_that_cannot_be_used_is_said_at_once_without_its_password(address):
    with pytest.raises(SettingsError, match="no address of an Ollama server") as caught:
        LocalOllamaClient("m", address)
    assert "pw" not in str(caught.value)


async def test_credentials_in_the_address_are_used_and_never_shown(server):
    address = server.url.replace("://", "://user:s3cret@")
    async with LocalOllamaClient(CHAT_MODEL, address) as client:
        await client.version()
        assert server.requests[0].headers["authorization"].startswith("Basic ")
        server.on("/api/version", lambda request, reply: _refuse(reply))
        with pytest.raises(NodeFailed) as caught:
            await client.version()
        assert "s3cret" not in str(caught.value) + caught.value.node + client.node


async def _refuse(reply):
    reply.whole({"error": "no"}, 500)


async def test_proxies_of_the_environment_are_ignored(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with LocalOllamaClient(CHAT_MODEL, server.url) as client:
        assert await client.version() == "0.33.0"


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
