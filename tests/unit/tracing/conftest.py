"""Traces that are kept here, and who hears of runs."""

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gaelp_tasks.tracing import Tracing
from gaelp_workers.tracing import Listening
from support.traced import NOW


@pytest.fixture
def told():
    """The exporter that has every span which ended."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(told):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(told))
    return Tracing(provider.get_tracer("test"))


@pytest.fixture
def hears(tracing):
    return Listening(tracing, clock=lambda: NOW)
