"""How a node is addressed and spoken to: TLS, headers, prefixes, credentials."""

import asyncio
import ssl

import pytest
import trustme

from gaelp_tasks.clients import LocalOllamaClient
from gaelp_tasks.errors import NodeError, NodeFailed, NodeUnreachable, SettingsError
from support.answers import texts_of
from support.scripted_server import CHAT_MODEL, TOKENS, ScriptedServer


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
