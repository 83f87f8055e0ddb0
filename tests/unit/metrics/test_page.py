"""A page of metrics never hangs, whoever asks for it."""

import re
import socket
import subprocess
import sys
from urllib.request import urlopen

import pytest

from gaelp_tasks.metrics import page
from gaelp_tasks.metrics.page import Collected, new_page, serve
from gaelp_tasks.metrics.series import CLUSTER, Sample
from support.metric_pages import parsed
from support.ports import free_port


@pytest.fixture
def served():
    page = new_page()
    Collected(CLUSTER, lambda: [Sample("gaelp_dead_letters", (), 5)], page)
    port = free_port()
    end = serve(page, "127.0.0.1", port)
    yield port
    end()


def test_a_page_is_served_also_while_another_client_says_nothing(served):
    address = f"http://127.0.0.1:{served}/metrics"
    with socket.create_connection(("127.0.0.1", served)), urlopen(address, timeout=10) as answer:
        found = parsed(answer.read().decode())
    assert found["gaelp_dead_letters",] == 5


def test_who_says_nothing_is_sent_away(served, monkeypatch):
    monkeypatch.setattr(page._Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", served), timeout=10) as silent:
        assert silent.recv(1) == b""


def test_metrics_without_a_figure_are_named_all_the_same(served):
    with urlopen(f"http://127.0.0.1:{served}/metrics", timeout=10) as answer:
        told_kinds = dict(re.findall(r"(?m)^# TYPE (\w+) (\w+)$", answer.read().decode()))
    assert {name: told_kinds[name] for name in ("gaelp_slots", "gaelp_reaped_total")} == {
        "gaelp_slots": "gauge",
        "gaelp_reaped_total": "counter",
    }


def test_only_who_has_a_page_imports_the_library():
    code = "import sys, gaelp_tasks, gaelp_workers.app; print('prometheus_client' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_port_in_use_is_refused(served):
    with pytest.raises(OSError, match="in use"):
        serve(new_page(), "127.0.0.1", served)
