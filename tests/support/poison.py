"""An agent that takes its worker along, as one that exhausts the memory does."""

import os
from collections.abc import AsyncGenerator
from typing import Any

from gaelp_tasks.agents import BaseAgent
from gaelp_tasks.clients import ChatResponse
from gaelp_tasks.models import Message


class Killer(BaseAgent):
    """Ends the process."""

    async def process(self, messages: tuple[Message, ...], **options: Any) -> AsyncGenerator[ChatResponse]:
        os._exit(9)
        yield ChatResponse(content="")
