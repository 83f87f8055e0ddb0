"""Whether the cluster has done what it should, judged by what was read of it. Each gives sentences of what is
wrong, none where all is well. Pure.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any


def answers(asked: Mapping[str, str], told: Sequence[Mapping[str, Any]], tokens: int) -> list[str]:
    """Each question has one answer of its own: whole, in its tier. `asked` has the tier of each question."""
    wrong = []
    by_question: dict[str, list[Mapping[str, Any]]] = {}
    for answer in told:
        by_question.setdefault(answer["question"], []).append(answer)
    for question, tier in asked.items():
        found = by_question.pop(question, [])
        if len(found) != 1:
            wrong.append(f"{question!r} has {len(found)} answers.")
        elif error := found[0].get("error"):
            wrong.append(f"{question!r} failed: {error}")
        elif question not in found[0]["text"]:
            wrong.append(f"{question!r} has the answer to something else.")
        elif found[0]["tier"] != tier:
            wrong.append(f"{question!r} ran in tier {found[0]['tier']}, not {tier}.")
        elif len(found[0]["text"].split()) != tokens:
            wrong.append(f"{question!r} has {len(found[0]['text'].split())} of {tokens} tokens.")
    wrong += [f"{question!r} was answered and never asked." for question in by_question]
    return wrong


def containers(listed: Iterable[Mapping[str, Any]], wanted: Mapping[str, int]) -> list[str]:
    """Every service has as many containers as wanted, all running, and healthy where they say so."""
    there: dict[str, int] = {}
    wrong = []
    for one in listed:
        there[one["Service"]] = there.get(one["Service"], 0) + 1
        if one["State"] != "running":
            wrong.append(f"{one['Name']} is {one['State']}.")
        elif one.get("Health") not in {"healthy", "", None}:
            wrong.append(f"{one['Name']} is {one['Health']}.")
    wrong += [
        f"{service} has {there.get(service, 0)} of {count} containers."
        for service, count in wanted.items()
        if there.get(service, 0) != count
    ]
    return wrong


def nodes(status: Mapping[str, Any], servers: Collection[str]) -> list[str]:
    """Each model server is announced, by one worker, and well. `servers` are their addresses."""
    told: dict[str, list[Mapping[str, Any]]] = {}
    for node in status["nodes"]:
        told.setdefault(node["url"], []).append(node)
    wrong = [
        f"{url} is announced by {len(told.get(url, []))} workers."
        for url in servers
        if len(told.get(url, [])) != 1
    ]
    wrong += [f"{url} is announced and unknown." for url in told if url not in servers]
    wrong += [
        f"{node['url']} is unwell: {node['trouble']}"
        for those in told.values()
        for node in those
        if not node["healthy"]
    ]
    return wrong


def targets(answer: Mapping[str, Any], wanted: Mapping[str, int]) -> list[str]:
    """Prometheus has as many targets of each job as wanted, and reaches all."""
    active = answer["data"]["activeTargets"]
    wrong = [
        f"{one['scrapeUrl']} is {one['health']}: {one['lastError']}"
        for one in active
        if one["health"] != "up"
    ]
    for job, count in wanted.items():
        there = sum(one["labels"]["job"] == job for one in active)
        if there != count:
            wrong.append(f"Prometheus has {there} of {count} targets of {job}.")
    return wrong


def boards(
    found: Iterable[Mapping[str, Any]], sources: Iterable[Mapping[str, Any]], wanted: Collection[str]
) -> list[str]:
    """Grafana has every dashboard of ours, by its uid, and the source that they ask."""
    there = {one["uid"] for one in found}
    wrong = [f"Grafana lacks the dashboard {uid}." for uid in wanted if uid not in there]
    if not any(one["uid"] == "gaelp-prometheus" for one in sources):
        wrong.append("Grafana lacks its source of figures.")
    return wrong


def doors(codes: Mapping[str, tuple[int, int]]) -> list[str]:
    """A page refuses who has no login and lets in who has: by page, the status without and with it."""
    wrong = [
        f"{page} answers {without} to who has no login."
        for page, (without, _) in codes.items()
        if without != 401
    ]
    return wrong + [
        f"{page} answers {status} to its login." for page, (_, status) in codes.items() if status != 200
    ]


def rules(answer: Mapping[str, Any], wanted: Collection[str]) -> list[str]:
    """Prometheus has every alert of ours and could evaluate it."""
    found = {rule["name"]: rule["health"] for group in answer["data"]["groups"] for rule in group["rules"]}
    wrong = [f"Prometheus lacks the alert {name}." for name in wanted if name not in found]
    return wrong + [f"The alert {name} is {health}." for name, health in found.items() if health == "err"]


def figures(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Prometheus has figures of every name."""
    return [f"Prometheus has no {name}." for name, answer in answers.items() if not answer["data"]["result"]]


def seen(workers: Mapping[str, bool], wanted: int) -> list[str]:
    """Flower sees as many workers at work as wanted."""
    there = sum(workers.values())
    return [] if there == wanted else [f"Flower sees {there} of {wanted} workers."]
