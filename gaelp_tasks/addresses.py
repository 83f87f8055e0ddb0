"""Addresses of Redis as GAELP_BROKER_URL takes them, and as Celery and redis-py want them.

    redis://user:password@host:6379/0
    rediss://host:6379/0?ssl_ca_certs=/etc/ca.pem&ssl_certfile=/etc/me.pem&ssl_keyfile=/etc/me.key
    redis+socket:///run/redis.sock?virtual_host=0
    sentinel://user:password@one:26379;sentinel://two:26379/0?master_name=mymaster&sentinel_password=...

What is the same for all sentinels (user, password, database, options) may stand at any one of them.
"""

from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

__all__ = ["Sentinels", "check", "for_celery", "sentinels"]

SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
SENTINEL_PORT = 26379
MASTER = "mymaster"  #: what Redis' own sentinel.conf calls it
OPTIONS = {"master_name", "sentinel_username", "sentinel_password"}
#: the server's certificate is checked; Celery would ask for this to be said, kombu would not check
VERIFIED = {"ssl_cert_reqs": "required"}


class Sentinels(NamedTuple):
    """Whom to ask for the master, and how to log in to it; '' stands for no name and no password."""

    places: tuple[tuple[str, int], ...]
    master: str
    db: int
    username: str
    password: str
    own_username: str  #: of the sentinels themselves
    own_password: str

    @property
    def urls(self) -> list[str]:
        """One for each sentinel, with all that Celery reads from any of them."""
        login = f"{quote(self.username, safe='')}:{quote(self.password, safe='')}@" if self.password else ""
        return [f"sentinel://{login}{_bracketed(host)}:{port}/{self.db}" for host, port in self.places]


def check(url: str) -> None:
    """Raises ValueError, in a sentence without the password, where the address cannot be used."""
    if urlsplit(url).scheme not in SCHEMES:
        raise ValueError("the address must start with redis://, rediss:// or sentinel://")
    sentinels(url)


def sentinels(url: str) -> Sentinels | None:
    """What a sentinel:// address says, None for any other. Raises ValueError."""
    if not url.startswith("sentinel:"):
        return None
    places: list[tuple[str, int]] = []
    told: dict[str, str] = {}
    for chunk in filter(None, (part.strip() for part in url.split(";"))):
        parts = urlsplit(chunk)
        if parts.scheme != "sentinel" or not parts.hostname:
            raise ValueError("each sentinel is written sentinel://host:port, with ; between them")
        places.append((parts.hostname, parts.port or SENTINEL_PORT))
        said = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(said.keys() - OPTIONS):
            raise ValueError(f"a sentinel:// address takes no {unknown[0]}; it takes {_listed(OPTIONS)}")
        said |= {"db": parts.path.strip("/")}
        said |= {"username": unquote(parts.username or ""), "password": unquote(parts.password or "")}
        for name, value in said.items():
            if value and told.setdefault(name, value) != value:
                raise ValueError(f"the sentinels are given different values of {name}")
    if not told.get("db", "0").isdecimal():
        raise ValueError("the database behind the last / must be a number")
    return Sentinels(
        tuple(places),
        told.get("master_name", MASTER),
        int(told.get("db", "0")),
        told.get("username", ""),
        told.get("password", ""),
        told.get("sentinel_username", ""),
        told.get("sentinel_password", ""),
    )


def for_celery(url: str) -> str:
    """The address as Celery's broker and result backend read it."""
    if found := sentinels(url):
        return ";".join(found.urls)
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return url
    return urlunsplit(parts._replace(query=urlencode(VERIFIED | dict(parse_qsl(parts.query)), safe="/")))


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
