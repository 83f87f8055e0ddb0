"""The proxy that faults are put into."""

import socket
from contextlib import closing

import pytest

from support.eventually import eventually
from support.proxy import Proxy


@pytest.fixture
def joined():
    """A proxy, a client that speaks through it, the server's end of that connection, and the server."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Proxy(listener.getsockname()[1]) as proxy,
        closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=5)) as client,
        closing(listener.accept()[0]) as server,
    ):
        listener.settimeout(5)
        server.settimeout(5)
        client.sendall(b"hello")
        assert server.recv(100) == b"hello"
        yield proxy, client, server, listener


def silent(end: socket.socket) -> bool:
    """Whether neither a byte nor the end of the connection comes within a moment."""
    end.settimeout(0.2)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(5)
    return False


def test_what_is_said_into_the_silence_arrives_when_it_is_over(joined):
    proxy, client, server, _ = joined
    proxy.silence()
    client.sendall(b"one")
    server.sendall(b"two")
    assert silent(server)
    assert silent(client)
    proxy.resume()
    assert (server.recv(100), client.recv(100)) == (b"one", b"two")


def test_a_client_that_ends_in_the_silence_leaves_its_connection_open(joined):
    proxy, client, server, _ = joined
    proxy.silence()
    client.close()
    assert silent(server)
    proxy.resume()
    assert server.recv(100) == b""


def test_a_reset_breaks_both_ends_and_lets_new_ones_pass(joined):
    proxy, client, server, listener = joined
    proxy.silence()
    proxy.reset()
    for end in (client, server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    with closing(socket.create_connection(("127.0.0.1", proxy.port), timeout=5)) as again:
        again.sendall(b"anew")
        with closing(listener.accept()[0]) as other_end:
            assert other_end.recv(100) == b"anew"


def test_an_end_passes_while_nothing_is_silent(joined):
    _, client, server, _ = joined
    server.close()
    assert eventually(lambda: client.recv(1) == b"")
