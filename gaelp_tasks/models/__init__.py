"""Plain data: frozen, strict, without effects. Imports only `gaelp_tasks.errors`."""

from gaelp_tasks.models.capacity import MemorySnapshot, NodeSnapshot
from gaelp_tasks.models.document import Document, as_documents
from gaelp_tasks.models.invocation import (
    ENVELOPE_VERSION,
    Embedding,
    EmbeddingResult,
    Invocation,
    InvocationResult,
    Tier,
)
from gaelp_tasks.models.message import FunctionCall, Message, Prompt, ToolCall, as_messages, with_system
from gaelp_tasks.models.usage import Timings, Usage

__all__ = [
    "ENVELOPE_VERSION",
    "Document",
    "Embedding",
    "EmbeddingResult",
    "FunctionCall",
    "Invocation",
    "InvocationResult",
    "MemorySnapshot",
    "Message",
    "NodeSnapshot",
    "Prompt",
    "Tier",
    "Timings",
    "ToolCall",
    "Usage",
    "as_documents",
    "as_messages",
    "with_system",
]
