"""The cluster's run for real, as far as it can be looked at without an engine: its words and its judge."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cluster import judge, standins, story
from cluster.engine import Engine, last_words, objects
from gaelp_tasks.demo.model_server.scripted import words

ROOT = Path(__file__).parents[2]
SERVICES = YAML(typ="safe").load(ROOT / "compose.yaml")["services"]
ENGINE = Engine("p", {"A": "b"})
ASKED = {"batch question 0001": "batch", "batch question 0002": "batch"}


def answer(question, **other):
    return {"question": question, "text": "".join(words(question, 9)[0]), "tier": "batch"} | other


def node(url, **other):
    return {"url": url, "healthy": True, "trouble": ""} | other


def listed(name, **other):
    return {"Name": name, "Service": name[:-2], "State": "running", "Health": "healthy"} | other


def target(job, **other):
    return {"scrapeUrl": "http://x", "health": "up", "lastError": "", "labels": {"job": job}} | other


def test_without_an_engine_it_says_so_in_one_sentence(tmp_path):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "cluster"],
        env={"PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stdout == "The cluster was not tried: there is no Docker engine here (`docker info` says why).\n"
    )
    assert not done.stderr


def test_the_words_of_compose_name_the_project_the_file_and_the_profile():
    said = ENGINE.compose("up", "-d")
    assert said == [
        "docker",
        "compose",
        "-p",
        "p",
        "-f",
        str(ROOT / "compose.yaml"),
        "--profile",
        "sim",
        "up",
        "-d",
    ]
    assert (ENGINE.container("sim", 3), ENGINE.network("nodes")) == ("p-sim-3", "p_nodes")


def test_every_service_of_the_profile_is_waited_for():
    there = {name for name, one in SERVICES.items() if one.get("profiles", ["sim"]) == ["sim"]}
    assert set(story.WANTED) == there


def test_containers_are_read_in_both_forms_of_compose():
    rows = [{"Name": "a"}, {"Name": "b"}]
    assert objects(json.dumps(rows)) == rows == objects("\n".join(map(json.dumps, rows)) + "\n")
    assert objects("") == []


def test_the_end_of_what_a_command_said_is_told():
    assert last_words("one\n\ntwo\n") == "one / two"
    assert last_words("") == "it said nothing"


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ([answer(question) for question in ASKED], []),
        ([answer("batch question 0001")], ["'batch question 0002' has 0 answers."]),
        ([*map(answer, ASKED), answer("batch question 0002")], ["'batch question 0002' has 2 answers."]),
        (
            [
                answer("batch question 0001"),
                answer("batch question 0002", text="You said: batch question 0001"),
            ],
            ["'batch question 0002' has the answer to something else."],
        ),
        (
            [answer("batch question 0001"), {"question": "batch question 0002", "error": "NodeFailed: x"}],
            ["'batch question 0002' failed: NodeFailed: x"],
        ),
        (
            [answer("batch question 0001"), answer("batch question 0002", tier="background")],
            ["'batch question 0002' ran in tier background, not batch."],
        ),
        (
            [
                answer("batch question 0001"),
                answer("batch question 0002", text="You said: batch question 0002"),
            ],
            ["'batch question 0002' has 5 of 9 tokens."],
        ),
        ([*map(answer, ASKED), answer("other")], ["'other' was answered and never asked."]),
    ],
)
def test_every_question_has_its_own_whole_answer_once(told, wrong):
    assert judge.answers(ASKED, told, 9) == wrong


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ([listed("beat-1"), listed("beat-2")], []),
        ([listed("beat-1"), listed("beat-2", Health="")], []),
        ([listed("beat-1")], ["beat has 1 of 2 containers."]),
        ([listed("beat-1"), listed("beat-2", State="exited")], ["beat-2 is exited."]),
        ([listed("beat-1"), listed("beat-2", Health="unhealthy")], ["beat-2 is unhealthy."]),
    ],
)
def test_every_container_runs_and_is_well(there, wrong):
    assert judge.containers(there, {"beat": 2}) == wrong


@pytest.mark.parametrize(
    ("told", "wrong"),
    [
        ([node("a"), node("b")], []),
        ([node("a")], ["b is announced by 0 workers."]),
        ([node("a"), node("a"), node("b")], ["a is announced by 2 workers."]),
        ([node("a"), node("b"), node("c")], ["c is announced and unknown."]),
        ([node("a"), node("b", healthy=False, trouble="It hangs.")], ["b is unwell: It hangs."]),
    ],
)
def test_every_model_server_has_a_worker_of_its_own(told, wrong):
    assert judge.nodes({"nodes": told}, ["a", "b"]) == wrong


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ([target("w"), target("w")], []),
        ([target("w")], ["Prometheus has 1 of 2 targets of w."]),
        ([target("w"), target("w", health="down", lastError="refused")], ["http://x is down: refused"]),
    ],
)
def test_prometheus_reaches_everybody(there, wrong):
    assert judge.targets({"data": {"activeTargets": there}}, {"w": 2}) == wrong


def test_prometheus_has_every_alert_and_can_evaluate_it():
    answer = {
        "data": {"groups": [{"rules": [{"name": "A", "health": "ok"}, {"name": "B", "health": "err"}]}]}
    }
    assert judge.rules(answer, ["A"]) == ["The alert B is err."]
    assert judge.rules(answer, ["C"]) == ["Prometheus lacks the alert C.", "The alert B is err."]


def test_prometheus_has_the_figures():
    some, none = {"data": {"result": [{}]}}, {"data": {"result": []}}
    assert judge.figures({"a": some, "b": none}) == ["Prometheus has no b."]


def test_flower_sees_the_workers_that_are_at_work():
    assert judge.seen({"a": True, "b": True, "old": False}, 2) == []
    assert judge.seen({"a": True}, 2) == ["Flower sees 1 of 2 workers."]


def test_grafana_has_its_boards_and_its_source():
    source = {"uid": "gaelp-prometheus"}
    assert judge.boards([{"uid": "a"}], [source], ["a"]) == []
    assert judge.boards([], [source], ["a"]) == ["Grafana lacks the dashboard a."]
    assert judge.boards([{"uid": "a"}], [], ["a"]) == ["Grafana lacks its source of figures."]


def test_a_page_is_open_to_its_login_only():
    assert judge.doors({"Flower": (401, 200)}) == []
    assert judge.doors({"Flower": (200, 200)}) == ["Flower answers 200 to who has no login."]
    assert judge.doors({"Flower": (401, 403)}) == ["Flower answers 403 to its login."]


def test_there_is_a_stand_in_for_every_public_image():
    config = json.dumps({"services": {name: SERVICES[name] for name in story.WANTED}}, indent=2)
    images = standins.public_images(config, (ROOT / "docker/Dockerfile").read_text())
    assert {image.rpartition(":")[0] for image in images} == set(standins.STANDINS)
    for image in images:
        made = standins.recipe(image, certificates=True, pip=[("PIP_INDEX_URL", "x")])
        assert made.startswith(f"FROM {standins.BASE}\nCOPY ca-certificates.crt ")
        assert "ENV PIP_INDEX_URL=x\n" in made
        for copied in (line.split()[1] for line in made.splitlines() if line.startswith("COPY")):
            assert copied == "ca-certificates.crt" or (standins.FILES / copied).is_file()


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ("deb http://here/debian bookworm main\n", "http://here/debian"),
        ("# x\ndeb [signed-by=/a] https://here/debian bookworm main\n", "https://here/debian"),
        ("Types: deb\nURIs: http://here/debian\nSuites: bookworm x\n", "http://here/debian"),
        ("deb http://other/x nodistro main\ndeb http://here/debian bookworm main\n", "http://here/debian"),
        (
            "URIs: http://other/x\nSuites: nodistro\n\nURIs: http://here/debian\nSuites: bookworm\n",
            "http://here/debian",
        ),
        ("URIs: http://other/x\nSuites: bookworm-security\n", ""),
        ("# deb http://here x\n", ""),
    ],
)
def test_the_stand_ins_come_from_where_apt_looks(sources, found):
    assert standins.mirror(sources) == found
