"""What `gaelp top` draws, and how it looks at Redis without freezing."""

import io
import json
import threading

import pytest
from rich.console import Console
from typer.testing import CliRunner

from gaelp_tasks.cli import top
from gaelp_tasks.cli.app import cli
from gaelp_tasks.errors import BrokerUnavailable
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.capacity import ModelSlots
from gaelp_tasks.overview import Runner
from support.eventually import eventually

GIB = 1024**3
NOW = 1000.0
MEMORY = MemorySnapshot(total_bytes=8 * GIB, free_bytes=3 * GIB, source="test")
ID = "0123456789abcdef"


def node(url="http://a:1", **facts):
    return NodeSnapshot(
        **{
            "worker": "w@h", "pid": 1, "url": url, "healthy": True, "slots": 4, "started_at": 1.0,
            "seen_at": NOW - 2, "memory": MEMORY,
        }
        | facts
    )  # fmt: skip


def runner(name=ID, **facts):
    return Runner(
        **{
            "id": name, "worker": "w@h", "node": "http://a:1", "agent": "coding", "tier": "batch",
            "model": "llama3.2:1b", "attempt": 1, "since": NOW - 65, "tokens": 321,
        }
        | facts
    )  # fmt: skip


def view(nodes=(), running=(), **queues):
    depths = {"interactive": 0, "batch": 0, "background": 0} | queues
    return top.View(NOW, list(nodes), depths, list(running))


def slots(model, count=2, **facts):
    return ModelSlots(**{"model": model, "slots": count, "phase": "loaded"} | facts)


def drawn(seen, *, width=140, height=0, trouble=""):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(top.frame(seen, NOW, width=width, height=height, trouble=trouble))
    return console.file.getvalue()


def test_where_there_is_room_a_node_tells_who_measured_and_what_its_server_holds():
    small = MemorySnapshot(total_bytes=8 * GIB, free_bytes=3 * GIB, source="cgroup v2")
    nodes = [node(memory=small, held_bytes=2 * GIB), node("http://b:1")]
    assert "3.0 of 8.0 GiB (cgroup v2)" in drawn(view(nodes), width=110)
    wide = drawn(view(nodes), width=160)
    assert "server holds" in wide
    assert [line.split()[-2:] for line in wide.splitlines() if "http://" in line] == [
        ["2.0", "GiB"],
        ["ago", "-"],
    ]
    narrow = drawn(view(nodes), width=109)
    assert "3.0 of 8.0 GiB" in narrow
    assert "cgroup" not in narrow


def test_a_frame_tells_nodes_queues_and_runs():
    nodes = [
        node(running=("r",), tokens_per_s=12.34, loaded=("llama3.2:1b",)),
        node("http://b:1", running=("s", "t"), tokens_per_s=10.0, slots=2),
    ]
    text = drawn(view(nodes, [runner()], batch=12))
    assert "3/6 slots" in text
    assert "22.3 tokens/s" in text
    assert "■□□□ 1/4" in text
    assert "■■ 2/2" in text
    assert "3.0 of 8.0 GiB" in text
    assert "llama3.2:1b" in text
    assert "batch 12" in text
    row = next(line for line in text.splitlines() if "coding" in line).split()
    assert row == ["01234567", "coding", "batch", "llama3.2:1b", "65", "s", "321", "http://a:1", "w@h", "1"]


def test_models_are_rows_with_their_slots_their_state_and_who_waits():
    by_model = (
        slots("llama3.2:3b", 4, busy=1, run_s=3.25),
        slots("mistral:7b", 2, phase="loading"),
        slots("theirs:1b", 1, others=True),
        slots("next:1b", 0, phase=""),
    )
    waiting = {"batch.llama3.2_3b": 5, "interactive.llama3.2_3b": 2, "interactive.any": 9}
    lines = drawn(view([node(by_model=by_model, loaded=("llama3.2:3b",))], **waiting), width=80).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if ":1b" in line or "b " in line}
    assert rows["llama3.2:3b"] == ["■□□□", "1/4", "loaded", "7", "3.2", "s"]
    assert rows["mistral:7b"] == ["□□", "0/2", "loading", "-", "-"]
    assert rows["theirs:1b"] == ["□", "0/1", "loaded", "by", "others", "-", "-"]
    assert rows["next:1b"] == ["0/0", "not", "in", "memory", "-", "-"]
    assert "loaded" not in lines[3], "a column of its own would say it twice"
    assert "(test)" in lines[4], "that leaves room for who measured the memory"


def coloured(seen, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    console.print(top.frame(seen, NOW, width=width))
    return console.file.getvalue()


def test_slots_that_were_cut_are_red_with_their_reason():
    cut = slots("big:1b", 0, busy=2, why="Memory is short, 1 GiB of 8 GiB are free: nothing starts.")
    full = slots("small:1b", 2, busy=2, why="All 2 slots of small:1b are taken.")
    late = slots("late:1b", 2, phase="loading", why="late:1b is being loaded.")
    text = coloured(view([node(by_model=(cut, full, late))]))
    assert "\x1b[31m2/0\x1b[0m" in text
    assert "\x1b[31mMemory is short" in text
    assert "late:1b is being loaded." in text
    assert "\x1b[31mlate" not in text, "that is no trouble"
    assert "All 2 slots" not in text, "the row tells it"


def test_of_several_nodes_each_model_and_reason_names_its_own():
    nodes = [node(f"http://{at}:1", by_model=(slots("m:1b", 0, why="Short."),)) for at in "ab"]
    text = drawn(view(nodes))
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("m:1b")] == [
        "http://a:1", "http://b:1",
    ]  # fmt: skip
    assert "http://b:1: Short." in text


def test_who_waits_for_a_model_that_no_node_has_is_told():
    told = slots("m:latest")
    seen = view([node(models=("m:latest",), by_model=(told,))], **{"batch.x_1b": 2, "background.x_1b": 1})
    assert "3 wait for x_1b, which no node has." in drawn(seen)
    assert "which no node has" not in drawn(view([node(models=("m:latest",))], **{"batch.m": 2}))


@pytest.mark.parametrize("height", [20, 24, 30])
@pytest.mark.parametrize("width", [80, 140])
def test_however_many_models_there_are_runs_keep_their_place(height, width):
    why = "This sentence is long enough to take a second line on the usual terminal of eighty columns."
    by_model = tuple(slots(f"model-{number}:1b", why=why if number == 3 else "") for number in range(30))
    seen = view([node(by_model=by_model)], [runner(f"{number:08}") for number in range(200)])
    lines = drawn(seen, width=width, height=height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "00000000" in "".join(lines)
    assert "model-0:1b" in "".join(lines)
    assert "more: `gaelp nodes list`" in "".join(lines)


def test_many_reasons_leave_room_for_the_rest_and_the_red_ones_come_first():
    why = "is not loaded for a reason that takes more than one line on the usual terminal of eighty columns."
    by_model = tuple(
        slots(f"model-{number}:1b", 2 if number < 7 else 0, why=f"Number {number} {why}")
        for number in range(9)
    )
    seen = view([node(by_model=by_model)], [runner(f"{number:08}") for number in range(200)])
    text = drawn(seen, width=80, height=30)
    assert len(text.splitlines()) <= 30
    assert text.index("Number 7") < text.index("Number 8") < text.index("Number 0")
    assert "Number 6" not in text
    assert "and 6 more that wait" in text
    assert "00000003" in text


def test_a_node_that_is_unwell_says_why():
    text = drawn(view([node(healthy=False, trouble="http://a:1 hangs."), node("http://b:1")]))
    assert [line.split()[:2] for line in text.splitlines() if "/4" in line] == [
        ["http://a:1", "hangs"],
        ["http://b:1", "ok"],
    ]
    assert "http://a:1 hangs." in text


def test_runs_without_a_node_and_embeddings_are_told_beside_the_slots():
    text = drawn(view([node(running=("a", "e"), unplaced=("b",), embedding=("e",))]))
    assert "■□□□ 1/4 +1, 1 embed" in text
    assert "2/4 slots" in text


def test_what_is_not_known_yet_is_a_dash():
    row = drawn(view([node()], [runner(model="", since=None, node="", agent="", tier="")])).splitlines()[-1]
    assert row.split() == ["01234567", "-", "-", "321", "-", "w@h", "1"]


def test_a_run_on_the_nodes_choice_of_model_says_default():
    assert " default " in drawn(view([node()], [runner(model="")])).splitlines()[-1]


def test_an_idle_cluster_runs_nothing():
    assert drawn(view([node()])).splitlines()[-1] == "Running: nothing"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 109, 110, 200])
def test_no_line_is_wider_than_the_terminal(width):
    nodes = [node(loaded=("llama3.2:1b", "nomic-embed-text:latest"), unplaced=("x",))]
    lines = drawn(view(nodes, [runner()]), width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("01234567" in line for line in lines)


def test_a_narrow_terminal_shows_less_and_a_wide_one_more():
    narrow, wide = (drawn(view([node()], [runner()]), width=width) for width in (80, 140))
    assert "w@h" in wide
    assert "w@h" not in narrow
    assert "http://a:1" in narrow


@pytest.mark.parametrize("height", [14, 24, 50])
def test_no_frame_is_higher_than_the_terminal(height):
    nodes = [node(f"http://{name}:1") for name in "ab"]
    text = drawn(view(nodes, [runner(f"{number:08}") for number in range(200)]), width=140, height=height)
    assert len(text.splitlines()) <= height
    assert "00000000" in text
    assert "more" in text


def test_a_file_gets_every_run():
    text = drawn(view([node()], [runner(f"{number:08}") for number in range(200)]))
    assert "00000199" in text
    assert " more" not in text


def test_without_workers_it_says_how_to_start_one():
    assert "gaelp worker" in drawn(view())


def test_markup_in_a_name_is_text():
    assert "[red]m" in drawn(view([node()], [runner(model="[red]m")]))


def test_redis_away_is_one_line_above_what_was_last_seen():
    text = drawn(view([node()]), trouble="Redis is away.")
    assert text.splitlines()[1] == "Redis is away."
    assert "http://a:1" in text
    assert "No worker" not in drawn(view(), trouble="Redis is away."), "nobody knows"


@pytest.fixture
def looking(monkeypatch):
    """Answers to the looks of a Looker, which runs while the test does."""
    answers = [view()]

    def look():
        answer = answers[-1]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, threading.Event):
            answer.wait(10)
            return answers[0]
        return answer

    monkeypatch.setattr(top, "look", look)
    monkeypatch.setattr(top, "EVERY_S", 0.01)
    return answers


def test_a_looker_goes_on_while_redis_is_away_and_recovers_by_itself(looking):
    looker = top.Looker()
    thread = threading.Thread(target=looker.run)
    thread.start()
    eventually(lambda: looker.trouble == "")
    looking.append(BrokerUnavailable("Redis is away."))
    eventually(lambda: looker.trouble == "Redis is away.")
    looking.append(view([node()]))
    eventually(lambda: looker.trouble == "" and looker.seen.nodes)
    looker.ended.set()
    thread.join()


def test_a_redis_that_hangs_is_told_with_its_seconds(looking, monkeypatch):
    monkeypatch.setattr(top, "LATE_S", 0.0)
    console = Console(file=io.StringIO(), width=140, height=40)
    looker, gate = top.Looker(), threading.Event()
    looking.append(gate)
    thread = threading.Thread(target=looker.run)
    thread.start()
    looker.trouble = ""
    console.print(looker.frame(console))
    looker.ended.set()
    gate.set()
    thread.join()
    assert "Redis has not answered for 0 s." in console.file.getvalue()


def test_json_is_one_document_and_off_a_terminal_it_is_one_frame(monkeypatch):
    monkeypatch.setattr(top, "look", lambda: view([node(running=("r",))], [runner()], batch=2))
    told = json.loads(CliRunner().invoke(cli, ["top", "--json"]).stdout)
    assert told["queues"]["batch"] == 2
    assert told["nodes"][0]["running"] == ["r"]
    assert told["running"][0]["id"] == ID
    for words in (["top"], ["top", "--once"]):
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 0
        assert done.stdout.count("tokens/s") == 2, "once in the head, once in the table"
