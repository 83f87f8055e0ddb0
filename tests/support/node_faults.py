"""What may befall a node, one fault at a time, and what its callers bear."""

import asyncio

from gaelp_tasks.clients import Limits
from support.faulty_node import break_down, busy, die_before_a_word, drop

#: generous for a busy machine, and far below the limits of a first token
LIMIT_S = 1.5
LIMITS = Limits(connect_s=LIMIT_S, answer_s=LIMIT_S)


def asked(nodes, path="/api/chat"):
    return [node.asked(path) for node in nodes]


async def kill(node):
    await node.kill()


async def freeze(node):
    node.freeze()


async def black_hole(node):
    await node.black_hole()


async def refuse_all(node):
    node.on("/api/chat", busy)


async def fail_all(node):
    node.on("/api/chat", break_down)


async def drop_all(node):
    node.on("*", drop)


async def say_nothing(node):
    node.on("/api/chat", die_before_a_word)


async def be_slow(node):
    async def slowly(request, reply):
        await asyncio.sleep(0.05)
        await node.server._healthy(request, reply)

    node.on("*", slowly)


FAULTS = [kill, freeze, black_hole, refuse_all, fail_all, drop_all, say_nothing]
