"""Somebody's own Celery service, with celery and redis only: an app, a worker's tasks, a beat's schedule."""

from celery import Celery

app = Celery("service")  # CELERY_BROKER_URL and CELERY_RESULT_BACKEND say where
app.conf.update(
    worker_hijack_root_logger=False,
    worker_enable_remote_control=False,  # its worker must not answer for tasks that are not its own
    beat_schedule={
        "every second": {
            "task": "gaelp.invoke_agent",
            "schedule": 1.0,
            "args": ["Anything new?"],
            "kwargs": {"options": {"num_predict": 3}, "priority": 7, "metadata": {"from": "beat"}},
            "options": {"queue": "background", "expires": 30},
        }
    },
)


@app.task(name="service.note")
def note(result):
    """What a callback was given."""
    return {"noted": result}


@app.task(name="service.collect")
def collect(results):
    """The body of a chord."""
    return [result["text"] for result in results]


@app.task(name="service.blame")
def blame(task_id):
    """An error callback; the names of the failed are kept where a caller finds them."""
    app.backend.client.rpush("service:blamed", task_id)


@app.task(name="service.ask", bind=True)
def ask(self, prompt):
    """Hands its own id, and whatever waits for it, over to an agent."""
    raise self.replace(
        app.signature(
            "gaelp.invoke_agent", args=[prompt], kwargs={"options": {"num_predict": 5}}, queue="interactive"
        )
    )
