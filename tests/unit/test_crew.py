"""Threads that share their work, and that nobody has to wait for."""

import subprocess
import sys
import threading

import pytest

from gaelp_tasks.threads import Crew

# the first thread is being started when the signal comes: its start waits for a lock that the signal breaks
ENDED_WHILE_IT_STARTS = """
import os, signal, sys, threading
from gaelp_tasks.threads import Crew

class Slow(threading.Thread):
    def start(self):
        super().start()
        os.kill(os.getpid(), signal.SIGTERM)

signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
threading.Thread = Slow
Crew(4, "crew").submit(print, "done")
"""


def test_what_was_submitted_comes_back_with_its_result_or_its_error():
    crew = Crew(2, "crew")
    assert [crew.submit(pow, 2, number).result(timeout=20) for number in range(8)] == [
        2**number for number in range(8)
    ]
    with pytest.raises(ZeroDivisionError):
        crew.submit(lambda: 1 / 0).result(timeout=20)
    crew.close()


def test_so_many_work_at_once_and_no_more():
    crew, go = Crew(3, "crew"), threading.Event()
    met = threading.Barrier(4)
    futures = [crew.submit(met.wait, 20) for _ in range(3)]
    later = crew.submit(go.is_set)
    met.wait(20)
    assert all(future.result(timeout=20) is not None for future in futures)
    assert later.result(timeout=20) is False
    crew.close()


def test_they_end_when_the_work_before_is_done():
    crew = Crew(3, "to end")
    barrier = threading.Barrier(3)
    futures = [crew.submit(barrier.wait, 20) for _ in range(3)]
    crew.close()
    assert all(future.result(timeout=20) is not None for future in futures)
    for thread in [one for one in threading.enumerate() if one.name.startswith("to end")]:
        thread.join(20)
        assert not thread.is_alive()


def test_a_signal_that_ends_the_program_while_one_starts_is_not_waited_for():
    done = subprocess.run([sys.executable, "-c", ENDED_WHILE_IT_STARTS], timeout=20, check=False)
    assert done.returncode == 7
