"""A stand-in for Grafana: reads the provisioning as that does, and tells who has the login what is there."""

import base64
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

PROVISIONING = Path(os.environ.get("GF_PATHS_PROVISIONING", "/etc/grafana/provisioning"))
PORT = int(os.environ.get("GF_SERVER_HTTP_PORT", "3000"))
LOGIN = "{}:{}".format(
    os.environ["GF_SECURITY_ADMIN_USER"],
    Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip(),
)


def provisioned(kind, key):
    """Entries of one kind."""
    files = sorted((PROVISIONING / kind).glob("*.yaml"))
    return [entry for file in files for entry in yaml.safe_load(file.read_text())[key]]


SOURCES = provisioned("datasources", "datasources")
BOARDS = [
    {"uid": board["uid"], "title": board["title"], "type": "dash-db"}
    for provider in provisioned("dashboards", "providers")
    for file in sorted(Path(provider["options"]["path"]).glob("*.json"))
    for board in [json.loads(file.read_text())]
]
PAGES = {"/api/search": BOARDS, "/api/datasources": SOURCES}


class Handler(BaseHTTPRequestHandler):
    """Health for everybody, the rest for the login."""

    def do_GET(self):
        """Answer."""
        path = self.path.partition("?")[0]
        given = self.headers.get("Authorization", "")
        if path == "/api/health":
            self.answer(200, {"database": "ok"})
        elif given != f"Basic {base64.b64encode(LOGIN.encode()).decode()}":
            self.answer(401, {"message": "Unauthorized"})
        elif path in PAGES:
            self.answer(200, PAGES[path])
        else:
            self.answer(404, {"message": "Not found"})

    def answer(self, status, document):
        """As JSON."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("", PORT), Handler).serve_forever()
