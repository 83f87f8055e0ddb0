"""What listens where a collector would, and keeps the spans that it is sent."""

import gzip
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.eventually import eventually


class Span(NamedTuple):
    """One span as it came."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str  #: '' for the first of its trace
    kind: str  #: CLIENT, PRODUCER, ...
    about: dict[str, Any]  #: attributes
    events: tuple[str, ...]
    is_error: bool


class OtlpReceiver:
    """`with OtlpReceiver() as receiver`: programs with `receiver.env` export to it."""

    def __init__(self) -> None:
        self.got: list[Span] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.got += opened(body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def env(self) -> dict[str, str]:
        """What has a program export here, soon after the end of each span."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_address[1]}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "NO_PROXY": "127.0.0.1",
        }

    def spans(self, are_all: Callable[[list[Span]], Any], *, within_s: float = 20) -> list[Span]:
        """All that came, once that is all that was waited for."""
        eventually(lambda: are_all(list(self.got)), within_s=within_s, what=f"the spans came, not {self.got}")
        return list(self.got)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def opened(body: bytes) -> list[Span]:
    """The spans of one request."""
    return [
        Span(
            service=plain(resource.resource.attributes)["service.name"],
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            kind=span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
            about=plain(span.attributes),
            events=tuple(event.name for event in span.events),
            is_error=span.status.code == span.status.STATUS_CODE_ERROR,
        )
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def plain(attributes: Any) -> dict[str, Any]:
    """By name; of a list its members as text."""
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value"))
        if one.value.WhichOneof("value") != "array_value"
        else [member.string_value for member in one.value.array_value.values]
        for one in attributes
    }
