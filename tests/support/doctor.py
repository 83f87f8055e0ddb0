"""Nodes as they announce themselves, and the rows of a doctor who has looked."""

from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from threading import Thread

from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot

OURS = version("gaelp-tasks")
MEMORY = MemorySnapshot(total_bytes=8 * 1024**3, free_bytes=4 * 1024**3, source="host")


def node(name="one", **facts):
    return NodeSnapshot(
        **{
            "worker": f"{name}@a", "pid": 1, "url": f"http://{name}", "healthy": True, "slots": 2,
            "memory": MEMORY, "models": (f"of-{name}:latest", "phi:latest"), "release": OURS, "holder": name,
            "num_parallel": 2, "num_ctx": 4096, "started_at": 1.0, "seen_at": 0.0,
        }
        | facts
    )  # fmt: skip


GOOD = (node("one"), node("two"))


def wrong(rows):
    return {name for name, row in rows.items() if row.verdict != "ok"}


def said(row):
    return row.verdict, row.finding


@contextmanager
def health(status):
    """Where an API answers its health with this."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
