"""Gives a GGUF file to a running Ollama server, for the tests marked `ollama`.

python tests/support/real_ollama.py create --gguf FILE --name smollm2:135m --url http://127.0.0.1:11434
Exit status: 0 the model is there, 3 not possible, with one sentence on stderr.
"""

import argparse
import hashlib
import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: A template with tools is what makes Ollama offer and parse them; without tools it is plain ChatML.
CHATML = """{{- if .Tools }}<|im_start|>system
You call functions. The functions are:
{{ range .Tools }}{{ .Function }}
{{ end }}Answer with one call, like this:
<tool_call>
{"name": "name_of_the_function", "arguments": {"argument": "value"}}
</tool_call><|im_end|>
{{ end }}
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}
{{- range .ToolCalls }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>
{{- end }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
STOPS = ["<|im_start|>", "<|im_end|>"]


class NotPossibleError(Exception):
    """The model cannot be made; the message is the one sentence why."""


class Server:
    """The two calls of an Ollama server that make a model, on one address.

    `url` is http://host:port; `timeout_s` bounds each wait for the socket, not the whole call.
    """

    def __init__(self, url: str, *, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise NotPossibleError(f"The address {url!r} is not of the form http://host:port.")
        self._url = url
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s

    def upload(self, file: Path) -> str:
        """Sends a file as a blob unless the server has it; returns its digest."""
        with file.open("rb") as stream:
            digest = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        for status, _ in self._answers("HEAD", f"/api/blobs/{digest}", None):
            if status == http.client.OK:
                return digest
        with file.open("rb") as stream:
            list(self._checked("POST", f"/api/blobs/{digest}", stream, length_bytes=file.stat().st_size))
        return digest

    def create(self, name: str, file: Path) -> list[str]:
        """Makes the model `name` from a GGUF file, with ChatML; returns the steps it told."""
        wanted = {
            "model": name,
            "files": {file.name: self.upload(file)},
            "template": CHATML,
            "parameters": {"stop": STOPS},
        }
        steps = [
            answer.get("status", "") for answer in self._checked("POST", "/api/create", json.dumps(wanted))
        ]
        if "success" not in steps:
            raise NotPossibleError(f"{self._url} ended the creation of {name} without saying success.")
        return steps

    def _checked(
        self, method: str, path: str, body: Any, *, length_bytes: int | None = None
    ) -> Iterator[dict[str, Any]]:
        for status, line in self._answers(method, path, body, length_bytes=length_bytes):
            try:
                answer = json.loads(line) if line else {}
            except ValueError:
                answer = {"error": "no JSON"}
            if status >= http.client.BAD_REQUEST or "error" in answer:
                raise NotPossibleError(
                    f"{self._url}{path} answered {status}: {answer.get('error', 'no reason')}."
                )
            yield answer

    def _answers(
        self, method: str, path: str, body: Any, *, length_bytes: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Status and line for each line of the answer; one empty line where there is none."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        headers = {} if length_bytes is None else {"Content-Length": str(length_bytes)}
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            lines = [line.strip() for line in response if line.strip()]
        except (OSError, http.client.HTTPException) as error:
            raise NotPossibleError(f"{self._url}{path} could not be reached: {error}.") from error
        finally:
            connection.close()
        yield from ((response.status, line) for line in lines or [b""])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Give a GGUF file to a running Ollama server.")
    create = parser.add_subparsers(required=True).add_parser("create", help="make a model from a GGUF file")
    create.add_argument("--gguf", type=Path, required=True, help="the weights")
    create.add_argument("--name", required=True, help="the model's name, such as smollm2:135m")
    create.add_argument("--url", default="http://127.0.0.1:11434", help="the server's address")
    create.add_argument("--timeout-s", type=float, default=60.0, help="longest silence of the server")
    given = parser.parse_args(arguments)
    try:
        if not given.gguf.is_file():
            raise NotPossibleError(f"There is no file {given.gguf}.")  # noqa: TRY301  one door for all reasons
        steps = Server(given.url, timeout_s=given.timeout_s).create(given.name, given.gguf)
    except NotPossibleError as why:
        sys.stderr.write(f"{why}\n")
        return 3
    sys.stdout.write("".join(f"{step}\n" for step in [*steps, given.name]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
