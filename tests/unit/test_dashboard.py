"""Who may ask Flower what, and which of its options are ours to set."""

from base64 import b64encode

import pytest
from typer.testing import CliRunner

from gaelp_tasks.cli.app import cli
from gaelp_tasks.cli.dashboard import MaskedEvents, OptionRefused, Rules, serve
from gaelp_tasks.cli.masks import HIDDEN


def header(login):
    return f"Basic {b64encode(login.encode()).decode()}"


LOGIN = "me:p:w"
WRONG = ("", "Basic", "Basic !!!", "Bearer x", header("me:p"), header("me:p:w "), header("x"))


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/static/x.js", "/api/tasks", "/healthcheck/", "//healthcheck"]
)
def test_nothing_but_the_health_check_opens_without_the_login(control, path):
    rules = Rules(LOGIN, control=control)
    assert {rules.refusal("GET", path, wrong)[0] for wrong in WRONG} == {401}
    assert rules.refusal("GET", path, header(LOGIN)) is None
    assert rules.refusal("GET", "/healthcheck", "") is None
    assert rules.refusal("POST", "/healthcheck", "")[0] == 401


def test_who_has_no_login_is_told_where_it_is():
    said = Rules(LOGIN, control=False).refusal("GET", "/", "")[1]
    assert "user:password, as in .run/flower.login (make up) or GAELP_FLOWER_LOGIN" in said


def test_only_control_may_change_anything():
    looking, steering = Rules(LOGIN, control=False), Rules(LOGIN, control=True)
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        assert looking.refusal(method, "/api/task/revoke/1", header(LOGIN))[0] == 403
        assert steering.refusal(method, "/api/task/revoke/1", header(LOGIN)) is None
    assert looking.refusal("POST", "/tasks/datatable", header(LOGIN)) is None


def test_a_prefix_does_not_open_a_second_way():
    rules = Rules(LOGIN, control=False, url_prefix="/flower/")
    assert rules.refusal("GET", "/flower/healthcheck", "") is None
    assert rules.refusal("GET", "/flower/tasks", "")[0] == 401
    assert rules.refusal("POST", "/flower/tasks/datatable", header(LOGIN)) is None


@pytest.mark.parametrize("overtaken", [False, True])
def test_the_workers_word_on_arguments_counts_whichever_comes_first(overtaken):
    class Loop:
        def add_callback(self, call, *arguments):
            call(*arguments)

    events = MaskedEvents(None, Loop(), max_tasks_in_memory=10)
    common = {
        "uuid": "1",
        "name": "gaelp.invoke_agent",
        "hostname": "a@b",
        "timestamp": 1.0,
        "clock": 1,
        "pid": 1,
    }
    common |= {"local_received": 1.0, "utcoffset": 0}
    sent = {**common, "type": "task-sent", "args": "('secret',)", "kwargs": "{'x': 'secret'}"}
    received = {**common, "type": "task-received", "clock": 2, "args": "()", "kwargs": "agent=echo"}
    first, second = (received, sent) if overtaken else (sent, received)
    events.on_event(first)
    if not overtaken:
        assert events.state.tasks["1"].kwargs == HIDDEN
    events.on_event(second)
    task = events.state.tasks["1"]
    assert (task.args, task.kwargs, task.state) == ("()", "agent=echo", "RECEIVED")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("--basic_auth=other:pw", "--basic_auth is not set this way"),
        ("--read-only=false", "--read_only is not set this way"),
        ("--nonsense", "no option --nonsense"),
    ],
)
def test_an_option_that_is_not_the_callers_is_refused(word, words):
    with pytest.raises(OptionRefused, match=words):
        serve(None, address="127.0.0.1", port=0, login=LOGIN, control=False, more=[word])


@pytest.mark.parametrize(
    ("login", "words"), [("", "user:password"), ("me:", "user:password"), ("me:pässwörd", "ASCII")]
)
def test_without_a_login_it_does_not_start(monkeypatch, login, words):
    monkeypatch.setenv("GAELP_FLOWER_LOGIN", login)
    done = CliRunner().invoke(cli, ["flower"], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert words in done.output
