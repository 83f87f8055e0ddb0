"""Sweeps as workers do, so that what is due and what the dead held is in its queues while no worker lives.

Metrics, and what scales by them, see it there. Every beat sweeps, whoever leads: it needs no lease for that.
"""

import logging
import threading
from time import monotonic

from gaelp_tasks import counts
from gaelp_tasks.celery_app import GaelpApp
from gaelp_tasks.connections import connect, in_words, unavailable
from gaelp_tasks.dead_letters import POISON, give_up
from gaelp_tasks.sweeping import LOOKS_PER_LEASE, Holders, Sweep, claims_ttl_s, repeated
from gaelp_tasks.threads import beside

__all__ = ["SWEEP_S", "Sweeper"]

logger = logging.getLogger(__name__)

SWEEP_S = 0.5  #: between two sweeps: what is due is published within a second
ANSWER_S = 1.0  #: for one of Redis; then it is asked anew, on another connection
STOP_S = 1.0  #: for what is under way
CONNECTION = "gaelp-sweeper"  #: its name in CLIENT LIST, which is no holder's


class Sweeper(threading.Thread):
    """On a thread and a connection of its own: no tick that hangs keeps it, and it keeps no tick.

    It holds nothing, so it may stand still for any time.
    """

    def __init__(self, app: GaelpApp) -> None:
        super().__init__(name=CONNECTION, daemon=True)
        settings = app.settings
        self._app = app
        self._redis = connect(settings, name=CONNECTION, answer_s=ANSWER_S)
        self._sweep = Sweep(
            app.keys, claims_ttl_s=claims_ttl_s(settings), poison_deaths=settings.poison_deaths
        )
        self._holders = Holders(app.keys)
        self._look_s = settings.lease_ttl_s / LOOKS_PER_LEASE
        self._looked_at = float("-inf")  # `monotonic`
        self._trouble = ""  # told once for as long as it is
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop`."""
        while not self._over.wait(SWEEP_S):
            try:
                self.sweep()
            except Exception:
                logger.exception("Beat could not sweep; it tries again.")
        self._redis.close()

    def stop(self) -> None:
        """End; where it never began, too."""
        self._over.set()
        if self.is_alive():
            self.join(STOP_S)

    def sweep(self) -> None:
        """One look for the dead, and all that is due or was forsaken."""
        try:
            dead = self._dead()
            for swept in repeated(lambda: self._sweep(self._redis, dead), lambda: not self._over.is_set()):
                if swept.reaped:
                    beside(counts.count, self._app, counts.REAPED, swept.reaped)
                for task_id in swept.poison:  # nobody else can tell who waits for it
                    beside(give_up, self._app, task_id, POISON)
        except unavailable as error:
            self._holders.forget()
            if self._trouble != str(error):
                self._trouble = str(error)
                logger.warning("Redis does not serve the sweep (%s); trying again.", in_words(str(error)))
        else:
            self._trouble = ""

    def _dead(self) -> set[str]:
        """Holders that have died, as of a look that comes no sooner than a living one would be back."""
        if monotonic() - self._looked_at < self._look_s:
            return set()
        self._looked_at = monotonic()
        return self._holders.dead(self._redis, self._holders.ends(self._redis))
