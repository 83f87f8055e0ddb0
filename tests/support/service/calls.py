"""What a service asks of our worker, Celery feature by feature; prints what came of it as JSON.

Run by an interpreter that has celery and redis and nothing of ours: `python calls.py GROUP`.
"""

import importlib.util
import json
import sys
import time
from datetime import UTC, datetime, timedelta

from celery import chain, chord, chunks, group, signature
from celery.canvas import xmap, xstarmap
from service import app, ask, blame, collect, note

assert importlib.util.find_spec("gaelp_tasks") is None
SHORT = {"num_predict": 5}
ENDLESS = {"num_predict": 1_000_000}
WAIT_S = 30
LOOKING = {"limit": 1, "timeout": WAIT_S}  #: one second, which Celery waits, is short on a busy machine
ASKING = {"reply": True, **LOOKING}


def agent(*args, queue="interactive", short=SHORT, **kwargs):
    """A signature by name."""
    return signature(
        "gaelp.invoke_agent", args=args, kwargs={"options": short} | kwargs, queue=queue, app=app
    )


def endless(**kwargs):
    return agent("Never stop", short=ENDLESS, **kwargs)


def outcome(result, within_s=WAIT_S):
    """What `get` gives: the value, or the error's name and sentence."""
    try:
        return {"value": result.get(timeout=within_s)}
    except Exception as error:  # noqa: BLE001  the error is what is looked at
        return {"error": type(error).__name__, "says": str(error)}


def until(look, within_s=WAIT_S):
    deadline = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline, look
        time.sleep(0.01)
    return found


def begun(result):
    """Wait until a run has written some text."""
    until(lambda: app.backend.client.xlen(f"gaelp:stream:{result.id}") > 3)
    return result


def options():
    """Options of a single call."""
    agent("warm up").apply_async().get(timeout=WAIT_S)  # a limit shall not pass while the model is loaded
    now = datetime.now(UTC)
    made = {
        "countdown": agent("a").apply_async(countdown=0.3),
        "eta": agent("b").apply_async(eta=now + timedelta(seconds=0.3)),
        "expired": agent("c").apply_async(
            eta=now + timedelta(seconds=0.5), expires=now + timedelta(seconds=0.2)
        ),
        "in time": agent("c").apply_async(expires=60),
        "soft limit": endless().apply_async(soft_time_limit=1.0),
        "hard limit": endless().apply_async(time_limit=0.4),
        "own id": agent("d").apply_async(task_id="an-id-of-my-own"),
        "retry policy": agent("e").apply_async(retry=True, retry_policy={"max_retries": 2}),
        "serializer": agent("f").apply_async(serializer="json"),
        "headers": agent("g").apply_async(headers={"trace": "t"}),
        "by name": app.send_task("gaelp.invoke_agent", ["h"], {"options": SHORT}, queue="interactive"),
        "embed": app.send_task("gaelp.embed", [["a", "b"]], queue="batch"),
    }
    told = {name: outcome(result) for name, result in made.items()}
    ignored = agent("i").apply_async(ignore_result=True)
    until(
        lambda: b"end" in repr(app.backend.client.xrevrange(f"gaelp:stream:{ignored.id}", count=1)).encode()
    )
    stored = [app.backend.client.exists(f"celery-task-meta-{ignored.id}")]
    begun(agent("j").apply_async())  # a result of a later one is stored, so the ignored one's would be too
    stored.append(app.backend.client.exists(f"celery-task-meta-{ignored.id}"))
    return told | {"ignored is stored": stored}


def canvas():
    """Signatures put together."""
    linked = agent("a").apply_async(link=[note.s(), agent()])
    app.backend.client.delete("service:blamed")
    failing = agent("b", model="no-such-model").apply_async(link_error=blame.s(), link=note.s())
    partial = agent(agent="coding")
    immutable = chain(note.s("x"), agent("Only this").set(immutable=True)).apply_async()
    many = group(agent(str(number)) for number in range(3)).apply_async()
    made = {
        "chain": chain(agent("c"), agent(agent="coding"), agent(agent="reasoning")).apply_async(),
        "chain through a foreign task": chain(agent("c"), note.s()).apply_async(),
        "chain into vectors": (agent("c") | signature("gaelp.embed", queue="batch", app=app)).apply_async(),
        "partial": partial.clone(args=("d",)).apply_async(),
        "immutable": immutable,
        "chord, our body": chord([agent("e"), agent("f")], agent(agent="research")).apply_async(),
        "chord, foreign body": chord([agent("e"), agent("f")], collect.s()).apply_async(),
        "chord into vectors": chord(
            [agent("e"), agent("f")], signature("gaelp.embed", queue="batch", app=app)
        ).apply_async(),
        "chord of a group in a group": chord(
            [group(agent("e"), agent("f")), agent("g")], note.s()
        ).apply_async(),
        "replaced": ask.delay("h"),
        "replaced in a chain": chain(ask.s("h"), note.s()).apply_async(),
        "map": xmap(agent(), ["a", "b"], app=app, queue="batch").apply_async(queue="batch"),
        "starmap": xstarmap(agent(), [["a"], ["b"]], app=app).apply_async(queue="batch"),
        "chunks": chunks(agent(), [["a"], ["b"]], 2, app=app).apply_async(queue="batch"),
    }
    told = {name: outcome(result) for name, result in made.items()}
    told["linked"] = outcome(linked)
    told["links"] = [outcome(child) for child in linked.children]
    told["group"] = outcome(many)
    told["failing"] = outcome(failing)
    told["blamed"] = (
        until(lambda: app.backend.client.lrange("service:blamed", 0, -1))[0].decode() == failing.id
    )
    return told


def cut():
    """What follows a run that is cut."""
    short_lived = {"deadline_s": 0.3}
    first = endless(**short_lived)
    app.backend.client.delete("service:blamed")
    linked = endless(deadline_s=1.0).apply_async(link=note.s(task_id="linked"), link_error=blame.s())
    chained = chain(first, agent(agent="coding"), note.s()).apply_async()
    member = endless(**short_lived).set(task_id="the-cut-one")
    body = chord([agent("a"), member], collect.s().on_error(blame.s())).apply_async()
    told = {
        "chain": outcome(chained),
        "middle": outcome(chained.parent),
        "first": outcome(chained.parent.parent),
        "chord": outcome(body),
        "member": outcome(app.AsyncResult("the-cut-one")),
        "chord of chains": outcome(chord([agent("a"), chain(first, agent())], collect.s()).apply_async()),
        "chord of groups": outcome(chord([group(agent("a"), first), agent("b")], collect.s()).apply_async()),
        "chord of chained groups": outcome(
            chord(
                [chain(agent("a"), group(agent(), first.clone().set(immutable=True))), agent("b")], note.s()
            ).apply_async()
        ),
        "chord of two cut": outcome(chord([first, first.clone()], agent()).apply_async()),
        "linked": outcome(linked),
    }
    blamed = until(lambda: app.backend.client.lrange("service:blamed", 0, -1))
    told["blamed"] = [name.decode() for name in blamed] == [body.id]
    told["the linked one ran"] = app.AsyncResult("linked").state != "PENDING"
    return told


def parked(result):
    """Whether the message waits in Redis for its time."""
    return app.backend.client.zscore("gaelp:parked", result.id) is not None


def revoked():
    """Every way to revoke, at every place."""
    control = app.control
    running = [begun(endless().apply_async()) for _ in range(3)]
    control.revoke(running[0].id)
    control.revoke(running[1].id, terminate=True, signal="SIGKILL")
    running[2].revoke()
    told = {"running": [outcome(result) for result in running]}

    several = [begun(endless().apply_async()) for _ in range(2)]
    control.revoke([result.id for result in several])
    told["several"] = [outcome(result) for result in several]

    grouped = group(endless() for _ in range(2)).apply_async()
    for result in grouped:
        begun(result)
    grouped.revoke(terminate=True)
    told["grouped"] = outcome(grouped)

    later = agent("x").apply_async(countdown=3600)
    until(lambda: parked(later))
    control.terminate(later.id)
    told["waiting for its time"] = outcome(later)
    stamped = begun(endless().apply_async(stamped_headers=["job"], job="one"))
    control.revoke_by_stamped_headers({"job": ["one"]})
    told["stamped"] = outcome(stamped)
    told["stamped later"] = outcome(agent("x").apply_async(stamped_headers=["job"], job="one"))

    control.pool_shrink(4, **ASKING)
    waiting = chain(agent("q"), note.s()).apply_async()
    control.revoke(waiting.parent.id, **ASKING)
    queued = [agent("q").apply_async() for _ in range(4)]
    control.revoke([result.id for result in queued], **ASKING)
    told["not yet answered"] = [result.state for result in queued]
    control.pool_grow(4, **ASKING)
    told["queued"] = [outcome(result) for result in queued]
    told["chained to a queued one"] = outcome(waiting)
    maintenance = app.send_task("gaelp.maintenance.expire_abandoned_streams", queue="system", countdown=3600)
    until(lambda: parked(maintenance))
    control.revoke(maintenance.id, **ASKING)
    told["maintenance"] = outcome(maintenance)
    told["revoked"] = sorted(later.id in ids for ids in control.inspect(**LOOKING).revoked().values())
    done = agent("x").apply_async()
    done.get(timeout=WAIT_S)
    control.revoke(done.id, **ASKING)
    told["done before"] = outcome(app.AsyncResult(done.id))
    return told


def rules():
    """Queues, tiers, priorities, and what is refused."""

    def send(queue, **kwargs):
        return agent("x", queue=queue, **kwargs).apply_async()

    tiers = {
        "queue alone": send("background"),
        "both": send("background", tier="interactive"),
        "both, the other way": send("interactive", tier="batch"),
    }
    bad = {
        "argument": send("interactive", colour="red"),
        "value": send("batch", priority=99),
        "tier": send("batch", tier="vip"),
        "agent": send("batch", agent="nobody"),
        "nothing": app.send_task("gaelp.invoke_agent", queue="batch"),
        "too many": app.send_task("gaelp.invoke_agent", ["a", "b"], queue="batch"),
        "texts": app.send_task("gaelp.embed", [[]], queue="batch"),
    }
    sub_keys = [agent(str(n), queue="batch").apply_async(priority=n) for n in range(10)]
    told = {"tiers": {name: result.get(timeout=WAIT_S)["tier"] for name, result in tiers.items()}}
    told["bad"] = {name: outcome(result) for name, result in bad.items()}
    ids = [result.id for result in bad.values()]
    told["retried"] = list((app.control.inspect(**LOOKING).query_task(*ids) or {"": {}}).popitem()[1])
    told["sub-keys"] = [result.get(timeout=WAIT_S)["tier"] for result in sub_keys]
    return told


def answer(said):
    """What the first worker answered."""
    return next(iter(said.values())) if isinstance(said, dict) else next(iter(said[0].values()))


def remote():
    """Looking at our worker and steering it."""
    control = app.control
    look = control.inspect(**LOOKING)
    hidden = "xyzzy"
    running = begun(agent(hidden, short=ENDLESS).apply_async())
    later = agent(hidden).apply_async(countdown=3600)
    until(lambda: parked(later))
    told = {
        "ping": answer(look.ping()),
        "active": [task["id"] == running.id for task in answer(look.active())],
        "reserved": answer(look.reserved()),
        "scheduled": answer(look.scheduled()),
        "query": [state for state, _ in answer(look.query_task(running.id, later.id)).values()],
        "registered": answer(look.registered()),
        "queues": sorted(queue["name"] for queue in answer(look.active_queues())),
        "hidden": [
            hidden in repr(seen)
            for seen in (look.active(), look.scheduled(), look.query_task(running.id, later.id), look.stats())
        ],
        "pid": {answer(look.stats())["pid"]} == {task["worker_pid"] for task in answer(look.active())},
    }
    control.revoke([running.id, later.id])

    def slots():
        return answer(look.stats())["pool"]["max-concurrency"]

    told["slots"] = [slots()]
    for change, by in ((control.pool_grow, 3), (control.pool_shrink, 5), (control.pool_grow, 2)):
        told["slots"].append([answer(change(by, **ASKING)), slots()])

    told["time limit"] = answer(control.time_limit("gaelp.invoke_agent", soft=0.3, **ASKING))
    told["under the limit"] = outcome(endless().apply_async())
    control.time_limit("gaelp.invoke_agent", **ASKING)
    told["limits that are none"] = outcome(agent("x").apply_async())

    told["rate limit"] = answer(control.rate_limit("gaelp.invoke_agent", "4/s", **ASKING))
    began = time.monotonic()
    told["at the rate"] = [outcome(result) for result in [agent("x").apply_async() for _ in range(5)]]
    told["took a second"] = time.monotonic() - began >= 1.0
    control.rate_limit("gaelp.invoke_agent", 0, **ASKING)

    control.cancel_consumer("background", **ASKING)
    until(lambda: "background" not in [queue["name"] for queue in answer(look.active_queues())])
    waiting = agent("x", queue="background").apply_async()
    agent("x", queue="batch").apply_async().get(timeout=WAIT_S)
    told["not consumed"] = [waiting.state, app.backend.client.llen("background")]
    control.add_consumer("background", **ASKING)
    told["consumed again"] = outcome(waiting)

    told["refused"] = [
        answer(control.autoscale(4, 1, **ASKING)),
        answer(control.pool_restart(**ASKING)),
        answer(control.rate_limit("gaelp.invoke_agent", "often", **ASKING)),
        answer(control.time_limit("no.such.task", soft=1, **ASKING)),
    ]
    return told


def shutdown():
    """Stop one worker."""
    running = begun(agent("x", short={"num_predict": 300}, queue=sys.argv[2]).apply_async())
    app.control.shutdown(destination=[f"{sys.argv[2]}@test"])
    return {"running": outcome(running)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[sys.argv[1]]()))
