"""The life of an agent over HTTP: registered, trained, watched, deployed, stopped by its budget.

`make up` in one shell, in another one `python examples/story.py`, with the tokens of two people: TOKEN of an
admin, who owns the agent, and BOSS of an operator, who approves what is deployed (docs/tour.md).
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from queue import Queue
from typing import Any

import requests
from websockets.sync.client import connect

API = os.environ.get("GAELP_API_URL", "http://127.0.0.1:8000")
HERE = Path(__file__).parent
LEFT = 0.001  #: what the agent may still spend once it is deployed
MOST_CALLS = 200

me, boss = requests.Session(), requests.Session()
me.headers["Authorization"] = f"Bearer {os.environ['TOKEN']}"
boss.headers["Authorization"] = f"Bearer {os.environ['BOSS']}"


def ask(who: requests.Session, method: str, path: str, body: Any = None) -> Any:
    """What the API answers; it refuses in one sentence."""
    answer = who.request(method, f"{API}/api/v1/{path}", json=body, timeout=30)
    if not answer.ok:
        sys.exit(f"{method} {path}: {answer.status_code} {answer.json()['detail']}")
    return answer.json()


def watch(agent_id: int, heard: "Queue[dict[str, Any]]") -> None:
    """Put what happens to the agent into the queue; the ticket opens one WebSocket."""
    ticket = ask(me, "POST", "tickets")["ticket"]
    with connect(f"{API.replace('http', 'ws', 1)}/ws/{agent_id}?ticket={ticket}", proxy=None) as socket:
        for text in socket:
            heard.put(json.loads(text))


def until(heard: "Queue[dict[str, Any]]", event: str, **wanted: Any) -> dict[str, Any]:
    """The next event like this; others are told by the way."""
    while True:
        one = heard.get(timeout=60)
        if one["event"] in {"job", "state", "budget"}:
            print(f"  {one['event']}: {json.dumps(one['data'])[:100]}")
        if one["event"] == event and wanted.items() <= one.get("data", {}).items():
            return one


# registered
agent = ask(me, "POST", "agents", json.loads((HERE / "agent-config.json").read_text()))
print(f"agent {agent['id']} {agent['name']} is {agent['status']}")

# watched
heard: "Queue[dict[str, Any]]" = Queue()
threading.Thread(target=watch, args=(agent["id"], heard), daemon=True).start()
print("watching:", until(heard, "snapshot")["agent"]["name"])

# trained
job = json.loads((HERE / "job-config.json").read_text()) | {"agent_id": agent["id"]}
job["config"] |= {"steps": 40, "step_s": 0.01}
job = ask(me, "POST", "jobs", job)
reward = until(heard, "metrics")["data"]["values"]
print(f"job {job['id']} tells {', '.join(sorted(reward))}")
until(heard, "job", status="completed")

# deployed: whoever approves it has made none of it
deployment = ask(me, "POST", f"agents/{agent['id']}/deployments")
at = f"agents/{agent['id']}/deployments/{deployment['id']}"
ask(boss, "POST", f"{at}/approve")
print(f"deployment {deployment['id']} is {ask(me, 'POST', f'{at}/start')['status']}")

# its budget is hit
budget = ask(me, "GET", f"budgets/agent/{agent['id']}")
spent = (budget["spent_micro"] + budget["held_micro"]) / 1e6
print(f"it has spent {spent:g} of {budget['limit_micro'] / 1e6:g}, and may spend {LEFT:g} more")
ask(me, "PATCH", f"agents/{agent['id']}", {"budget_limit": spent + LEFT})
refused = ""
for number in range(1, MOST_CALLS + 1):
    body = {"prompt": f"Which campaign gets more money? Look at number {number}.", "agent_id": agent["id"]}
    answer = me.post(f"{API}/api/v1/invocations", json=body, timeout=30)
    if not answer.ok:
        refused = f"call {number}: {answer.status_code} {answer.json()['detail']}"
        break
    while ask(me, "GET", f"invocations/{answer.json()['id']}")["state"] in {"queued", "running", "waiting"}:
        time.sleep(0.05)
print(refused or sys.exit("the budget was never hit"))

# it has stopped
until(heard, "state", status="paused")
after = ask(me, "GET", f"agents/{agent['id']}")
print(f"agent {agent['id']} is {after['status']}")
print(f"deployment {deployment['id']} is {ask(me, 'GET', at)['status']}")
