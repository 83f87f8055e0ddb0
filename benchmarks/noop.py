"""The no-op on our app: `celery --app gaelp_tasks worker --include noop`."""

from gaelp_tasks import app

__all__ = ["noop"]


@app.task(name="bench.noop")
def noop() -> None:
    pass
