"""One who is told of alerts: writes each into its log, a line of JSON: an example for one of your own."""

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 9095
MOST_BYTES = 1024**2


def lines(told: Any) -> Iterator[str]:
    """What Alertmanager posts, a line an alert. Raises KeyError, TypeError for what is something else."""
    for alert in told["alerts"]:
        yield json.dumps(
            {
                "alert": alert["labels"]["alertname"],
                "status": alert["status"],
                "severity": alert["labels"].get("severity", ""),
                **alert["annotations"],
            },
            ensure_ascii=False,
        )


class Handler(BaseHTTPRequestHandler):
    """Takes what is posted; says yes to whoever asks whether it is there."""

    timeout = 10

    def do_GET(self) -> None:
        """Health."""
        self._answer(200)

    def do_POST(self) -> None:
        """Alerts."""
        try:
            size = int(self.headers.get("Content-Length", "0"))
            told = json.loads(self.rfile.read(min(max(size, 0), MOST_BYTES)))
            sys.stdout.writelines(f"{line}\n" for line in lines(told))
            sys.stdout.flush()
        except (ValueError, KeyError, TypeError, AttributeError):
            self._answer(400)
        else:
            self._answer(200)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the library's name
        """Say nothing: the log is for alerts."""

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1]) if sys.argv[1:] else PORT), Handler).serve_forever()
