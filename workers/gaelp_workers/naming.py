"""Names the run in what is logged inside it: on its thread, and on the loop of this process."""

from functools import wraps
from typing import Any

from celery import bootsteps

from gaelp_tasks.logs import RUN

__all__ = ["Naming", "named"]


def named(task: Any) -> None:
    """Have each run of a task leave its request where the lines of the log are made.

    The coroutine that a run hands to the loop takes this thread's context with it.
    """
    run = task.run

    @wraps(run)
    def in_context(*args: Any, **kwargs: Any) -> Any:
        here = [task.request]
        before = RUN.set(here)
        try:
            return run(*args, **kwargs)
        finally:
            RUN.reset(before)
            here.clear()

    task.run = in_context


class Naming(bootsteps.Step):
    """Names the runs of all our tasks; before Celery builds the way in which it calls them."""

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        for name, task in c.app.tasks.items():
            if name.startswith("gaelp."):
                named(task)
