"""The scripts in docker/: passwords as files, a worker that finds its server, one who is told of alerts."""

import hashlib
import importlib.util
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from gaelp_tasks.addresses import check as check_redis
from gaelp_tasks.db.address import check as check_sql
from gaelp_tasks.settings import Settings

DOCKER = Path(__file__).parents[2] / "docker"


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, DOCKER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


beside, receiver = loaded("beside"), loaded("receiver")


def make_secrets(folder, **variables):
    return subprocess.run(
        [DOCKER / "secrets.sh", folder],
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "deep" / "secrets"
    assert make_secrets(folder).returncode == 0
    return folder


# --- passwords ---


def test_the_folder_of_passwords_is_its_owners_alone_and_its_files_are_for_every_container(secrets):
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()} == {0o644}
    assert list(secrets.parent.iterdir()) == [secrets], "nothing is left over"


def test_every_password_is_long_and_no_two_are_the_same(secrets):
    found = [word for file in secrets.iterdir() for word in re.findall(r"[0-9a-f]{48,64}", file.read_text())]
    passwords = {word for word in found if len(word) == 48}
    assert len(passwords) == 12
    digests = {word for word in found if len(word) == 64}
    assert len(digests) == 8
    assert digests <= {hashlib.sha256(word.encode()).hexdigest() for word in passwords}


def test_addresses_are_what_our_settings_take(secrets):
    for name in ("worker", "beat", "producer", "api", "reader", "metrics"):
        url = (secrets / f"{name}_broker_url").read_text().strip()
        check_redis(url)
        assert re.fullmatch(rf"redis://{name}:[0-9a-f]{{48}}@redis:6379/0", url)
    url = (secrets / "database_url").read_text().strip()
    check_sql(url)
    assert (secrets / "postgres_password").read_text().strip() in url


def test_what_signs_and_seals_for_the_api_is_what_our_settings_take(secrets):
    signs = (secrets / "jwt_secret").read_text().strip()
    seals = (secrets / "secret_keys").read_text().strip()
    taken = Settings(jwt_secret=signs, secret_keys=seals)
    assert taken.jwt_secret.get_secret_value() == signs
    assert [key.get_secret_value() for key in taken.secret_keys] == [seals]


def test_what_is_there_is_kept(secrets):
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    done = make_secrets(secrets)
    assert done.returncode == 0
    assert "is kept as it is" in done.stdout
    assert {file.name: file.read_text() for file in secrets.iterdir()} == before


def test_the_rules_of_redis_carry_the_namespace(tmp_path):
    assert make_secrets(tmp_path / "s", GAELP_NAMESPACE="shop:").returncode == 0
    plain = (DOCKER / "redis/users.acl").read_text().splitlines()
    made = (tmp_path / "s/redis_users").read_text().splitlines()
    for before, after in zip(plain, made, strict=True):
        for word, named in zip(before.split(), after.split(), strict=True):
            begin, sign, pattern = word.partition("~" if "~" in word else "&")
            if sign and pattern != "__redis__:invalidate":
                assert begin in {"", "(", "%R", "%W", "(%R", "(%W"}
                assert named == f"{begin}{sign}shop:{pattern}"
            elif not word.startswith("#@"):
                assert named == word


def test_a_namespace_that_would_be_a_pattern_is_refused(tmp_path):
    done = make_secrets(tmp_path / "s", GAELP_NAMESPACE="a*/b")
    assert done.returncode == 2
    assert "GAELP_NAMESPACE" in done.stderr
    assert not list(tmp_path.iterdir())


# --- beside ---


class Net:
    """Names and what they stand for; `p-worker-K` and servers of one service."""

    def __init__(self, *servers, workers=3, me=2):
        self.names = {f"p-worker-{k}": {f"10.0.0.{k}", f"10.1.0.{k}"} for k in range(1, workers + 1)}
        self.names |= {name: {"10.2.0.1"} for name in servers}
        self.me = me

    def lookup(self, name):
        return self.names.get(name, set())

    def mine(self, address):
        return address == f"10.1.0.{self.me}"

    def servers(self, nodes):
        return beside.names("p", nodes, self.lookup)

    def number(self):
        return beside.own_number("p", self.mine, self.lookup)


def test_a_single_model_server_is_found_by_the_name_of_all():
    assert Net("ollama").servers(1) == ["ollama"]


@pytest.mark.parametrize("service", ["ollama", "ollama-gpu", "sim"])
def test_several_model_servers_are_found_by_their_numbers(service):
    there = [f"p-{service}-{k}" for k in (1, 2, 3)]
    assert Net("ollama", *there).servers(3) == there


@pytest.mark.parametrize("nodes", [1, 3])
def test_without_any_model_server_it_says_so(nodes):
    with pytest.raises(LookupError, match="no model server"):
        Net().servers(nodes)


def test_a_worker_knows_its_number_by_its_address():
    assert [Net(me=k).number() for k in (1, 2, 3, 9)] == [1, 2, 3, None]


@pytest.mark.parametrize(
    ("given", "server_memory", "gpu", "told"),
    [
        ("", "8g", False, "8g"),
        ("24GiB", "8g", False, "24GiB"),
        ("24GiB", "8g", True, "24GiB"),
        ("", "", False, ""),
    ],
)
def test_a_worker_is_told_the_memory_of_its_model_server(given, server_memory, gpu, told):
    assert beside.budget(given, server_memory, gpu=gpu) == told


def test_beside_gpus_nobody_guesses_their_memory():
    with pytest.raises(LookupError, match="GAELP_MEMORY_BUDGET is not set"):
        beside.budget("", "8g", gpu=True)


def looks(watch, *holders):
    """What is chosen in looks a second apart, who holds `a` and `b` in each."""
    return [watch.choice({"a": a, "b": b}, float(at)) for at, (a, b) in enumerate(holders)]


def test_the_server_of_our_own_number_is_taken_at_once_when_we_begin():
    assert looks(beside.Watch("me", "b"), ("", "")) == ["b"]


def test_a_server_that_this_very_container_holds_is_kept():
    assert looks(beside.Watch("me", "b"), ("me", "")) == ["a"]


def test_who_finds_none_free_takes_one_that_stays_free_for_a_while():
    free_s = int(beside.FREE_S)
    held = looks(beside.Watch("me", "b"), ("x", "y"), *[("x", "")] * (free_s + 1))
    assert held == [None] * (free_s + 1) + ["b"]


def test_who_has_no_number_of_its_own_leaves_each_server_to_its_worker_first():
    free_s = int(beside.FREE_S)
    assert looks(beside.Watch("me", None), *[("", "")] * (free_s + 1)) == [None] * free_s + ["a"]


def test_a_lease_that_is_renewed_after_all_is_not_taken():
    free_s = int(beside.FREE_S)
    around = [("", "y")] * free_s + [("x", "y")] + [("", "y")] * free_s
    assert looks(beside.Watch("me", None), *around) == [None] * len(around)


def test_after_redis_was_away_the_while_begins_anew():
    watch = beside.Watch("me", None)
    assert watch.choice({"a": ""}, 0.0) is None
    watch.lost()
    assert watch.choice({"a": ""}, 100.0) is None
    assert watch.choice({"a": ""}, 100.0 + beside.FREE_S) == "a"


def test_an_address_of_this_machine_is_told_from_others():
    assert beside.is_mine("127.0.0.1")
    assert not beside.is_mine("192.0.2.1")
    assert beside.addresses("127.0.0.1") == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "said", "code"),
    [
        ({"GAELP_OLLAMA_NODES": "http://gpu:11434", "OLLAMA_MEMORY": "8g"}, "http://gpu:11434 8g\n", 0),
        ({"NODES": "none"}, "beside: GAELP_NODES: none is no number of model servers.\n", 1),
    ],
)
def test_it_becomes_the_command_or_says_why_not(variables, said, code):
    done = subprocess.run(
        ["python3", DOCKER / "beside.py", "sh", "-c", "echo $GAELP_OLLAMA_NODES $GAELP_MEMORY_BUDGET"],
        env={"PATH": os.environ["PATH"]} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout + done.stderr, done.returncode) == (said, code)


# --- receiver ---


def test_an_alert_is_a_line():
    told = {
        "alerts": [
            {
                "status": "firing",
                "labels": {"alertname": "GaelpNoBeat", "severity": "critical"},
                "annotations": {"summary": "No beat leads.", "action": "Start one."},
            }
        ]
    }
    [line] = receiver.lines(told)
    assert json.loads(line) == {
        "alert": "GaelpNoBeat",
        "status": "firing",
        "severity": "critical",
        "summary": "No beat leads.",
        "action": "Start one.",
    }
