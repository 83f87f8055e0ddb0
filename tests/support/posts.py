"""What a call publishes, as a worker would read it."""

import base64

from kombu.utils.json import loads

from gaelp_tasks.models import InvocationResult, Tier

RESULT = InvocationResult(
    id="i", agent="chat", model="m", node="n", tier=Tier.BATCH, priority=5, text="SECRET", stop_reason="stop",
    attempts=1,
)  # fmt: skip


def decoded(message):
    """The body of a message: positional arguments, keyword arguments, the rest."""
    return loads(base64.b64decode(message["body"]).decode())


def arguments(message):
    return decoded(message)[1]
