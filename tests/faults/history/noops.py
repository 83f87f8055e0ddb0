"""The probe on our app: `celery -A gaelp_tasks worker --include faults.history.noops`."""

from faults.history.probes import PROBE, probe
from gaelp_tasks import app

app.task(bind=True, name=PROBE)(probe)
