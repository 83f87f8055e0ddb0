"""Which memory bounds a node: the pool, the smallest of its probes, and what happens when one fails."""

import threading
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import Resident
from gaelp_tasks.settings import Settings
from gaelp_workers import memory
from gaelp_workers.memory import (
    ANSWERS_S,
    LOOK_S,
    SEEK_S,
    STANDS_S,
    Aside,
    Facts,
    Look,
    NodeMemory,
    budget_left,
    memory_of,
    probes_for,
    smallest,
)
from support.eventually import eventually
from support.fakes import Clock

RAM = {"host", "cgroup v2", "cgroup v1", "budget"}
ON_CPU = (Resident(name="m", size_bytes=6),)
ON_GPU = (Resident(name="m", size_bytes=6, vram_bytes=6),)
SIZES = st.integers(0, 2**50)
SNAPSHOTS = st.builds(
    MemorySnapshot, total_bytes=SIZES, free_bytes=SIZES, source=st.sampled_from(sorted(RAM | {"gpu"}))
)
RESIDENTS = st.lists(st.builds(Resident, name=st.just("m"), size_bytes=SIZES, vram_bytes=SIZES), max_size=4)


def told(free, source="host", total=100):
    return MemorySnapshot(total_bytes=total, free_bytes=free, source=source)


class Said:
    """A probe that says, or raises, what a test has put there."""

    def __init__(self, source, free=None):
        self.source, self.free, self.asked = source, free, 0

    def __call__(self):
        self.asked += 1
        if isinstance(self.free, Exception):
            raise self.free
        return None if self.free is None else told(self.free, self.source)


class Node:
    """A node's memory with scripted probes."""

    def __init__(self, *, host=90, v2=None, v1=None, gpu=None, **how):
        frees = {"host": host, "cgroup v2": v2, "cgroup v1": v1, "gpu": gpu}
        self.probes = {name: Said(name, free) for name, free in frees.items()}
        self.tick = Clock(50.0)
        self.memory = NodeMemory(self.probes, tick=self.tick, **({"unified": False} | how))

    def read(self, loaded=()):
        said = self.memory(loaded).memory
        return said.source, said.free_bytes


# --- the smallest -------------------------------------------------------------------------------------


@given(st.lists(SNAPSHOTS, min_size=1))
def test_the_smallest_is_one_of_them_and_none_has_less(snapshots):
    found = smallest(snapshots)
    assert found in snapshots
    assert all(found.free_bytes <= each.free_bytes for each in snapshots)


@given(st.lists(SNAPSHOTS, min_size=1), SNAPSHOTS)
def test_one_more_probe_never_makes_it_more(snapshots, another):
    assert smallest([*snapshots, another]).free_bytes <= smallest(snapshots).free_bytes


@given(st.permutations([told(3, "a"), told(5, "b"), told(9, "c")]))
def test_the_order_of_probes_does_not_matter(snapshots):
    assert smallest(snapshots) == told(3, "a")


def test_of_none_there_is_no_smallest():
    assert smallest([]) is None


@given(frees=st.fixed_dictionaries({name: st.none() | st.integers(0, 100) for name in ("host", "v2", "v1")}))
def test_what_is_announced_is_the_least_that_any_probe_of_ram_told(frees):
    counted = [free for free in frees.values() if free is not None]
    source, free = Node(**frees).read()
    assert (source, free) == ("unknown", 0) if not counted else free == min(counted)


def test_the_source_and_the_total_are_those_of_the_smallest():
    node = Node(host=90, v2=20)
    node.probes["host"] = node.memory._probes["host"] = lambda: told(90, total=1000)
    assert node.memory(()).memory == told(20, "cgroup v2", total=100)


# --- the pool -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (Facts(here=True, budget=False, gpus=False, on_gpu=None, unified=False), RAM),
        (Facts(here=True, budget=True, gpus=False, on_gpu=False, unified=False), RAM),
        (Facts(here=True, budget=False, gpus=False, on_gpu=True, unified=False), RAM),
        (Facts(here=True, budget=True, gpus=False, on_gpu=True, unified=False), {"budget"}),
        (Facts(here=True, budget=True, gpus=False, on_gpu=True, unified=True), RAM),
        (Facts(here=True, budget=True, gpus=True, on_gpu=True, unified=False), {"gpu", "budget"}),
        (Facts(here=True, budget=True, gpus=True, on_gpu=None, unified=False), {"gpu", "budget"}),
        (Facts(here=True, budget=True, gpus=True, on_gpu=False, unified=False), RAM),
        (Facts(here=False, budget=True, gpus=True, on_gpu=True, unified=False), {"budget"}),
        (Facts(here=False, budget=False, gpus=True, on_gpu=True, unified=False), {"host"}),
    ],
)
def test_the_pool_of_a_node(facts, names):
    assert set(probes_for("auto", facts)) == names


@given(
    facts=st.builds(
        Facts, st.booleans(), st.booleans(), st.booleans(), st.none() | st.booleans(), st.booleans()
    )
)
def test_ram_and_vram_are_never_compared(facts):
    names = set(probes_for("auto", facts))
    assert names
    assert not ("gpu" in names and names & {"host", "cgroup v2", "cgroup v1"})


@pytest.mark.parametrize(
    ("source", "expected"),
    [("host", ("host", 90)), ("cgroup", ("cgroup v2", 20)), ("gpu", ("gpu", 70)), ("budget", ("budget", 44))],
)
def test_a_named_source_is_the_only_one(source, expected):
    node = Node(host=90, v2=20, v1=30, gpu=70, source=source, budget_bytes=50)
    assert node.read(ON_CPU) == expected


def test_a_named_source_that_tells_nothing_leaves_the_hosts_which_is_said_once(caplog):
    node = Node(source="gpu")
    assert [node.read(), node.read()] == [("host", 90)] * 2
    assert caplog.text.count("No gpu memory is told here; the host's is announced.") == 1


def test_with_gpus_vram_bounds_the_node_from_the_start():
    assert Node(host=10, v2=5, gpu=70).read() == ("gpu", 70)


def test_models_that_are_on_the_cpu_all_the_same_are_bounded_by_ram():
    node = Node(host=90, gpu=70)
    assert node.read(ON_CPU) == ("host", 90)
    assert node.read(ON_GPU) == ("gpu", 70)


def test_the_pool_does_not_jump_when_the_last_model_is_unloaded():
    node = Node(host=90, gpu=70)
    assert [node.read(ON_CPU), node.read(), node.read(None)] == [("host", 90)] * 3
    assert [node.read(ON_GPU), node.read()] == [("gpu", 70)] * 2


def test_a_server_that_tells_no_sizes_decides_nothing():
    assert Node(gpu=70).read((Resident(name="m"),)) == ("gpu", 70)


def test_an_amd_gpu_is_known_by_its_budget_once_models_lie_there():
    node = Node(host=10, budget_bytes=50)
    assert node.read() == ("host", 10)
    assert node.read(ON_GPU) == ("budget", 44)
    assert node.read() == ("budget", 50)


def test_where_gpu_and_cpu_share_memory_ram_counts_beside_the_budget():
    node = Node(host=10, budget_bytes=50, unified=True)
    assert node.read(ON_GPU) == ("host", 10)


def test_of_a_node_elsewhere_only_the_budget_counts():
    node = Node(host=1, v2=1, gpu=1, budget_bytes=50, here=False)
    assert node.read(ON_GPU) == ("budget", 44)
    assert node.probes["gpu"].asked == 0


# --- the budget ---------------------------------------------------------------------------------------


@given(budget=SIZES, loaded=RESIDENTS, unified=st.booleans())
def test_a_budget_is_never_exceeded_nor_negative(budget, loaded, unified):
    left = budget_left(budget, loaded, unified=unified)
    if not budget:
        assert left is None
        return
    assert left.total_bytes == budget
    on_gpu = any(model.vram_bytes for model in loaded) and not unified
    used = sum(model.vram_bytes if on_gpu else model.size_bytes for model in loaded)
    assert left.free_bytes == max(0, budget - used)


def test_the_part_of_a_model_that_spilled_into_ram_is_not_taken_from_a_budget_of_vram():
    spilled = Resident(name="m", size_bytes=30, vram_bytes=10)
    beside = Resident(name="n", size_bytes=5)
    assert budget_left(100, [spilled, beside], unified=False).free_bytes == 90
    assert budget_left(100, [spilled, beside], unified=True).free_bytes == 65
    assert budget_left(100, [beside], unified=False).free_bytes == 95


def test_while_the_server_does_not_answer_what_it_last_listed_still_counts():
    node = Node(budget_bytes=50)
    assert [node.read(ON_CPU), node.read(None), node.read(())] == [("budget", 44)] * 2 + [("budget", 50)]


# --- probes that fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("no such device"), ValueError("max holds 'x'"), RuntimeError("?")])
def test_a_probe_that_fails_is_left_out_and_said_once(error, caplog):
    node = Node(v2=error)
    assert [node.read() for _ in range(5)] == [("host", 90)] * 5
    assert caplog.text.count("Memory is announced without what cgroup v2 would tell:") == 1
    assert str(error) in caplog.text


def test_what_a_probe_said_before_it_failed_stands_for_a_while():
    """Or a limit of 4 GiB would become the host's 64 for one poll, and a model be loaded into that."""
    node = Node(v2=20)
    node.read()
    node.probes["cgroup v2"].free = OSError("it blinked")
    node.tick.advance(STANDS_S - 0.1)
    assert node.read() == ("cgroup v2", 20)
    node.tick.advance(0.1)
    assert node.read() == ("host", 90)
    node.probes["cgroup v2"].free = 30
    assert node.read() == ("cgroup v2", 30)


def test_gpus_that_fall_silent_do_not_make_it_a_node_without_gpus():
    node = Node(host=90, gpu=70)
    node.read(ON_GPU)
    node.probes["gpu"].free = OSError("the driver hangs")
    node.tick.advance(STANDS_S * 2)
    assert node.read(ON_GPU) == ("gpu", 70)


def test_a_host_that_cannot_be_measured_at_all_is_announced_as_unknown_and_empty():
    node = Node(host=OSError("no /proc"))
    assert node.read() == ("unknown", 0)


def test_a_limit_that_is_lifted_is_not_held_on_to():
    node = Node(v2=20)
    assert node.read() == ("cgroup v2", 20)
    node.probes["cgroup v2"].free = None
    assert node.read() == ("host", 90)


def test_each_probe_is_asked_once_a_reading():
    node = Node(v2=20, v1=30, gpu=70)
    node.read(ON_GPU)
    assert {name: probe.asked for name, probe in node.probes.items()} == {
        "host": 0, "cgroup v2": 0, "cgroup v1": 0, "gpu": 1,
    }  # fmt: skip


# --- the model server's processes ---------------------------------------------------------------------


class SlowServer:
    """A server whose look waits until a test lets it."""

    def __init__(self):
        self.pid = self.held_bytes = None
        self.looks, self.may = 0, threading.Semaphore(0)

    def look(self):
        self.looks += 1
        assert self.may.acquire(timeout=10)
        self.pid, self.held_bytes = 7, 1000 * self.looks


@pytest.fixture
def server():
    made = SlowServer()
    yield made
    made.may.release(100)


def test_a_look_never_holds_up_a_reading_and_no_second_one_is_begun_beside_it(server):
    node = Node(look=Look(server))
    assert node.memory(()).held_bytes is None
    node.tick.advance(SEEK_S * 10)
    assert node.memory(()).held_bytes is None
    assert server.looks == 1


def test_what_a_look_found_is_in_the_next_reading_and_it_is_looked_again_when_due(server):
    look = Look(server)
    node = Node(look=look)

    def ended():
        server.may.release()
        look.thread.join(10)

    node.memory(())
    ended()
    assert node.memory(()).held_bytes == 1000
    node.tick.advance(LOOK_S - 0.1)
    node.memory(())
    assert server.looks == 1
    node.tick.advance(0.1)
    node.memory(())
    ended()
    assert node.memory(()).held_bytes == 2000
    server.pid = None
    node.tick.advance(LOOK_S)
    node.memory(())
    assert server.looks == 2, "while none is found it is sought more rarely"
    node.tick.advance(SEEK_S)
    node.memory(())
    assert server.looks == 3


# --- put together -------------------------------------------------------------------------------------


def test_a_node_here_is_measured_and_a_node_elsewhere_is_said_to_need_a_budget(caplog):
    made = memory_of(Settings())
    assert made("http://127.0.0.1:1")(()).memory.free_bytes > 0
    assert "GAELP_MEMORY_BUDGET" not in caplog.text
    assert made("http://elsewhere.invalid:1")(()).memory.source == "host"
    assert caplog.text.count("declare GAELP_MEMORY_BUDGET") == 1


def test_a_declared_budget_is_that_of_each_node(caplog):
    made = memory_of(Settings(memory_budget="24GiB"))
    for url in ("http://one.invalid:1", "http://two.invalid:1"):
        said = made(url)(()).memory
        assert (said.source, said.total_bytes) == ("budget", 24 * 1024**3)
    assert caplog.text == ""


def test_the_settings_name_the_source():
    measure = memory_of(Settings(memory_budget=5, memory_source="host"))("http://127.0.0.1:1")
    assert measure(()).memory.source == "host"


def test_a_host_that_does_not_tell_its_memory_ends_no_worker(monkeypatch):
    def refuse():
        raise OSError("no /proc")

    monkeypatch.setattr(memory, "host_memory", refuse)
    said = memory_of(Settings(memory_budget=5, memory_source="budget"))("http://127.0.0.1:1")(()).memory
    assert said == MemorySnapshot(total_bytes=5, free_bytes=5, source="budget")


def test_a_snapshot_of_a_later_release_is_read_and_ours_adds_nothing_inside_memory():
    """The release before refuses a field in there that it does not know, and would miss the node."""
    assert MemorySnapshot.model_validate(told(5).model_dump() | {"colour": 1}) == told(5)
    node = {"worker": "w", "pid": 1, "url": "u", "healthy": True, "slots": 1, "started_at": 1, "seen_at": 1}
    snapshot = NodeSnapshot.model_validate(node | {"memory": told(5)})
    assert snapshot.held_bytes is None
    assert set(snapshot.model_dump()["memory"]) == {"total_bytes", "free_bytes", "source"}


def test_a_probe_that_hangs_holds_nobody_up_and_counts_as_failed():
    answer, clock = threading.Event(), Clock(0)

    def hangs():
        answer.wait(10)
        return told(5)

    aside = Aside(hangs, clock)
    assert aside() is aside() is None
    clock.advance(ANSWERS_S + 1)
    with pytest.raises(TimeoutError):
        aside()
    answer.set()
    clock.at_s = 0
    eventually(lambda: aside() == told(5))


def test_what_a_probe_on_a_thread_raises_is_raised_at_the_next_question():
    aside = Aside(Mock(side_effect=OSError("lost")), Clock(0))
    assert aside() is None
    with pytest.raises(OSError, match="lost"):
        eventually(aside)


def test_a_probe_that_does_not_apply_is_asked_once():
    probe = Mock(return_value=None)
    aside = Aside(probe, Clock(0))
    aside()
    eventually(lambda: not aside._applies)
    assert [aside() for _ in range(3)] == [None] * 3
    assert probe.call_count == 1
