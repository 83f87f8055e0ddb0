"""Each foreign library is named behind one door, so that its errors are put into our words in one place."""

import sys

import pytest

from support.imports import imports, within

CELERY = (
    *("gaelp_tasks.celery_app", "gaelp_tasks.logs", "gaelp_tasks.results", "gaelp_tasks.tasks"),
    *("gaelp_workers", "gaelp_beat"),
)
DEMO = ("gaelp_tasks.demo",)

# library -> the modules that may import it; a library that is not here may be imported nowhere
DOORS = {
    "aiohttp": ("gaelp_tasks.clients.transport", "gaelp_tasks.demo.model_server"),  # a client, a server
    "alembic": ("gaelp_tasks.db.migrations",),
    "asyncpg": ("gaelp_tasks.db.database",),
    "celery": (*CELERY, "gaelp_tasks.demo.story"),  # the story is told as a user's program
    "cronsim": ("gaelp_tasks.models.cron",),
    "fastapi": ("gaelp_tasks.api",),
    "cryptography": ("gaelp_tasks.services.sealing",),
    "flower": ("gaelp_tasks.cli.dashboard",),
    "gguf": DEMO,
    "jwt": ("gaelp_tasks.services.tokens",),
    "kombu": CELERY,
    "numpy": DEMO,
    "opentelemetry": ("gaelp_tasks.tracing",),
    "psutil": (
        "gaelp_workers.probes.host",
        "gaelp_tasks.cli.database",  # what file system a file lies on
        "gaelp_tasks.demo.model_server",  # the demo's server is a node
    ),
    "pynvml": ("gaelp_workers.probes.gpu",),
    "pydantic": (
        "gaelp_tasks.models",
        "gaelp_tasks.settings",
        "gaelp_tasks.tools",  # a function's schema, and its arguments checked
        "gaelp_tasks.api.refusals",  # what else is wrong with a body
        "gaelp_tasks.overview",  # skips what another release announced
        "gaelp_tasks.clients.wire",
        "gaelp_tasks.cli.planning",  # sizes with units, as the settings take them
        "gaelp_tasks.demo.model_server.wire",
    ),
    "pydantic_core": ("gaelp_tasks.clients.wire",),
    "pydantic_settings": ("gaelp_tasks.settings",),
    "hiredis": ("gaelp_tasks.line",),
    "redis": ("gaelp_tasks.connections",),
    "prometheus_client": ("gaelp_tasks.metrics.page",),
    "requests": ("gaelp_tasks.cli", "gaelp_tasks.demo"),
    "rich": ("gaelp_tasks.cli", "gaelp_tasks.demo"),
    "sollol": ("gaelp_tasks.clients.routers.sollol",),
    "sqlalchemy": ("gaelp_tasks.db",),
    "starlette": ("gaelp_tasks.api",),
    "structlog": ("gaelp_tasks.logs",),
    "tornado": ("gaelp_tasks.cli.dashboard",),  # what Flower is made of
    "typer": ("gaelp_tasks.cli",),
    "uvicorn": ("gaelp_tasks.api.protocol", "gaelp_tasks.api.server"),
    "xllamacpp": DEMO,
}
OURS = ("gaelp_tasks", "gaelp_workers", "gaelp_beat")


def trespassers(imported_by):
    """(module, library) for each import of a foreign library outside its door."""
    return [
        (module, library)
        for module, imported in imported_by.items()
        for library in sorted({name.partition(".")[0] for name in imported})
        if library not in sys.stdlib_module_names
        and library not in OURS
        and not within(module, DOORS.get(library, ()))
    ]


def test_every_foreign_library_comes_in_by_its_door():
    wrong = trespassers(imports())
    assert not wrong, "; ".join(
        f"{module} imports {library}: {' or '.join(DOORS.get(library, ())) or 'no module'} may"
        for module, library in wrong
    )


@pytest.mark.parametrize("library", DOORS)
def test_each_door_is_used(library):
    assert any(within(name, (library,)) for imported in imports().values() for name in imported), (
        f"Nothing imports {library}: take its row out of DOORS, and the library out of pyproject.toml."
    )


def test_a_library_outside_its_door_is_seen():
    assert trespassers({"gaelp_tasks.streams": {"redis.asyncio", "json"}}) == [
        ("gaelp_tasks.streams", "redis")
    ]


def test_a_library_without_a_door_is_seen():
    assert trespassers({"gaelp_tasks.streams": {"sollol"}}) == [("gaelp_tasks.streams", "sollol")]
