"""Start a worker beside its model server: `beside.py gaelp worker`; both are services of compose.yaml.

With NODES model servers the worker of number k gets that of number k, and goes round where there are more
workers. GAELP_OLLAMA_NODES, where it is set, counts instead.
"""

import os
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator

SERVERS = ("ollama", "ollama-gpu", "sim")  #: services of model servers; the first name also stands for all
PORT = 11434
MOST = 100  #: workers that are looked for

Lookup = Callable[[str], set[str]]
Mine = Callable[[str], bool]


def addresses(name: str) -> set[str]:
    """What a name stands for; nothing where nobody has it."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()


def is_mine(address: str) -> bool:
    """Whether an address is one of this container; it may have one on each of its networks."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as tried:
        try:
            tried.bind((address, 0))
        except OSError:
            return False
    return True


def own_number(project: str, mine: Mine, lookup: Lookup) -> int | None:
    """Which of the workers we are, from 1 on; None where no name of a worker is ours."""
    numbers = range(1, MOST + 1)
    return next((k for k in numbers if any(map(mine, lookup(f"{project}-worker-{k}")))), None)


def candidates(project: str, nodes: int, number: int) -> Iterator[str]:
    """The names that our model server may have, by the service that it is of."""
    for service in SERVERS:
        yield f"{project}-{service}-{(number - 1) % nodes + 1}"


def found(names: Iterable[str], lookup: Lookup) -> str | None:
    """The first name that somebody has."""
    return next((name for name in names if lookup(name)), None)


def server(project: str, nodes: int, mine: Mine, lookup: Lookup) -> str:
    """The name of our model server. Raises LookupError with one sentence."""
    if nodes == 1:
        names: Iterable[str] = SERVERS[:1]
    elif (number := own_number(project, mine, lookup)) is not None:
        names = candidates(project, nodes, number)
    else:
        raise LookupError(f"No container of project {project} called worker has an address of this one.")
    name = found(names, lookup)
    if name is None:
        raise LookupError(
            "There is no model server for this worker: start compose with --profile cpu, gpu or sim and "
            "GAELP_NODES as many as there are, or set GAELP_OLLAMA_NODES."
        )
    return name


def main(command: list[str]) -> None:
    """Become the command, with the node in its environment."""
    if not os.environ.get("GAELP_OLLAMA_NODES"):
        project, nodes = os.environ.get("PROJECT", "gaelp"), os.environ.get("NODES", "1")
        if not re.fullmatch(r"[1-9]\d{0,3}", nodes):
            sys.exit(f"beside: GAELP_NODES: {nodes} is no number of model servers.")
        try:
            name = server(project, int(nodes), is_mine, addresses)
        except LookupError as error:
            sys.exit(f"beside: {error}")
        os.environ["GAELP_OLLAMA_NODES"] = f"http://{name}:{PORT}"
    os.execvp(command[0], command)  # noqa: S606  the command is compose.yaml's own


if __name__ == "__main__":
    main(sys.argv[1:])
