"""A service that has only celery and redis calls our agents by name."""

import json
import os
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow, pytest.mark.usefixtures("worker")]

SERVICE = """
import importlib.util, json, os
from celery import Celery, chain, signature
assert importlib.util.find_spec("gaelp_tasks") is None
app = Celery("service", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
options = {"num_predict": 20}
hi = app.send_task("gaelp.invoke_agent", ["hi"], {"options": options}, queue="interactive").get(timeout=30)
low = app.send_task("gaelp.invoke_agent", ["hi"], {"options": options}, queue="background").get(timeout=30)
odd = app.send_task(
    "gaelp.invoke_agent", ["hi"], {"options": options}, queue="batch", priority=9
).get(timeout=30)
vectors = app.send_task("gaelp.embed", [["a", "b"]], queue="batch").get(timeout=30)
late = app.send_task(
    "gaelp.invoke_agent", ["hi"], {"options": options}, queue="interactive", countdown=0.5
).get(timeout=30)
bad = app.send_task("gaelp.invoke_agent", [], {"prompt": "x", "priority": 99}, queue="interactive")
try:
    bad.get(timeout=30)
    refusal = ""
except Exception as error:
    refusal = str(error)
print(json.dumps({
    "text": hi["text"], "tier": hi["tier"], "low": low["tier"], "odd": odd["tier"],
    "late": late["stop_reason"],
    "vectors": len(vectors["embeddings"]), "queued_s": hi["timings"]["queued_s"], "refusal": refusal,
}))
"""


def test_a_service_with_only_celery_and_redis_gets_its_answers(plain_python: Path, broker):
    done = subprocess.run(
        [str(plain_python), "-c", SERVICE],
        env={"PATH": os.environ["PATH"], "BROKER": broker.url},
        cwd=plain_python.parent,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["text"]
    assert (told["tier"], told["low"], told["odd"]) == ("interactive", "background", "batch")
    assert told["vectors"] == 2
    assert told["late"] == "length"
    assert told["queued_s"] is None, "a plain sender does not tell when it sent"
    assert "priority" in told["refusal"]
