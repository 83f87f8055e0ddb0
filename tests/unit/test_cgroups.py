"""Limits of memory cgroups, read from made-up trees: version 2 and 1, nested, absent, and spoilt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.models import MemorySnapshot
from gaelp_workers.probes.cgroups import V1, V2, Cgroup

MIB = 1024**2
NO_LIMIT_V1 = 9223372036854771712  #: pages of 4 KiB
NO_LIMIT_V1_64K = 9223372036854710272
SIZES = st.integers(0, 2**50)


class Tree:
    """A made-up /proc and /sys/fs/cgroup."""

    def __init__(self, home, layout):
        self.layout, self.proc, self.root = layout, home / "proc", home / "cgroup"
        self.member("/")

    def member(self, path, process="self"):
        """Put a process into a cgroup of this version; of the other one it is at the root."""
        line = f"4:cpu,memory:{path}\n0::/\n" if self.layout is V1 else f"1:name=systemd:/\n0::{path}\n"
        file = self.proc / str(process) / "cgroup"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(line)

    def write(self, path, **files):
        directory = self.root / self.layout.mount / path.lstrip("/")
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / f"memory.{name}").write_text(f"{text}\n")

    def limit(self, path, limit, used=0, cache=0):
        """A cgroup as the kernel shows it; `cache` is part of `used`."""
        if self.layout is V2:
            self.write(path, max=limit, current=used, stat=f"anon 5\ninactive_file {cache}\nactive_file 7")
        else:
            stat = f"cache 5\ninactive_file 1\ntotal_inactive_file {cache}\ntotal_active_file 7"
            self.write(path, limit_in_bytes=limit, usage_in_bytes=used, stat=stat)

    def probe(self, **how):
        return Cgroup(self.layout, proc=self.proc, root=self.root, **how)


@pytest.fixture(params=[V2, V1], ids=lambda layout: layout.name)
def tree(request, tmp_path):
    return Tree(tmp_path, request.param)


@pytest.fixture
def v2(tmp_path):
    return Tree(tmp_path, V2)


def told(total, free, layout):
    return MemorySnapshot(total_bytes=total, free_bytes=free, source=layout.name)


def test_a_container_sees_its_limit_at_the_root_of_its_own_tree(tree):
    tree.limit("/", 100 * MIB, used=30 * MIB, cache=10 * MIB)
    assert tree.probe()() == told(100 * MIB, 80 * MIB, tree.layout)


def test_the_cgroup_of_the_process_is_read_where_proc_says(tree):
    tree.member("/a/b")
    tree.limit("/a/b", 100, used=60)
    tree.limit("/other", 10, used=10)
    assert tree.probe()() == told(100, 40, tree.layout)


def test_a_limit_further_up_counts(tree):
    tree.member("/a/b/c")
    tree.limit("/a", 50, used=20)
    assert tree.probe()() == told(50, 30, tree.layout)


def test_a_parent_whose_other_children_are_full_leaves_least_though_its_limit_is_larger(tree):
    tree.member("/a/b")
    tree.limit("/a", 1000, used=990)
    tree.limit("/a/b", 100, used=20)
    assert tree.probe()() == told(1000, 10, tree.layout)


def test_a_container_that_sees_the_hosts_paths_and_only_its_own_files_finds_them(tree):
    """Docker with the host's cgroup namespace: /proc names a path that is not mounted inside."""
    tree.member("/docker/0123")
    tree.limit("/", 100, used=60)
    assert tree.probe()() == told(100, 40, tree.layout)


@pytest.mark.parametrize("limit", [NO_LIMIT_V1, NO_LIMIT_V1_64K, 2**62])
def test_the_largest_number_of_version_1_is_no_limit(tmp_path, limit):
    tree = Tree(tmp_path, V1)
    tree.limit("/", limit, used=5)
    assert tree.probe()() is None


def test_max_is_no_limit(v2):
    v2.member("/a")
    v2.write("/a", max="max", high="max", current=5)
    v2.write("/", stat="")
    assert v2.probe()() is None


def test_where_the_kernel_would_throttle_nothing_is_free(v2):
    v2.limit("/", 100, used=70)
    v2.write("/", high=80)
    assert v2.probe()() == told(80, 10, V2)
    v2.write("/", max="max")
    assert v2.probe()() == told(80, 10, V2)


@pytest.mark.parametrize(("limit", "told_total"), [(999, 999), (1000, None), (5000, None)])
def test_a_limit_of_what_the_host_has_or_more_is_none(tree, limit, told_total):
    tree.limit("/", limit, used=1)
    said = tree.probe(most_bytes=1000)()
    assert (said and said.total_bytes) == told_total


def test_without_any_files_there_is_nothing_to_tell(tree, tmp_path):
    assert tree.probe()() is None
    assert Cgroup(tree.layout, proc=tmp_path / "gone", root=tmp_path / "gone")() is None


def test_a_process_of_the_other_version_only_has_no_limit_of_this_one(tree):
    tree.limit("/", 100)
    (tree.proc / "self" / "cgroup").write_text("2:cpu:/\n" if tree.layout is V1 else "4:memory:/\n")
    assert tree.probe()() is None


def test_a_cgroup_outside_of_the_namespace_is_not_mistaken_for_another(tree):
    tree.limit("/", 100)
    tree.limit("/sibling", 50)
    tree.member("/../sibling")
    assert tree.probe()() is None


def test_the_named_process_counts_and_this_one_once_that_has_ended(tree):
    tree.member("/worker")
    tree.member("/server", process=77)
    tree.limit("/worker", 100)
    tree.limit("/server", 500)
    pids = [77, 78, None]
    probe = tree.probe(pid=lambda: pids.pop(0))
    assert [probe().total_bytes for _ in range(3)] == [500, 100, 100]


@pytest.mark.parametrize("text", ["", "-1", "lots", "12 34", "1e9", "0x10", "٣", "\ufffd"])
def test_a_limit_that_is_no_number_is_told_by_its_file(tree, text):
    tree.limit("/", text)
    with pytest.raises(
        ValueError, match=r"memory\.(max|limit_in_bytes) holds .*, which is no number of bytes"
    ):
        tree.probe()()


def test_bytes_that_are_no_text_are_no_number_either(v2):
    v2.limit("/", 5)
    (v2.root / "memory.max").write_bytes(b"\xff\xfe5")
    with pytest.raises(ValueError, match="no number of bytes"):
        v2.probe()()


def test_a_limit_without_what_is_used_tells_nothing(tree):
    tree.limit("/", 100)
    (tree.root / tree.layout.mount / tree.layout.used).unlink()
    with pytest.raises(FileNotFoundError):
        tree.probe()()


def test_a_kernel_that_does_not_tell_idle_cache_counts_all_of_it_as_used(tree):
    tree.limit("/", 100, used=60, cache=60)
    tree.write("/", stat="anon 5")
    assert tree.probe()() == told(100, 40, tree.layout)


@given(limit=SIZES, used=SIZES, cache=SIZES)
def test_free_is_never_negative_never_more_than_the_limit_and_what_is_used_or_left(
    tmp_path_factory, limit, used, cache
):
    tree = Tree(tmp_path_factory.mktemp("tree"), V2)
    tree.limit("/", limit, used=used, cache=cache)
    said = tree.probe()()
    assert 0 <= said.free_bytes <= said.total_bytes == limit
    if cache <= used and used - cache <= limit:
        assert said.free_bytes + used - cache == limit


@given(levels=st.lists(st.tuples(SIZES, SIZES), min_size=1, max_size=4))
def test_the_level_that_leaves_least_is_told_wherever_it_is(tmp_path_factory, levels):
    tree = Tree(tmp_path_factory.mktemp("tree"), V1)
    paths = ["/".join("abcd"[: depth + 1]) for depth in range(len(levels))]
    for path, (limit, used) in zip(paths, levels, strict=True):
        tree.limit(path, limit, used=used)
    tree.member(f"/{paths[-1]}")
    assert tree.probe()().free_bytes == min(max(0, limit - used) for limit, used in levels)
