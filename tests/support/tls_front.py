"""TLS in front of a plain server: the Redis that tests fetch is built without it."""

import asyncio
import ssl
from pathlib import Path
from typing import Self

import trustme

from support.proxy import Proxy


class Authority:
    """A CA, and what it has signed, as files in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.cert_file = folder / "client.pem"
        self.key_file = folder / "client.key"
        client = self._ca.issue_cert("client.test")
        self._ca.cert_pem.write_to_path(self.ca_file)
        client.cert_chain_pems[0].write_to_path(self.cert_file)
        client.private_key_pem.write_to_path(self.key_file)

    def server(self, name: str = "127.0.0.1", *, asks: bool = False) -> ssl.SSLContext:
        """How a server of that name speaks; `asks`: it takes only clients whose certificate the CA signed."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(name).configure_cert(context)
        if asks:
            self._ca.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class TlsFront(Proxy):
    """`with TlsFront(server.port, context) as front: ... front.port`."""

    def __init__(self, server_port: int, context: ssl.SSLContext) -> None:
        super().__init__(server_port)
        self._context = context

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = self._run(asyncio.start_server(self._joined, "127.0.0.1", 0, ssl=self._context))
        self.port = self._listener.sockets[0].getsockname()[1]
        return self
