"""OpenTelemetry's door: spans of what is sent, of each claim, of what is asked of a model; docs/traces.md.

Imported only where GAELP_TRACES is on. A program of ours exports by OTLP over HTTP, as the OTEL_... variables
say; a service that publishes exports as it does anyway. The text of an error never leaves, for it may repeat
a prompt: its class does.
"""

import atexit
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

from opentelemetry import context, propagate, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer

from gaelp_tasks.errors import SettingsError

__all__ = ["Claim", "Tracing"]

RELEASE = version("gaelp-tasks")
TELL_EVERY_S = 60.0  #: of spans that cannot be sent
FLUSH_S = 0.5  #: at the end of a program, for what was not sent yet
OWN = context.create_key("gaelp-own-traces")  #: what is sent here begins a trace, with a link to this one
NOT_RECORDED: Any = {"record_exception": False, "set_status_on_exception": False}


class Texts(Getter[Mapping[str, Any]]):
    """Headers of a message, in which anybody may have put anything: texts alone count."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        """The value, if it is one."""
        found = carrier.get(key)
        return [found] if isinstance(found, str) else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        """Every name."""
        return list(carrier)


TEXTS = Texts()


class Seldom(logging.Filter):
    """Lets a line pass once a minute: OpenTelemetry tells of each try to reach a collector that is away."""

    def __init__(self) -> None:
        super().__init__()
        self._passed_at = -TELL_EVERY_S

    def filter(self, record: logging.LogRecord) -> bool:  # noqa: ARG002  logging's signature
        """Whether it is time for one."""
        if monotonic() - self._passed_at < TELL_EVERY_S:
            return False
        self._passed_at = monotonic()
        return True


class Claim(NamedTuple):
    """One run of a message: its span, and what makes it the current one on this thread."""

    span: Span
    token: Any


class Tracing:
    """Begins spans; `tracer` None is the one of whatever provider this process has."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._tracer = tracer or trace.get_tracer("gaelp_tasks", RELEASE)

    @contextmanager
    def sending(
        self, task: str = "", *, headers: Mapping[str, Any] | None = None, **how: Any
    ) -> Iterator[dict[str, Any]]:
        """A span around a message's way to its queue; gives its headers with the trace among them.

        What has a trace among its headers already is published again, as a retry is: it keeps that one.
        """
        told = dict(headers or {})
        if propagate.get_global_textmap().fields & told.keys():
            yield told
            return
        queue, task = how.get("queue"), how.get("name", task)
        name = str(getattr(queue, "name", queue) or "")  # '': Celery's routes choose one
        around, links = None, []
        caller = trace.get_current_span().get_span_context()
        if caller.is_valid and context.get_value(OWN):
            around, links = trace.set_span_in_context(trace.INVALID_SPAN), [Link(caller)]
        about = {**messaging("send", name, how.get("task_id")), "gaelp.task": task}
        with self._tracer.start_as_current_span(
            f"send {name or task}",
            context=around,
            kind=SpanKind.PRODUCER,
            attributes=known(about),
            links=links,
            **NOT_RECORDED,
        ) as span:
            propagate.inject(told)
            try:
                yield told
            except Exception as error:
                failed(span, error)
                raise

    def begin(
        self,
        queue: str,
        task_id: str,
        headers: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        fans_out: bool = False,
    ) -> Claim:
        """A run begins, in the trace that its message has brought; everything in it belongs to its span.

        What it publishes, too. Where it `fans_out`, each message begins a trace of its own, with a link.
        """
        sent = propagate.extract(headers, context=context.Context(), getter=TEXTS)
        span = self._tracer.start_span(
            f"process {queue}".rstrip(),
            context=sent,
            kind=SpanKind.CONSUMER,
            attributes=known({**messaging("process", queue, task_id), **about}),
        )
        inside = trace.set_span_in_context(span, sent)
        return Claim(span, context.attach(context.set_value(OWN, fans_out, inside)))

    def end(self, claim: Claim, about: Mapping[str, Any], error: object = None) -> None:
        """It has ended, on the thread where it began."""
        claim.span.set_attributes(known(about))
        if error is not None:
            failed(claim.span, error)
        claim.span.end()
        context.detach(claim.token)

    def export(self, program: str, instance: str = "") -> None:
        """Have the spans of this program sent, unless it was started with a provider of somebody else's.

        Raises SettingsError where OpenTelemetry refuses one of its variables.
        """
        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415  a service that
            OTLPSpanExporter,  # publishes has set up its own, and each of these takes a moment
        )
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        said = OTELResourceDetector().detect().attributes  # in OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES
        ours = {"service.name": program, "service.version": RELEASE, "service.instance.id": instance}
        resource = Resource.create({name: value for name, value in known(ours).items() if name not in said})
        try:
            provider = TracerProvider(resource=resource, shutdown_on_exit=False)
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ValueError as error:
            why = str(error).rstrip(".")
            raise SettingsError(f"GAELP_TRACES: OpenTelemetry refuses an OTEL_ variable: {why}.") from None
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(Seldom())
        trace.set_tracer_provider(provider)
        atexit.register(finish, provider.shutdown)

    def ids(self) -> dict[str, str]:
        """Of the current span, as lines of the log tell them; {} outside of any."""
        found = trace.get_current_span().get_span_context()
        if not found.is_valid:
            return {}
        trace_id, span_id = trace.format_trace_id(found.trace_id), trace.format_span_id(found.span_id)
        return {"trace_id": trace_id, "span_id": span_id}

    def is_inside(self) -> bool:
        """Whether what happens here belongs to a span."""
        return trace.get_current_span().get_span_context().is_valid

    @contextmanager
    def asking(self, operation: str, model: str, **about: Any) -> Iterator[Span]:
        """Something is asked of a model. It does not become the current span: generators change contexts."""
        span = self._tracer.start_span(
            f"{operation} {model}".rstrip(),
            kind=SpanKind.CLIENT,
            attributes=known(
                {
                    "gen_ai.operation.name": operation,
                    "gen_ai.provider.name": "ollama",
                    "gen_ai.request.model": model,
                    **about,
                }
            ),
        )
        try:
            yield span
        except Exception as error:
            failed(span, error)
            raise
        finally:
            span.end()


def messaging(operation: str, queue: str, task_id: Any) -> dict[str, Any]:
    """What every messaging system tells of a message."""
    return {
        "messaging.system": "celery",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": task_id,
    }


def known(about: Mapping[str, Any]) -> dict[str, Any]:
    """Without what nobody knows."""
    return {name: value for name, value in about.items() if value not in ("", None)}


def failed(span: Span, error: object) -> None:
    """Its end was an error of this class."""
    name = type(error).__name__
    span.set_status(StatusCode.ERROR, name)
    span.set_attribute("error.type", name)


def finish(shut_down: Any) -> None:
    """Send what is left, for as long as a program may take to end: the collector may be away."""
    thread = Thread(target=shut_down, name="gaelp-traces", daemon=True)
    thread.start()
    thread.join(FLUSH_S)
