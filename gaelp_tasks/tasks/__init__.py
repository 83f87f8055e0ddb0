"""The Celery tasks: each a thin door to the walk; no rule lives here."""
