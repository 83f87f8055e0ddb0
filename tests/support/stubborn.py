"""Work that does not stop when it is asked to: `--include support.stubborn`, and agents by SETTINGS."""

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from celery.worker.control import Panel

from gaelp_tasks import app
from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.models import Message

#: what a worker needs to know them
SETTINGS = {
    "GAELP_AGENTS": '{"deaf": "support.stubborn:Deaf", "blocking": "support.stubborn:Blocking"}',
    "PYTHONPATH": os.pathsep.join(
        filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
    ),
}


class Deaf(BaseAgent):
    """Goes on whatever cancels it."""

    async def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse]:
        yield ChatResponse(content="I will")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue


class Blocking(BaseAgent):
    """Takes the loop of all runs for itself."""

    async def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse]:
        yield ChatResponse(content="I will")
        await asyncio.sleep(0.1)  # or nobody would hear that it has begun
        time.sleep(60)  # that is the point
        yield ChatResponse(content="")


@app.task(name="stubborn.sleep")
def sleep(seconds: float) -> str:
    """Keep the thread."""
    time.sleep(seconds)
    return "slept"


@app.task(name="stubborn.seize")
def seize(after_s: float, seconds: float) -> str:
    """Keep the interpreter: no other thread of Python runs meanwhile."""
    time.sleep(after_s)
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))
    return "seized"


@Panel.register(type="control")
def stubborn_hang(state: Any) -> None:
    """Keep the consumer's own loop."""
    time.sleep(600)
