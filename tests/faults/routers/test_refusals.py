"""What is nobody's fault, or the caller's, is told as it is and asked nowhere in vain."""

import pytest

from gaelp_tasks.clients import DistributedOllamaClient
from gaelp_tasks.errors import (
    InvalidInvocation,
    ModelMissing,
    NodeBusy,
    NodeFailed,
    NodeUnreachable,
    RequestRefused,
)
from support.answers import TEXT, answer_of
from support.faulty_node import break_down, busy
from support.node_faults import LIMITS, asked, fail_all, kill
from support.scripted_server import CHAT_MODEL, EMBED_MODEL

NOWHERE = "no-such-model:1b"


async def test_all_busy_is_busy_with_the_shortest_wait_that_was_asked_for(nodes, client):
    for wait_s, node in zip((30, 7, 90), nodes, strict=True):

        async def refuse(request, reply, wait_s=wait_s):
            reply.whole({"error": "busy"}, 503, **{"Retry-After": str(wait_s)})

        node.on("/api/chat", refuse)
    with pytest.raises(NodeBusy) as caught:
        await answer_of(client)
    assert caught.value.retry_after_s == 7
    assert asked(nodes) == [1, 1, 1]


async def test_a_busy_node_among_dead_ones_is_busy_and_not_dead(nodes, client):
    await nodes[0].kill()
    await nodes[1].kill()
    nodes[2].on("/api/chat", busy)
    with pytest.raises(NodeBusy):
        await answer_of(client)


@pytest.mark.parametrize(("fault", "error"), [(kill, NodeUnreachable), (fail_all, NodeFailed)])
async def test_when_all_have_failed_each_was_asked_at_most_once(nodes, client, fault, error):
    for node in nodes:
        await fault(node)
    with pytest.raises(error):
        await answer_of(client)
    assert max(asked(nodes)) <= 1


async def test_a_request_that_a_node_refuses_is_asked_nowhere_else(nodes, client):
    async def refuse(request, reply):
        reply.whole({"error": "tools are not supported"}, 400)

    for node in nodes:
        node.on("/api/chat", refuse)
    with pytest.raises(RequestRefused):
        await answer_of(client)
    assert sum(asked(nodes)) == 1
    assert all(node.healthy(CHAT_MODEL) for node in client.router.snapshot())


async def test_bad_input_reaches_no_node_and_leaves_no_call_behind(nodes, client):
    with pytest.raises(InvalidInvocation):
        await answer_of(client, num_ctx=5)
    assert (sum(asked(nodes)), [node.in_flight for node in client.router.snapshot()]) == (0, [0, 0, 0])


async def test_a_missing_model_is_asked_of_the_one_node_that_has_it(nodes, client):
    async def lists_it(request, reply):
        reply.whole({"models": [{"name": "rare:1b"}]})

    async def has_it(request, reply):
        reply.head()
        reply.last()
        reply.end()

    nodes[1].on("/api/tags", lists_it)
    nodes[1].on("/api/chat", has_it)
    for _ in range(3):
        assert await answer_of(client, model="rare:1b") == ("", nodes[1].url)
    assert sum(asked(nodes)) <= 4  # at most one guess, and only the first time
    assert nodes[1].asked() == 3


async def test_a_model_that_no_node_has_is_one_sentence_after_one_question(nodes, client):
    with pytest.raises(ModelMissing, match=f"None of the 3 nodes has the model '{NOWHERE}'"):
        await answer_of(client, model=NOWHERE)
    assert sum(asked(nodes)) == 1


async def test_a_model_may_be_on_the_node_that_is_away(nodes, client):
    await nodes[0].kill()
    with pytest.raises(NodeUnreachable):
        await answer_of(client, model=NOWHERE)


async def test_a_model_that_fails_on_a_node_leaves_its_other_models_in_use(started, routing):
    [node, other] = await started(2)

    async def fails(request, reply):
        if request.json()["model"] == CHAT_MODEL:
            await break_down(request, reply)
        else:
            await node.server._healthy(request, reply)

    node.on("/api/chat", fails)
    async with DistributedOllamaClient(
        CHAT_MODEL, routing([node, other]), EMBED_MODEL, limits=LIMITS
    ) as client:
        for _ in range(4):
            assert await answer_of(client) == (TEXT, other.url)
        [state, _] = client.router.snapshot()
        assert (state.healthy(CHAT_MODEL), state.healthy(EMBED_MODEL)) == (False, True)
