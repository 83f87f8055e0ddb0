"""What a caller gets from a client that asks a node."""

from contextlib import aclosing

from gaelp_tasks.errors import NodeError


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
