"""Which figure of a node's memory `gaelp plan` believes."""

from socket import gethostname

import pytest

from gaelp_tasks.cli.planning import memory_of
from gaelp_tasks.clients.wire import Running
from gaelp_tasks.errors import NodeError
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot

NODE = "http://127.0.0.1:11434"


def telling(worker: str, free: int, source: str = "host", total: int = 100) -> NodeSnapshot:
    memory = MemorySnapshot(total_bytes=total, free_bytes=free, source=source)
    return NodeSnapshot(
        worker=worker, pid=1, url=NODE, healthy=True, slots=1, memory=memory, started_at=0, seen_at=0
    )


def free(*nodes: NodeSnapshot, running: tuple[Running, ...] = ()) -> int:
    return memory_of(None, nodes)(NODE, running, {}).free_bytes


def test_of_many_machines_that_call_their_node_the_same_this_one_counts():
    assert free(telling("gaelp@big", 80), telling(f"gaelp@{gethostname()}", 8)) == 8


def test_where_none_of_them_is_this_one_nobody_is_believed():
    with pytest.raises(NodeError, match=r"gaelp@a, gaelp@b.*--memory"):
        free(telling("gaelp@a", 1), telling("gaelp@b", 2))


@pytest.mark.parametrize(
    ("source", "in_vram", "whole"), [("budget", 12, 16), ("budget", 0, 24), ("gpu", 12, 16), ("gpu", 0, 4)]
)
def test_no_more_comes_back_than_was_counted(source, in_vram, whole):
    model = Running(name="m", size=20, size_vram=in_vram)
    assert free(telling("w", 4, source), running=(model,)) == whole


def test_nothing_has_more_than_all_of_it():
    model = Running(name="m", size=20)
    assert free(telling("w", 4, "budget", total=16), running=(model,)) == 16
