"""The command line's way to the API: signed in, page by page, and one clear sentence where it is refused."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from gaelp_tasks.cli.api_client import PAGE, Api
from gaelp_tasks.errors import BudgetExceeded, GaelpError, InvalidInvocation, NotFound, NotSignedIn
from gaelp_tasks.settings import Settings
from support.ports import free_port

KNOWN = "a-token"


@pytest.fixture
def served():
    """An HTTP server that answers what `served.told` holds, and notes what it is asked."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server.asked.append(
                (self.command, parts.path, parse_qs(parts.query), body, self.headers["Authorization"])
            )
            status, answer, *more = server.told(parts)
            self.send_response(status)
            for name, value in more:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815  the library asks for these names

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.told = [], lambda _: (200, b"{}")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def api(served):
    with Api(Settings(api_url=f"http://127.0.0.1:{served.server_port}/", api_token=KNOWN)) as made:
        yield made


def refused(served, status, answer, *more):
    served.told = lambda _: (
        status,
        answer if isinstance(answer, bytes) else json.dumps(answer).encode(),
        *more,
    )


def test_it_asks_below_the_version_and_signs_in(api, served):
    served.told = lambda _: (201, b'{"id": 5}')
    assert api.post("agents", {"name": "a"}, dry=True, other=None) == {"id": 5}
    assert served.asked == [
        ("POST", "/api/v1/agents", {"dry": ["True"]}, b'{"name": "a"}', f"Bearer {KNOWN}")
    ]
    served.told = lambda _: (204, b"")
    assert api.delete("agents/5") is None


def test_the_token_is_not_that_of_a_netrc(api, served, tmp_path, monkeypatch):
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(file))
    api.get("agents")
    assert served.asked[0][-1] == f"Bearer {KNOWN}"


def test_a_list_is_read_to_its_end(api, served):
    def page(parts):
        skip = int(parse_qs(parts.query)["skip"][0])
        return 200, json.dumps(list(range(skip, min(skip + PAGE, 2 * PAGE + 3)))).encode()

    served.told = page
    assert list(api.every("agents")) == list(range(2 * PAGE + 3))
    assert len(served.asked) == 3


@pytest.mark.parametrize(
    ("status", "answer", "kind", "sentence"),
    [
        (404, {"detail": "There is no agent 5."}, NotFound, "There is no agent 5."),
        (402, {"detail": "Too dear."}, BudgetExceeded, "Too dear."),
        (401, {"detail": "The token is over."}, NotSignedIn, "The token is over."),
        (
            422,
            {"detail": [{"loc": ["body", "limit"], "msg": "is no number", "type": "int"}]},
            InvalidInvocation,
            "limit: is no number.",
        ),
        (500, {"detail": "Something went wrong."}, GaelpError, "Something went wrong."),
        (502, b"<html>", GaelpError, r"refused: 502 Bad Gateway\."),
    ],
)
def test_a_refusal_is_the_sentence_that_the_api_told(api, served, status, answer, kind, sentence):
    refused(served, status, answer)
    with pytest.raises(GaelpError, match=sentence) as caught:
        api.get("agents/5")
    assert type(caught.value) is kind


def test_who_has_no_token_is_told_where_one_comes_from(served):
    refused(served, 401, {"detail": "Send a token."})
    api = Api(Settings(api_url=f"http://127.0.0.1:{served.server_port}"))
    with api, pytest.raises(NotSignedIn, match="gaelp token create"):
        api.get("agents")
    assert served.asked[0][-1] is None


def test_a_token_is_sent_to_nobody_that_the_api_points_at(api, served):
    refused(served, 302, b"", ("Location", "http://127.0.0.1:1/"))
    with pytest.raises(GaelpError, match=r"refused: 302"):
        api.get("agents")
    assert len(served.asked) == 1


def test_another_server_is_told_from_our_api(api, served):
    served.told = lambda _: (200, b"<html>hello</html>")
    with pytest.raises(GaelpError, match="is not our API"):
        api.get("agents")


def test_an_api_that_is_not_there_is_one_sentence_without_a_password():
    api = Api(Settings(api_url=f"http://me:SECRET@127.0.0.1:{free_port()}"))
    with api, pytest.raises(GaelpError, match=r"does not answer \(no connection\)") as caught:
        api.get("agents")
    assert "SECRET" not in str(caught.value)
