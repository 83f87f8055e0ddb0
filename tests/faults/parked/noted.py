"""A task that tells when it was started: `celery -A gaelp_tasks worker --include faults.parked.noted`."""

from time import time

from gaelp_tasks import app

__all__ = ["noted"]


@app.task(name="parked.noted")
def noted() -> float:
    """Unix seconds of its start."""
    return time()
