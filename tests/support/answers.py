"""What a caller gets from a client that asks a node."""

from contextlib import aclosing

from gaelp_tasks.errors import NodeError
from support.scripted_server import TOKENS

#: the answer of a scripted server
TEXT = "".join(TOKENS)


async def texts_of(client, **options):
    """The texts that came, and the error that ended them."""
    texts, failure = [], None
    try:
        async with aclosing(client.chat("Why is the sky blue?", **options)) as stream:
            async for chunk in stream:
                texts.append(chunk.content)  # noqa: PERF401  what came before an error counts
    except NodeError as error:
        failure = error
    assert failure is None or (failure.node == client.node and client.node in str(failure))
    return texts, failure


async def answer_of(client, **options):
    """The text, and the node that gave it; what ends otherwise is raised."""
    async with aclosing(client.chat("Why is the sky blue?", **options)) as stream:
        chunks = [chunk async for chunk in stream]
    assert chunks[-1].done
    return "".join(chunk.content for chunk in chunks), chunks[-1].node
