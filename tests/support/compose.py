"""compose.yaml as it is read, and what a service of it asks for."""

import re
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE = YAML(typ="safe").load(TEXT)
SERVICES = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if service["image"].startswith("gaelp-tasks:")}


def filled(text, **given):
    """As compose fills in its variables, with those that are given and no other."""
    while (found := re.search(r"(?<!\$)\$\{(\w+)(?::-((?:[^${}]|\$(?!\{))*))?\}", text)) is not None:
        text = text[: found.start()] + str(given.get(found[1]) or found[2] or "") + text[found.end() :]
    return text


def asked_for(service):
    """The secrets of a service by the name of their file under /run/secrets."""
    told = service.get("secrets", [])
    return {
        filled(one if isinstance(one, str) else one["target"]): filled(
            one if isinstance(one, str) else one["source"]
        )
        for one in told
    }
