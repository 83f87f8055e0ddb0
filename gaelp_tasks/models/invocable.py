"""What an agent of the control plane may do in one invocation, and the invocation that comes of it. Pure."""

from collections.abc import Mapping
from typing import Any

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.agent import AgentType
from gaelp_tasks.models.frozen import Frozen, JsonObject
from gaelp_tasks.models.limits import Limits
from gaelp_tasks.models.message import as_messages, with_system
from gaelp_tasks.models.money import Owner

__all__ = ["Invocable"]


class Invocable(Frozen):
    """The agent as it was allowed to be called."""

    agent_id: int
    version: int
    tenant: str
    owner: str
    type: AgentType
    spends: bool  #: False: its runs leave its own budget as it is
    owners: tuple[Owner, ...]  #: for whom its runs are in the ledger: itself, and who calls it
    agent: str = "chat"  #: the agent of ours that runs it
    model: str | None = None  #: None: whatever the invocation says, else the node's default
    system_prompt: str | None = None
    options: JsonObject = {}  # noqa: RUF012  pydantic copies it
    limits: Limits = Limits()
    stops_at_limit: bool = False
    logs_everything: bool = False

    def shaped(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the invocation: what was asked, as far as the agent allows it.

        The agent's own model and options come before what is asked for. Raises InvalidInvocation.
        """
        asked = {name: value for name, value in given.items() if value is not None}
        asked |= {"agent": self.agent} | ({"model": self.model} if self.model else {})
        options = asked.get("options") or {}
        if not isinstance(options, Mapping):
            raise InvalidInvocation("options: input should be an object.")
        options = {**options, **self.options}
        if self.limits.output_tokens is not None:
            tokens = options.get("num_predict")
            bounded = isinstance(tokens, int) and 0 < tokens <= self.limits.output_tokens
            options["num_predict"] = tokens if bounded else self.limits.output_tokens
        if options:
            asked["options"] = options
        if self.limits.run_s is not None:
            wished = asked.get("deadline_s")
            in_time = isinstance(wished, int | float) and wished <= self.limits.run_s
            asked["deadline_s"] = wished if in_time else self.limits.run_s
        if self.system_prompt:
            asked |= self._instructed(asked)
        return asked

    def _instructed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The conversation behind the agent's own system prompt, whatever another one the caller sends."""
        prompt, images = asked.pop("prompt", None), asked.pop("images", None)
        if prompt is not None and "messages" in asked:
            raise InvalidInvocation("Give either prompt or messages, not both.")
        if isinstance(prompt, str):
            turns = as_messages([{"role": "user", "content": prompt, "images": images}])
        else:
            turns = as_messages(prompt if prompt is not None else asked.get("messages") or "")
        own = tuple(turn for turn in turns if turn.role != "system")
        if not any(turn.says_something for turn in own):
            raise InvalidInvocation("The prompt is empty: give prompt or messages.")
        return {"messages": with_system(own, self.system_prompt)}
