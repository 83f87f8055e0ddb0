"""Arrows go one way: gaelp_workers -> gaelp_tasks <- gaelp_beat; data and decisions know nobody above."""

from typing import NamedTuple

import pytest

from support.imports import imports, our_modules, read_imports, within

DATA = ("gaelp_tasks.errors", "gaelp_tasks.models")
DECISIONS = (
    "gaelp_tasks.asked",
    "gaelp_tasks.queues",
    "gaelp_tasks.retries",
    "gaelp_tasks.lifecycle",
    "gaelp_tasks.texts",
    "gaelp_tasks.footprints",
    "gaelp_tasks.metrics.series",
    "gaelp_tasks.metrics.worker",
    "gaelp_tasks.waiting",
    "gaelp_tasks.db.address",
    "gaelp_tasks.due",
)
CONTROL = tuple(
    f"gaelp_workers.{name}"
    for name in (
        "dispatch",
        "admission",
        "controller",
        "decisions",
        "eviction",
        "ledger",
        "thresholds",
        "wording",
    )
)
API = ("gaelp_tasks.api",)
PROGRAMS = ("gaelp_tasks.cli", "gaelp_tasks.demo")


class Layer(NamedTuple):
    """Modules, and which of ours they may import."""

    modules: tuple[str, ...]
    may: tuple[str, ...]
    but_not: tuple[str, ...] = ()


# The first layer that names a module holds it; what is not named may not be imported.
LAYERS = (
    Layer(("gaelp_tasks.errors",), may=()),
    Layer(("gaelp_tasks.models",), may=DATA),
    Layer((*DECISIONS, *CONTROL), may=(*DATA, *DECISIONS, *CONTROL)),
    Layer(("gaelp_tasks.demo.model_server",), may=(*DATA, "gaelp_tasks.demo.model_server")),
    Layer(PROGRAMS, may=("gaelp_tasks",)),
    Layer(API, may=("gaelp_tasks",), but_not=PROGRAMS),
    Layer(("gaelp_tasks",), may=("gaelp_tasks",), but_not=(*API, *PROGRAMS)),
    Layer(("gaelp_workers",), may=("gaelp_workers", "gaelp_tasks"), but_not=(*API, *PROGRAMS)),
    Layer(("gaelp_beat",), may=("gaelp_beat", "gaelp_tasks"), but_not=(*API, *PROGRAMS)),
)
OURS = ("gaelp_tasks", "gaelp_workers", "gaelp_beat")


def layer_of(module: str) -> Layer:
    return next(layer for layer in LAYERS if within(module, layer.modules))


def forbidden(module: str, imported: str) -> bool:
    layer = layer_of(module)
    return within(imported, OURS) and (not within(imported, layer.may) or within(imported, layer.but_not))


@pytest.mark.parametrize("module", our_modules())
def test_a_module_imports_only_what_its_layer_may(module):
    wrong = sorted(other for other in imports()[module] if forbidden(module, other))
    assert not wrong, f"{module} imports {', '.join(wrong)}: its layer may import {layer_of(module).may}."


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.modules[0])
def test_each_layer_still_holds_every_module_it_names(layer):
    gone = [name for name in layer.modules if not any(within(module, (name,)) for module in our_modules())]
    assert not gone, f"No module lies at {', '.join(gone)}: move the row of LAYERS with the code."


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("gaelp_tasks.celery_app", "gaelp_workers.pool"),
        ("gaelp_tasks.results", "gaelp_tasks.cli.run"),
        ("gaelp_tasks.services.status", "gaelp_tasks.api.state"),
        ("gaelp_beat.scheduler", "gaelp_workers.pool"),
        ("gaelp_workers.dispatch", "gaelp_tasks.connections"),
        ("gaelp_tasks.models.usage", "gaelp_tasks"),
        ("gaelp_tasks.errors", "gaelp_tasks.models.usage"),
    ],
)
def test_an_arrow_against_the_direction_is_seen(module, imported):
    assert forbidden(module, imported)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import gaelp_tasks.errors", "gaelp_tasks.errors"),
        ("import gaelp_tasks.errors as wrong", "gaelp_tasks.errors"),
        ("from gaelp_tasks import errors", "gaelp_tasks.errors"),
        ("from gaelp_tasks import app_that_is_no_module", "gaelp_tasks"),
        ("from gaelp_tasks.errors import GaelpError", "gaelp_tasks.errors"),
        ("def run():\n    import gaelp_tasks.errors", "gaelp_tasks.errors"),
        ("if TYPE_CHECKING:\n    from gaelp_tasks import errors", "gaelp_tasks.errors"),
        ('import_module("gaelp_tasks.errors")', "gaelp_tasks.errors"),
        ('importlib.import_module("gaelp_tasks.errors")', "gaelp_tasks.errors"),
        ("from . import errors", "gaelp_tasks.errors"),
        ("from .errors import GaelpError", "gaelp_tasks.errors"),
        ("from .models.usage import Usage", "gaelp_tasks.models.usage"),
    ],
)
def test_every_spelling_of_an_import_is_read(source, found):
    assert list(read_imports(source, module="gaelp_tasks.somewhere")) == [found]


def test_a_relative_import_in_a_package_starts_at_that_package():
    read = read_imports("from .usage import Usage", module="gaelp_tasks.models", is_package=True)
    assert list(read) == ["gaelp_tasks.models.usage"]
