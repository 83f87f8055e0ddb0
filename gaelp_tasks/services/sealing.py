"""Secrets at rest: sealed by AES-GCM under the first key, opened by any of them.

This is the only door to the library that does it. A sealed text names its key, and holds only in its own
place: that of another agent or name does not open.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from gaelp_tasks.errors import Conflict, SettingsError
from gaelp_tasks.settings import Settings

__all__ = ["Place", "Sealer", "sealed"]

Place = tuple[str, int, str]  #: tenant, agent, name
FORM = "1"  #: of a sealed text
NONCE_BYTES = 12
NO_KEY = (
    "Secrets cannot be kept: GAELP_SECRET_KEYS is not set. Make a key by `openssl rand -base64 32`, and give "
    "the same to every `gaelp api` and worker."
)


class Sealer:
    """Seals and opens for the settings of a process."""

    def __init__(self, settings: Settings) -> None:
        keys = [base64.b64decode(key.get_secret_value()) for key in settings.secret_keys]
        self._keys = {_name(key): _cipher(key) for key in keys}

    def seal(self, text: str, place: Place) -> str:
        """As it is kept. Raises Conflict where there is no key."""
        if not self._keys:
            raise Conflict(NO_KEY)
        name, key = next(iter(self._keys.items()))
        nonce = os.urandom(NONCE_BYTES)
        sealed = nonce + key.encrypt(nonce, text.encode(), _bound(place))
        return f"{FORM}:{name}:{base64.b64encode(sealed).decode()}"

    def open(self, sealed: str, place: Place) -> str:
        """The secret. Raises Conflict where its key is not here any more, or it is not what was sealed."""
        form, _, rest = sealed.partition(":")
        name, _, text = rest.partition(":")
        key = self._keys.get(name)
        if form != FORM or key is None:
            raise Conflict(f"The secret {place[2]} was sealed by a key that GAELP_SECRET_KEYS does not have.")
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError:  # binascii's is one
            raw = b""
        found = _opened(key, raw, _bound(place))
        if found is None:
            raise Conflict(f"The secret {place[2]} is not what was sealed: set it again.")
        return found

    def is_stale(self, sealed: str) -> bool:
        """Whether another key than the first one has sealed it."""
        return bool(self._keys) and sealed.split(":", 2)[1] != next(iter(self._keys))


def sealed(settings: Settings, tenant: str, agent_id: int, secrets: Mapping[str, str]) -> dict[str, str]:
    """Secrets of an agent as they are kept. Raises Conflict where there is no key."""
    sealer = Sealer(settings)
    return {name: sealer.seal(value, (tenant, agent_id, name)) for name, value in secrets.items()}


def _cipher(key: bytes) -> Any:
    """Raises SettingsError without the extra: a worker that trains nothing with secrets needs none."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  an extra
    except ModuleNotFoundError:
        raise SettingsError(
            "GAELP_SECRET_KEYS: sealing needs a library: pip install 'gaelp-tasks[api]'."
        ) from None
    return AESGCM(key)


def _opened(cipher: Any, raw: bytes, bound: bytes) -> str | None:
    """The text; None where it is not what was sealed."""
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415  as above

    try:
        text: bytes = cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], bound)
        return text.decode()
    except (InvalidTag, ValueError):
        return None


def _name(key: bytes) -> str:
    return hashlib.sha256(b"gaelp secret key " + key).hexdigest()[:8]


def _bound(place: Iterable[str | int]) -> bytes:
    return json.dumps(list(place)).encode()
