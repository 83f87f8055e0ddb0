"""Streams that break off, answers of another shape, and every status have an error of ours."""

import asyncio
import inspect

import aiohttp
import pytest

from gaelp_tasks.clients.transport import Transport
from gaelp_tasks.clients.wire import MAX_LINE_BYTES
from gaelp_tasks.errors import (
    ModelMissing,
    NodeBusy,
    NodeError,
    NodeFailed,
    NodeUnreachable,
    RequestRefused,
    StreamTruncated,
)
from support.answers import texts_of

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
