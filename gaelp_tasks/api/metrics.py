"""What Prometheus reads of this process, on a listener of its own that asks for no token."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI

from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect
from gaelp_tasks.metrics.cluster import Latest, samples
from gaelp_tasks.metrics.page import Collected, Page, new_page, serve
from gaelp_tasks.metrics.series import CLUSTER, MOST_MODELS, Names
from gaelp_tasks.survey import Survey

__all__ = ["page_of", "serve_metrics"]

ANSWER_S = 2.0  #: each of the few questions of a look


def page_of(app: GaelpApp) -> Page:
    """The cluster's page, and this process'; it looks when it is read."""
    redis = connect(app.settings, answer_s=ANSWER_S)
    asking: Any = SimpleNamespace(settings=app.settings, keys=app.keys, redis=redis)
    latest = Latest(Survey(asking).take)
    page, models = new_page(), Names(MOST_MODELS)
    Collected(CLUSTER, lambda: samples(latest(), models), page)
    return page


def serve_metrics(api: FastAPI, app: GaelpApp) -> Callable[[], None]:
    """Serve it; what comes back ends that. Raises OSError where the address is taken."""
    api.state.page = page_of(app)
    return serve(api.state.page, *app.settings.metrics_listener)
