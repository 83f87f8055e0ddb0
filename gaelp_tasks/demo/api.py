"""The API of the embedded system: addresses, secrets of its own, and a token for who started it."""

import base64
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaelp_tasks.demo.broker import free_port, port_is_free
from gaelp_tasks.demo.upfile import write_private
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings

__all__ = ["TOKEN_FILE", "settings_of"]

PORT = 8000
METRICS_PORT = 8080
SECRET_FILE, KEY_FILE, TOKEN_FILE = "jwt.secret", "secret.key", "api.token"
WEEK_S = 7 * 86_400.0


def settings_of(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """GAELP_ variables of the API, and of those who ask it; what is `given` counts more.

    Secrets are made once and kept in `folder`, so that tokens and sealed secrets outlive a restart; the
    token of an admin is written beside them, anew each time.
    """
    port = PORT if port_is_free(PORT) else free_port()
    address = given.get("GAELP_API_ADDRESS", f"127.0.0.1:{port}")
    secret = given.get("GAELP_JWT_SECRET") or _kept(folder / SECRET_FILE, secrets.token_hex(32))
    signs: dict[str, Any] = {"jwt_secret": secret}
    tokens = Tokens(Settings(**signs))
    token = tokens.issue(Caller(name="me", role=Role.ADMIN), WEEK_S)
    write_private(folder / TOKEN_FILE, token + "\n")
    return {
        "GAELP_API_ADDRESS": address,
        "GAELP_API_URL": f"http://{address}",
        "GAELP_API_TOKEN": token,
        "GAELP_METRICS_ADDRESS": f"127.0.0.1:{METRICS_PORT if port_is_free(METRICS_PORT) else free_port()}",
        "GAELP_JWT_SECRET": secret,
        "GAELP_SECRET_KEYS": _kept(folder / KEY_FILE, base64.b64encode(secrets.token_bytes(32)).decode()),
        "GAELP_TRAINING_DIR": str((folder / "training").absolute()),
    }


def _kept(file: Path, made: str) -> str:
    """What the file holds; what was made now, where there is none."""
    if not file.exists():
        write_private(file, made + "\n")
    return file.read_text().strip()
