"""Ports for the servers of tests: each is given to one, whoever else runs tests on this machine."""

import socket

from gaelp_tasks.demo import broker

__all__ = ["free_port"]


def free_port() -> int:
    """One that nobody holds; no other test gets it until this process ends, listening or not."""
    while True:
        port = broker.free_port()
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0gaelp-test-port-{port}")
        except OSError:
            claim.close()
        else:
            claim.detach()
            return port
