"""What is pure of training jobs: moves, bodies, command lines, lines, checkpoints, endings, bills."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from faults.history.probes import PATH
from gaelp_tasks.cancellation import Reason
from gaelp_tasks.errors import PolicyViolated, SettingsError
from gaelp_tasks.models.agent import refused_names
from gaelp_tasks.models.money import CostKind
from gaelp_tasks.models.resources import Resources
from gaelp_tasks.models.tariff import Tariff
from gaelp_tasks.models.training import ENDED, MOVES, Checkpoint, JobState, NewJob, Stream, Wish, may_move
from gaelp_tasks.services import job_runs
from gaelp_tasks.settings import Settings
from gaelp_tasks.training import checkpoints
from gaelp_tasks.training.checkpoints import found, newest, step_of
from gaelp_tasks.training.docker import DockerRunner
from gaelp_tasks.training.endings import decide
from gaelp_tasks.training.executor import Executor
from gaelp_tasks.training.folders import commands
from gaelp_tasks.training.local import LocalRunner
from gaelp_tasks.training.output import LONGEST, MOST_LINES, Output, Splitter, metrics_of
from gaelp_tasks.training.prices import bill, bound_micro
from gaelp_tasks.training.processes import Process
from gaelp_tasks.training.runner import Spec, environment
from support.eventually import eventually

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EXAMPLES = Path(__file__).parents[2] / "examples"


def spec(folder=Path("/job"), **changes):
    given = {
        "job_id": 7,
        "agent_id": 3,
        "run": 2,
        "command": ("train", "--fast"),
        "image": "gcr.io/gaelp/optimizer:v2.0",
        "folder": folder,
        "resume_from": None,
        "hyperparameters": {"learning rate": 0.1, "name": "x"},
        "declared": {"REGION": "eu"},
        "needs": Resources(cpu_milli=1500, memory_bytes=2**30, gpus=1, storage_bytes=2**31),
    }
    return Spec(**given | changes)


# --- states and bodies ---


def test_what_has_ended_moves_no_more_and_everything_else_may_be_cancelled():
    for before, after in product(JobState, JobState):
        assert not (before in ENDED and may_move(before, after))
        assert not may_move(before, before)
    assert all(may_move(state, JobState.CANCELLED) for state in JobState if state not in ENDED)
    assert MOVES.keys() == set(JobState)
    assert not may_move(JobState.PAUSED, JobState.RUNNING), "only by way of the line"


def test_the_seeds_job_is_a_body_as_it_is():
    job = NewJob.model_validate_json((EXAMPLES / "job-config.json").read_text())
    assert (job.priority, job.agent_id) == (8, 1)
    assert NewJob(agent_id=1).priority == 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"priority": 0},
        {"priority": 11},
        {"agent_id": 0},
        {"retries": -1},
        {"timeout_s": 0},
        {"timeout_s": 1e9},
        {"name": ""},
        {"hyperparameters": {"a b": 1, "a_b": 1}},
        {"hyperparameters": {"a": "\0"}},
        {"config": {"a": "x" * 40_000}},
        {"resource_requirements": {"cpu": "-1"}},
        {"command": "rm -rf /"},
        {"environment": {"A": "b"}},
    ],
)
def test_a_bad_body_is_refused(wrong):
    with pytest.raises(ValidationError):
        NewJob.model_validate({"agent_id": 1, **wrong})


# --- environment and command lines ---


def test_hyperparameters_reach_a_job_as_its_environment_and_nothing_of_ours_does(monkeypatch):
    monkeypatch.setenv("GAELP_JWT_SECRET", "s")
    told = environment(spec(resume_from="step-9.json"), Path("/job"))
    assert (told["HYPERPARAM_LEARNING_RATE"], told["HYPERPARAM_NAME"]) == ("0.1", "x")
    assert told["REGION"] == "eu"
    assert told["GAELP_RESUME_FROM"] == "/job/checkpoints/step-9.json"
    assert not {"GAELP_JWT_SECRET", "PATH"} & told.keys()
    assert "GAELP_RESUME_FROM" not in environment(spec(), Path("/job"))


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "LD_PRELOAD",
        "ld_preload",
        "PYTHONPATH",
        "GAELP_X",
        "HYPERPARAM_A",
        "BASH_ENV",
        "GCONV_PATH",
        "OPENSSL_CONF",
        "JAVA_TOOL_OPTIONS",
        "GIT_SSH_COMMAND",
        "HOME",
        "A=B",
        "",
    ],
)
def test_an_agent_cannot_declare_what_would_run_another_program(name):
    assert refused_names({name: "x", "FINE": "y"}) == [name]
    assert environment(spec(declared={name: "x"}), Path("/job")).get(name) != "x"


def test_a_local_job_is_the_settings_command_with_both_files():
    launch = LocalRunner().launch(spec())
    words = ("train", "--fast", "--config", "/job/config.json", "--hyperparams", "/job/hyperparams.json")
    assert launch.argv[-6:] == words
    limits = json.loads(launch.argv[-7])
    assert limits == {"RLIMIT_CORE": 0, "RLIMIT_DATA": 2**30, "RLIMIT_FSIZE": 2**31}
    assert launch.env["PATH"] == "/usr/local/bin:/usr/bin:/bin"


def test_a_container_is_built_from_declared_fields_alone(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///ours")
    images = ("gcr.io/gaelp/*",)
    launch = DockerRunner(images).launch(spec(declared={"DOCKER_HOST": "tcp://evil", "SECRET": "s"}))
    line = " ".join(launch.argv)
    user = os.getuid() or 65534
    for part in (
        f"docker run --rm --init --name gaelp-job-7-2 --user {user}:{user} --read-only",
        "--security-opt no-new-privileges --cap-drop ALL --pids-limit 512",
        "--network none",
        "--cpus 1.5 --memory 1073741824 --memory-swap 1073741824 --gpus 1",
        "--mount type=bind,source=/job,target=/job --workdir /job --env-file /dev/stdin",
        "-- gcr.io/gaelp/optimizer:v2.0 --config /job/config.json --hyperparams /job/hyperparams.json",
    ):
        assert part in line
    assert "privileged " not in line.replace("no-new-privileges", "")
    assert "SECRET" not in line
    assert "SECRET=s\n" in launch.stdin
    assert launch.env["DOCKER_HOST"] == "unix:///ours", "docker itself reads only ours"
    assert launch.on_kill == ("docker", "kill", "gaelp-job-7-2")
    assert launch.before == ("docker", "rm", "--force", "gaelp-job-7-1"), "its worker was killed, it was not"
    with pytest.raises(PolicyViolated, match="IMAGES"):
        DockerRunner(images).launch(spec(image="docker.io/evil"))
    with pytest.raises(PolicyViolated, match="lines"):
        DockerRunner(images).launch(spec(declared={"A": "b\nHOME=/"}))


async def test_the_secrets_of_a_container_are_in_no_file_of_its_folder(tmp_path):
    docker = tmp_path / "docker"
    docker.write_text('#!/bin/sh\nls -A "$(dirname "$0")/job"\ncat /dev/stdin\n')  # opens it by its name
    docker.chmod(0o700)
    job = tmp_path / "job"
    job.mkdir()
    secret = "s" * 100_000
    runner = DockerRunner(("gcr.io/gaelp/*",), program=str(docker))
    launch = runner.launch(spec(job, declared={"SECRET": secret}, run=1))
    lines = []
    process = await Process.start(launch, lambda _, line: lines.append(line))
    assert await process.ended() == 0
    assert [*job.iterdir()] == []
    assert "GAELP_JOB_ID=7" in lines
    assert "environment" not in lines
    assert any(line.startswith("SECRET=sss") for line in lines)
    assert secret not in "".join(launch.argv)


async def test_the_example_tells_how_it_goes_while_it_runs(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text('{"steps": 2, "checkpoint_every": 1, "step_s": 600}')
    (tmp_path / "hyperparams.json").write_text("{}")
    heard = asyncio.Event()
    launch = LocalRunner().launch(spec(tmp_path, command=commands(Settings())["default"], needs=Resources()))
    process = await Process.start(launch, lambda _, line: metrics_of(line) and heard.set())
    try:
        async with asyncio.timeout(30):
            await heard.wait()
    finally:
        await process.kill()
        assert await process.ended() == -signal.SIGKILL


def test_trainers_are_those_of_the_settings_and_the_example_where_none_is_said():
    assert commands(Settings())["default"] == (sys.executable, "-I", "-u", str(EXAMPLES / "train.py"))
    own = commands(Settings(training_commands={"default": "python 'my train.py' -x", "b": "/bin/b"}))
    assert own == {"default": ("python", "my train.py", "-x"), "b": ("/bin/b",)}
    with pytest.raises(SettingsError, match="no command"):
        commands(Settings(training_commands={"a": " "}))


# --- the process' tether ---


def test_a_jobs_process_has_its_limits_and_no_core_dumps():
    told = "import resource as r; print(r.getrlimit(r.RLIMIT_CORE)[0], r.getrlimit(r.RLIMIT_FSIZE)[0])"
    argv = list(LocalRunner().launch(spec(command=(sys.executable, "-S", "-c", told))).argv)
    found = subprocess.run(argv, capture_output=True, text=True, check=True, env={})
    assert found.stdout.split() == ["0", str(2**31)]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own tether")
def test_a_jobs_process_dies_with_its_worker(tmp_path):
    there = tmp_path / "pid"
    sleeps = f"import os,time; open('{there}','w').write(str(os.getpid())); time.sleep(60)"
    program = (
        "import subprocess, sys; from pathlib import Path\n"
        "from gaelp_tasks.training.local import LocalRunner\n"
        "from support.training import plain_spec\n"
        f"argv = LocalRunner().launch(plain_spec((sys.executable, '-S', '-c', {sleeps!r}))).argv\n"
        "subprocess.Popen(argv, start_new_session=True).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], env=os.environ | PATH) as worker:
        try:
            eventually(lambda: there.exists() and there.read_text(), what="the job runs")
        finally:
            worker.kill()
    child = Path("/proc") / there.read_text()
    eventually(
        lambda: not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2],
        what="the job's process ends",
    )


# --- what it prints ---


@given(st.lists(st.binary(max_size=20)), st.integers(1, 7))
def test_lines_are_the_same_however_they_are_cut_into_pieces(parts, size):
    whole = b"\n".join(parts)
    one, other = Splitter(), Splitter()
    lines = [*one.feed(whole), *one.end()]
    pieces = [line for at in range(0, len(whole), size) for line in other.feed(whole[at : at + size])]
    assert [*pieces, *other.end()] == lines
    assert not any("\0" in line for line in lines)


def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_whole():
    splitter = Splitter()
    lines = []
    for _ in range(5):
        lines += splitter.feed(b"x" * LONGEST)
    lines += splitter.feed(b"y\nnext\n")
    assert [len(line) for line in lines] == [LONGEST, 4]
    assert lines[-1] == "next"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('GAELP_METRICS {"loss": 0.5}', {"loss": 0.5}),
        ("GAELP_METRICS [1]", None),
        ('GAELP_METRICS {"loss": NaN}', None),
        ("GAELP_METRICS {", None),
        ('{"loss": 0.5}', None),
    ],
)
def test_metrics_are_a_json_object_behind_their_word(line, told):
    assert metrics_of(line) == told


def test_progress_and_step_are_kept_within_bounds_and_metrics_are_not_for_the_log():
    output = Output(lambda: NOW)
    output.add(Stream.STDOUT, 'GAELP_METRICS {"progress": 1.5, "step": 7}')
    output.add(Stream.STDOUT, 'GAELP_METRICS {"progress": "half", "step": true}')
    output.add(Stream.STDERR, "GAELP_METRICS {}")
    assert (output.progress, output.step) == (1.0, 7)
    assert len(output.metrics()) == 2
    assert [line.text for line in output.lines()] == ["GAELP_METRICS {}"]
    assert (output.lines(), output.metrics()) == ([], [])


def test_of_a_flood_the_newest_lines_are_kept_and_it_says_so():
    output = Output(lambda: NOW)
    for number in range(MOST_LINES + 5):
        output.add(Stream.STDOUT, str(number))
    lines = output.lines()
    assert lines[0].text == "5 lines were left out: too many."
    assert [lines[1].text, lines[-1].text] == ["5", str(MOST_LINES + 4)]
    output.add(Stream.STDOUT, "later")
    output.back(lines[1:])
    again = output.lines()
    assert again[0].text == "1 lines were left out: too many."
    assert [again[1].text, again[-1].text] == ["6", "later"]


# --- checkpoints ---


@pytest.mark.parametrize(
    ("name", "step"),
    [("model-v2-step-120.json", 120), ("last", None), ("7", 7), ("a1.5.pt", 5), ("x" + "9" * 40, 10**18 - 1)],
)
def test_the_step_is_the_last_number_of_the_name(name, step):
    assert step_of(name) == step


def test_only_whole_files_are_checkpoints_and_the_newest_is_that_of_the_last_step(tmp_path):
    for name in ("step-2", "step-10", ".step-11", "step-12.tmp", "step-13.part"):
        (tmp_path / name).write_text("x")
    (tmp_path / "step-20").mkdir()
    (tmp_path / "step-30").symlink_to("/etc/passwd")
    (tmp_path / "step-15").touch()
    there = found(tmp_path)
    assert [one.path for one in there] == ["step-2", "step-10", "step-15"]
    assert newest(there, []).path == "step-10", "an empty one is not whole"
    changed = [Checkpoint("step-10", 999, 10, NOW)]
    assert newest(there, changed).path == "step-2", "it had another size when it was noted"
    assert newest([], changed) is None
    assert found(tmp_path / "nowhere") == []


def test_of_many_files_the_newest_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "MOST", 3)
    for step in range(12):
        (tmp_path / f"step-{step}").write_text("x")
    assert [one.step for one in found(tmp_path)] == [9, 10, 11]


async def test_of_a_flood_of_checkpoints_the_newest_are_told_of_and_the_others_never(tmp_path, monkeypatch):
    told = []

    async def tell(_db, _grip, report, _settings):
        told.append([one.step for one in report.checkpoints])
        return None, 1.0

    monkeypatch.setattr(job_runs, "tell", tell)
    executor = Executor(SimpleNamespace(db=None, settings=None), None, None)
    here = SimpleNamespace(checkpoints=tmp_path)
    for step in range(50):
        (tmp_path / f"step-{step}").write_text("x")
    await executor._beat(None, here)
    (tmp_path / "step-50").write_text("x")
    await executor._beat(None, here)
    assert told == [[*range(30, 50)], [50]]


async def test_a_slow_disk_holds_up_no_invocation_of_the_worker(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(checkpoints, "found", lambda _: looked.append(threading.current_thread()) or [])
    await Executor(None, None, None)._report(tmp_path)
    assert looked
    assert threading.current_thread() not in looked


# --- endings ---


@pytest.mark.parametrize(
    ("code", "stopped", "wish", "state", "spends"),
    [
        (0, None, None, JobState.COMPLETED, True),
        (0, None, Wish.CANCEL, JobState.COMPLETED, True),
        (1, None, None, JobState.QUEUED, True),
        (-9, None, None, JobState.QUEUED, True),
        (None, None, None, JobState.QUEUED, True),
        (0, Reason.PREEMPTION, None, JobState.QUEUED, False),
        (0, Reason.SHUTDOWN, None, JobState.QUEUED, False),
        (0, Reason.USER, Wish.PAUSE, JobState.PAUSED, False),
        (-15, Reason.USER, Wish.CANCEL, JobState.CANCELLED, True),
        (-15, Reason.USER, None, JobState.CANCELLED, True),
        (0, Reason.DEADLINE, None, JobState.FAILED, True),
        (0, Reason.BUDGET, None, JobState.FAILED, True),
    ],
)
def test_what_becomes_of_a_job(code, stopped, wish, state, spends):
    ending = decide(code, stopped, wish, 1, 3, Random(1))
    assert (ending.state, ending.spends) == (state, spends)
    assert ending.gives_back == (stopped is Reason.SHUTDOWN)
    assert may_move(JobState.RUNNING, ending.state)


@given(st.integers(1, 200), st.integers(0, 100))
def test_a_job_is_tried_as_often_as_it_says_and_waits_in_between(attempts, retries):
    ending = decide(1, None, None, attempts, retries, Random(1))
    assert ending.state is (JobState.QUEUED if attempts <= retries else JobState.FAILED)
    assert 0 <= ending.after_s <= 60


# --- bills ---


def test_time_costs_by_cores_and_gpus_and_less_where_it_may_be_interrupted():
    tariff = Tariff(cpu_second_micro=10, gpu_second_micro=500, preemptible_percent=60)
    needs = Resources(cpu_milli=2000, gpus=1)
    lines = bill(tariff, needs, 10.0, preemptible=False)
    assert [(line.kind, line.amount_micro) for line in lines] == [
        (CostKind.TRAINING_TIME, 200),
        (CostKind.GPU_TIME, 5000),
    ]
    cheap = bill(tariff, needs, 10.0, preemptible=True)
    assert sum(line.amount_micro for line in cheap) == 2080
    assert cheap[-1].kind is CostKind.PREEMPTIBLE


@given(st.integers(0, 64_000), st.integers(0, 8), st.floats(0, 3e6), st.floats(0, 3e6), st.booleans())
def test_the_bound_of_a_job_is_never_below_its_bill(cpu_milli, gpus, one, other, preemptible):
    needs, tariff = Resources(cpu_milli=cpu_milli, gpus=gpus), Tariff()
    ran_s, timeout_s = sorted((one, other))
    paid = sum(line.amount_micro for line in bill(tariff, needs, ran_s, preemptible=preemptible))
    assert 0 <= paid <= bound_micro(tariff, needs, timeout_s, preemptible=preemptible)


def test_the_example_goes_on_from_its_checkpoint_and_finds_the_curve(tmp_path):
    (tmp_path / "config.json").write_text('{"steps": 300, "step_s": 0, "checkpoint_every": 100}')
    (tmp_path / "hyper.json").write_text('{"learning_rate": 0.05}')
    arguments = ["--config", str(tmp_path / "config.json"), "--hyperparams", str(tmp_path / "hyper.json")]
    command = [sys.executable, "-I", str(EXAMPLES / "train.py"), *arguments]
    env = {"GAELP_CHECKPOINT_DIR": str(tmp_path)}
    whole = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    env |= {"GAELP_RESUME_FROM": str(tmp_path / "step-000100.json")}
    rest = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert "going on from step 100" in rest
    assert whole.splitlines()[-1] == rest.splitlines()[-1]
    assert whole.splitlines()[-1].startswith(("conversions = 2.9", "conversions = 3.0", "conversions = 3.1"))
    assert len(list(filter(None, map(metrics_of, whole.splitlines())))) == 3
