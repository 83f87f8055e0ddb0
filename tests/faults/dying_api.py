"""`gaelp api` that dies as by SIGKILL at a named place: `python -m faults.dying_api PLACE TIMES`.

It dies when it is there for the TIMES-th time. What a dead process had taken is free after a second here.
"""

import os
import signal
import sys
from datetime import timedelta

from gaelp_tasks import failpoints
from gaelp_tasks.api import replays
from gaelp_tasks.cli.__main__ import main
from gaelp_tasks.services import accepting

accepting.LEASE = timedelta(seconds=1)
replays.TURN_S, replays.RENEW_S = 1.0, 0.3


def die_at(place: str, times: int) -> None:
    left = times

    def reached() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.arm(place, reached)


if __name__ == "__main__":
    if sys.argv[1:2] != ["nowhere"]:
        die_at(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["gaelp", "api"]
    main()
