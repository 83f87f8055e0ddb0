"""What `gaelp doctor` finds, with its advice."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import redis

from gaelp_tasks.cli import checks
from gaelp_tasks.cli.server import Server
from gaelp_tasks.errors import BrokerUnavailable, NodeUnreachable
from gaelp_tasks.models import MemorySnapshot, NodeSnapshot
from gaelp_tasks.settings import Settings

GOOD = {"redis_version": "7.2", "maxmemory_policy": "noeviction", "aof_enabled": 1}
OLLAMA = {
    "/api/version": {"version": "0.9"},
    "/api/tags": {"models": [{"name": "a:1b"}, {"name": "b:latest"}]},
    "/api/ps": {"models": [{"name": "a:1b"}]},
}


def fake_app(*, info=GOOD, error=None, **settings):
    def ping():
        if error:
            raise error

    def config_get(name):
        return {name: info["maxmemory_policy"]}

    told = SimpleNamespace(ping=ping, info=lambda: info, config_get=config_get)
    return SimpleNamespace(settings=Settings(**settings), redis=told)


@pytest.fixture
def serve():
    """`serve(pages)` is the URL of a server that answers these, else 404; `serve.headers`: what it got."""
    servers, headers = [], []

    def start(pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers.append(dict(self.headers))
                page = pages.get(self.path)
                self.send_response(200 if page is not None else 404)
                self.end_headers()
                self.wfile.write((page if isinstance(page, str) else json.dumps(page)).encode())

            do_POST = do_GET  # noqa: N815  the name that the base class calls

            def log_message(self, *_):
                """Tests are quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    start.headers = headers
    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def by_name(found):
    return {check.name: check for check in found}


def test_a_good_broker_has_nothing_to_mend():
    found = by_name(checks.broker(fake_app()))
    assert [check.verdict for check in found.values()] == ["ok"] * 3
    assert "7.2" in found["broker"].finding


@pytest.mark.parametrize(
    ("dead", "verdict", "says"), [(0, "ok", "none"), (1234, "warn", "1,234 messages could not run")]
)
def test_dead_letters_are_told_with_what_to_do_about_them(monkeypatch, dead, verdict, says):
    monkeypatch.setattr(checks.dead_letters, "count", lambda app: dead)
    [told] = checks.letters(fake_app())
    assert (told.verdict, told.finding) == (verdict, says)


def test_a_broker_that_is_away_is_the_only_finding():
    [check] = checks.broker(fake_app(error=redis.ConnectionError("refused")))
    assert (check.name, check.verdict) == ("broker", "fail")
    assert "GAELP_BROKER_URL" in check.advice


@pytest.mark.parametrize(
    ("told", "name", "verdict", "advice"),
    [
        ({"maxmemory_policy": "allkeys-lru"}, "eviction policy", "fail", "noeviction"),
        ({"maxmemory_policy": "volatile-ttl"}, "eviction policy", "fail", "noeviction"),
        ({"aof_enabled": 0}, "persistence", "warn", "appendonly yes"),
    ],
)
def test_a_broker_that_could_lose_work_is_told_with_how_to_mend_it(told, name, verdict, advice):
    check = by_name(checks.broker(fake_app(info=GOOD | told)))[name]
    assert check.verdict == verdict
    assert advice in check.advice


def test_no_password_of_the_broker_is_printed():
    found = list(checks.broker(fake_app(broker_url="redis://me:SECRET@h:1/0")))
    assert "SECRET" not in str(found)


def test_a_node_that_answers_tells_its_models(serve):
    url = serve(OLLAMA)
    found = by_name(checks.node(fake_app(ollama_headers={"X-Key": "k"}), url))
    assert [check.verdict for check in found.values()] == ["ok"] * 3
    assert "0.9" in found[f"node {url}"].finding
    assert "a:1b" in found[f"node {url}"].finding
    assert found[f"models on {url}"].finding == "a:1b, b:latest"
    assert all(headers["X-Key"] == "k" for headers in serve.headers)


@pytest.mark.parametrize(
    ("wanted", "verdict"), [("a:1b", "ok"), ("b", "ok"), ("", "ok"), ("c", "fail"), ("a", "fail")]
)
def test_the_default_model_must_be_there(serve, wanted, verdict):
    url = serve(OLLAMA)
    check = by_name(checks.node(fake_app(default_model=wanted), url))[f"models on {url}"]
    assert check.verdict == verdict
    assert (f"gaelp models pull {wanted} --node {url}" in check.advice) is (verdict == "fail")


@pytest.mark.parametrize("models", [[], None])
def test_a_node_without_models_is_told(serve, models):
    pages = OLLAMA | {"/api/tags": {"models": models}}
    url = serve(pages)
    assert by_name(checks.node(fake_app(), url))[f"models on {url}"].verdict == "fail"


@pytest.mark.parametrize(
    "pages",
    [
        {},
        OLLAMA | {"/api/ps": "no json"},
        {path: {} for path in OLLAMA},
        {path: [] for path in OLLAMA},
        OLLAMA | {"/api/tags": {"models": ["a", "b"]}},
    ],
    ids=["404", "no json", "empty objects", "lists", "names alone"],
)
def test_what_is_no_ollama_is_a_finding_and_no_traceback(serve, pages):
    url = serve(pages)
    [check] = checks.node(fake_app(), url)
    assert (check.name, check.verdict) == (f"node {url}", "fail")
    assert check.advice


def test_no_password_of_a_node_is_printed(serve):
    url = serve(OLLAMA).replace("http://", "http://me:SECRET@")
    found = list(checks.node(fake_app(), url))
    assert [check.verdict for check in found] == ["ok"] * 3
    assert "SECRET" not in str(found)


def test_a_node_that_is_away_is_a_finding(serve):
    url = serve(OLLAMA)
    gone = url.rpartition(":")[0] + ":1"
    [check] = checks.node(fake_app(), gone)
    assert (check.verdict, check.finding) == ("fail", "cannot be reached (Connection refused)")
    assert check.advice.startswith("Start it (`ollama serve`), or set GAELP_OLLAMA_NODES")


def test_a_node_that_hangs_is_told_to_be_restarted_not_started(monkeypatch):
    monkeypatch.setitem(Server._document.__kwdefaults__, "read_s", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        [check] = checks.node(fake_app(), url)
        assert check.finding == "did not answer within 0.1 s"
        assert check.advice.startswith("It hangs; restart it")
        with pytest.raises(NodeUnreachable, match="it hangs; restart it") as caught:
            Server(url, Settings()).models()
    assert "start it (" not in str(caught.value)


def test_what_the_settings_name_is_imported():
    good, bad = "gaelp_tasks.agents.chat:ChatAgent", "gaelp_tasks.nowhere:Poet"
    found = by_name(checks.named(fake_app(agents={"mine": good, "poet": bad}, parsers={"p": bad})))
    assert [(check.name, check.verdict) for check in found.values()] == [
        ("agent poet", "fail"),
        ("agents", "ok"),
        ("parser p", "fail"),
    ]
    assert (
        "GAELP_AGENTS: agent 'poet' is gaelp_tasks.nowhere:Poet, which fails" in found["agent poet"].finding
    )
    assert "GAELP_PARSERS" in found["parser p"].advice
    assert found["agents"].finding == "mine"


@pytest.mark.parametrize(
    ("declared", "real", "verdict", "advice"),
    [
        (1, None, "ok", ""),
        (4, None, "warn", "OLLAMA_NUM_PARALLEL=4"),
        (4, 4, "ok", ""),
        (4, 2, "warn", "GAELP_NUM_PARALLEL=2"),
        (1, 2, "warn", "GAELP_NUM_PARALLEL=2"),
    ],
)
def test_what_is_declared_is_compared_with_what_the_node_tells(declared, real, verdict, advice):
    check = checks.parallelism(declared, real, at="http://n")
    assert check.name == "parallelism on http://n"
    assert check.verdict == verdict
    assert advice in check.advice
    assert bool(check.advice) is bool(advice)


def snapshot(**facts):
    memory = MemorySnapshot(total_bytes=4 * 1024**3, free_bytes=1024**3, source="host")
    return NodeSnapshot(
        **{
            "worker": "w@h", "pid": 1, "url": "http://n", "healthy": True, "slots": 2, "running": ("r",),
            "memory": memory, "started_at": 1.0, "seen_at": 2.0,
        }
        | facts
    )  # fmt: skip


def test_workers_are_told_with_their_slots_and_memory(monkeypatch):
    monkeypatch.setattr(
        checks,
        "live_nodes",
        lambda _: [snapshot(), snapshot(worker="x@h", healthy=False, trouble="It hangs.")],
    )
    well, unwell = checks.workers(fake_app())
    assert (well.verdict, well.advice) == ("ok", "")
    assert well.finding == "1 of 2 slots busy, 1.0 of 4.0 GiB free (host)"
    assert (unwell.name, unwell.verdict) == ("worker x@h on http://n", "fail")
    assert unwell.advice == "It hangs."


def test_a_node_whose_memory_nobody_sees_is_told_to_be_declared():
    blind = MemorySnapshot(total_bytes=0, free_bytes=0, source="unknown")
    found = checks.worker(snapshot(memory=blind))
    assert (found.verdict, found.finding) == (
        "warn",
        "1 of 2 slots busy, nothing tells the memory of its node",
    )
    assert "GAELP_MEMORY_BUDGET" in found.advice
    assert checks.worker(snapshot(memory=blind, healthy=False)).verdict == "fail"


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "ok"), (2.0, "ok"), (1.2, "warn"), (3.0, "warn")])
def test_an_unusual_safety_factor_is_told(factor, verdict):
    found = checks.safety(factor)
    assert found.verdict == verdict
    assert f"{factor:g}" in found.finding


SHOWN = {
    "capabilities": ["completion"],
    "model_info": {
        "general.architecture": "llama", "llama.block_count": 32, "llama.context_length": 131072,
        "llama.embedding_length": 4096, "llama.feed_forward_length": 14336, "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    },
}  # fmt: skip


@pytest.fixture
def roomy(serve, monkeypatch):
    """`roomy(gib, **settings)` is what is found of a node with so much free memory and models of 4 GiB."""

    def look(gib, *, shown=SHOWN, num_parallel=None, **settings):
        told = {"version": "0.9"} | ({"num_parallel": num_parallel} if num_parallel else {})
        models = [{"name": name, "size": 4 * 1024**3, "digest": name} for name in ("m:latest", "e:latest")]
        pages = {"/api/version": told, "/api/tags": {"models": models}, "/api/ps": {"models": []}}
        url = serve(pages | {"/api/show": shown})
        size = gib * 1024**3
        memory = MemorySnapshot(total_bytes=size, free_bytes=size, source="host")
        monkeypatch.setattr(checks, "live_nodes", lambda _: [snapshot(url=url, memory=memory)])
        return url, list(checks.room(fake_app(**{"default_model": "m", "num_ctx": 4096} | settings), url))

    return look


def test_a_default_model_that_fits_is_told_with_what_it_needs(roomy):
    url, [found] = roomy(24)
    assert (found.name, found.verdict) == (f"room on {url}", "ok")
    assert found.finding.startswith("m:latest needs 6.98 GiB")
    assert "with 1 slot, and 22.0 GiB are there above the reserve" in found.finding


def test_a_default_model_that_does_not_fit_is_a_warning_with_advice(roomy):
    url, [found] = roomy(8)
    assert (found.verdict, found.finding[:29]) == ("warn", "m:latest does not fit: it nee")
    assert f"gaelp plan m:latest --node {url}" in found.advice


def test_all_slots_of_the_node_count_for_whether_it_fits(roomy):
    _, [one] = roomy(14, num_parallel=4)
    assert "with 4 slots" in one.finding
    assert one.verdict == "ok"
    _, [many] = roomy(14, num_parallel=32)
    assert many.verdict == "warn"
    _, [naive] = roomy(14, num_parallel=32, memory_model="naive")
    assert naive.verdict == "ok", "it is charged by slot, and has fewer"


def test_the_embedding_model_of_the_settings_and_the_node_s_own_choice_are_looked_at(roomy):
    assert [one.finding.split()[0] for one in roomy(24, embed_model="e")[1]] == ["m:latest", "e:latest"]
    assert [one.finding.split()[0] for one in roomy(24, default_model="")[1]] == ["m:latest"]
    embeds = SHOWN | {"capabilities": ["embedding"]}
    assert roomy(24, default_model="", shown=embeds)[1] == []


def test_what_other_checks_tell_is_not_told_twice(roomy, monkeypatch):
    assert roomy(24, default_model="gone")[1] == []
    url, _ = roomy(24)
    monkeypatch.setattr(checks, "live_nodes", lambda _: [])
    assert list(checks.room(fake_app(default_model="m"), url)) == [], "no worker tells the memory"


def test_without_workers_it_says_how_to_start_one(monkeypatch):
    monkeypatch.setattr(checks, "live_nodes", lambda _: [])
    [check] = checks.workers(fake_app())
    assert (check.verdict, check.advice) == ("warn", "Start one: `gaelp worker`.")


def test_without_redis_nothing_is_said_about_workers(monkeypatch):
    def fail(_):
        raise BrokerUnavailable("away")

    monkeypatch.setattr(checks, "live_nodes", fail)
    assert list(checks.workers(fake_app())) == []


def test_the_versions_that_matter_are_told():
    check = checks.versions()
    assert check.verdict == "ok"
    assert "celery 5." in check.finding


@pytest.mark.parametrize(("trouble", "verdict"), [(None, "ok"), ("no library", "warn")])
def test_the_demos_engine_is_never_a_failure(monkeypatch, trouble, verdict):
    monkeypatch.setattr("gaelp_tasks.demo.model_server.check.check_engine", lambda: trouble)
    assert checks.engine().verdict == verdict
