"""Agents, parsers and tools by name: names are known without importing what they stand for."""

import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar, overload

from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.models.invocation import Invocation
from gaelp_tasks.settings import Settings

__all__ = [
    "AGENTS",
    "PARSERS",
    "TOOLS",
    "Registry",
    "agent_class",
    "agent_names",
    "refuse_unknown",
    "register_agent",
    "register_parser",
    "register_tool",
]

T = TypeVar("T")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])

#: The modes of each built-in agent that has some, so that a producer can check one without importing it.
BUILT_IN_MODES = {"reasoning": ("brief", "step_by_step", "critique")}
#: The built-in agents that take documents.
READERS = ("research",)


class Registry:
    """What of one kind can be called by name: built in, named in a setting, registered in this process."""

    def __init__(
        self, kind: str, built_in: Mapping[str, str], *, name: str = r"[A-Za-z0-9._-]{1,200}", rule: str = ""
    ) -> None:
        self.kind = kind
        self.setting = f"GAELP_{kind.upper()}S"
        self.built_in = dict(built_in)
        self.registered: dict[str, Any] = {}
        self._name = re.compile(name)
        self._rule = rule or "use letters, digits, '.', '_' and '-'"

    def adder(self, name: str) -> Callable[[T], T]:
        """A decorator that makes its object callable by this name here.

        Raises ValueError for a taken or malformed name.
        """
        if not self._name.fullmatch(name):
            raise ValueError(f"'{name}' is no name for {self._a}: {self._rule}.")
        if name in self.built_in or name in self.registered:
            raise ValueError(f"There is {self._a} called '{name}' already.")

        def add(value: T) -> T:
            self.registered[name] = value
            return value

        return add

    def names(self, settings: Settings) -> tuple[str, ...]:
        """Every name that can be called from here."""
        return tuple(sorted({*self.built_in, *self._named(settings), *self.registered}))

    def find(self, name: str, settings: Settings) -> Any:
        """What stands behind a name, imported now.

        Raises InvalidInvocation for an unknown name, SettingsError where the setting names what does not
        import.
        """
        if name in self.registered:
            return self.registered[name]
        path = self.built_in.get(name) or self._named(settings).get(name)
        if path is None:
            raise InvalidInvocation(self.unknown(name, settings))
        module, _, attribute = path.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            raise SettingsError(
                f"{self.setting}: {self.kind} '{name}' is {path}, which fails: {error}."
            ) from error

    def unknown(self, name: str, settings: Settings) -> str:
        """The sentence about a name that is not known here."""
        known = ", ".join(self.names(settings)) or "none"
        kind = self.kind
        return f"{kind}: there is no {kind} {shown(name)}; there are: {known} (more by {self.setting})."

    @property
    def _a(self) -> str:
        return f"an {self.kind}" if self.kind[0] in "aeiou" else f"a {self.kind}"

    def _named(self, settings: Settings) -> Mapping[str, str]:
        named: Mapping[str, str] = getattr(settings, f"{self.kind}s")
        return named


AGENTS = Registry(
    "agent",
    {
        "chat": "gaelp_tasks.agents.chat:ChatAgent",
        "coding": "gaelp_tasks.agents.coding:CodingAgent",
        "reasoning": "gaelp_tasks.agents.reasoning:ReasoningAgent",
        "research": "gaelp_tasks.agents.research:ResearchAgent",
    },
)
PARSERS = Registry(
    "parser",
    {
        "code": "gaelp_tasks.texts.parsers:code_blocks",
        "json": "gaelp_tasks.texts.parsers:json_value",
        "lines": "gaelp_tasks.texts.parsers:lines",
        "list": "gaelp_tasks.texts.parsers:items",
    },
)
TOOLS = Registry(
    "tool",
    {},
    name=r"[A-Za-z_][A-Za-z0-9_-]{0,63}",  # what the model servers take for the name of a function
    rule="use up to 64 letters, digits, '_' and '-', a letter first",
)


def register_agent(name: str) -> Callable[[C], C]:
    """Class decorator: make an agent callable by `agent=name` in this process.

    Other processes learn of it through GAELP_AGENTS='{"name": "package.module:Class"}'. Raises ValueError for
    a name that is taken or has other characters than letters, digits, '.', '_' and '-'.
    """
    return AGENTS.adder(name)


def register_parser(name: str) -> Callable[[F], F]:
    """Decorator of a function text -> JSON value (or pydantic model): callable by `parser=name`.

    It is given the whole text of an answer; an exception says that the text does not fit. Other processes
    learn of it through GAELP_PARSERS. Raises ValueError as register_agent does.
    """
    return PARSERS.adder(name)


@overload
def register_tool(name: F) -> F: ...
@overload
def register_tool(name: str) -> Callable[[F], F]: ...
def register_tool(name: F | str) -> F | Callable[[F], F]:
    """Decorator of a typed function that a model may call: `@register_tool` or `@register_tool("name")`.

    Its schema comes from its type hints and docstring. It runs only in invocations that name it:
    `tools=["name"]`. Other processes learn of it through GAELP_TOOLS. Raises ValueError for a function or a
    name that cannot be a tool.
    """
    from gaelp_tasks.tools import Tool  # noqa: PLC0415  tools.py finds names here

    called = name if isinstance(name, str) else name.__name__
    add: Callable[[F], F] = TOOLS.adder(called)

    def register(function: F) -> F:
        Tool.of(function, called)
        return add(function)

    return register if isinstance(name, str) else register(name)


def agent_names(settings: Settings) -> tuple[str, ...]:
    """Every agent that can be called from here."""
    return AGENTS.names(settings)


def agent_class(name: str, settings: Settings) -> Any:
    """The class behind a name, imported now. Raises as Registry.find."""
    return AGENTS.find(name, settings)


def refuse_unknown(asked: Invocation, settings: Settings) -> None:
    """Check every name of an invocation, importing nothing. Raises InvalidInvocation.

    Modes and documents are checked for the built-in agents; an agent of your own says what it takes when it
    runs.
    """
    named: Iterable[tuple[Registry, str | None]] = (
        (AGENTS, asked.agent),
        (PARSERS, asked.parser),
        *((TOOLS, tool) for tool in asked.tools or () if isinstance(tool, str)),
    )
    for registry, name in named:
        if name is not None and name not in registry.names(settings):
            raise InvalidInvocation(registry.unknown(name, settings))
    if asked.agent not in AGENTS.built_in:
        return
    modes = BUILT_IN_MODES.get(asked.agent, ())
    if asked.mode is not None and asked.mode not in modes:
        raise InvalidInvocation(no_such_mode(asked.mode, f"agent '{asked.agent}'", modes))
    if asked.documents and asked.agent not in READERS:
        raise InvalidInvocation(takes_no_documents(f"agent '{asked.agent}'"))


def no_such_mode(mode: str, agent: str, modes: Iterable[str]) -> str:
    """The sentence about a mode that an agent does not have."""
    known = ", ".join(modes)
    return f"mode: {agent} has no mode {shown(mode)}; " + (
        f"there are: {known}." if known else "it has none."
    )


def takes_no_documents(agent: str) -> str:
    """The sentence about documents for an agent that does not read them."""
    return f"documents: {agent} takes none; {', '.join(READERS)} does."


def shown(value: object) -> str:
    """A name as given; what does not look like one may be a misplaced prompt and is not repeated."""
    text = str(value)
    return f"'{text}'" if re.fullmatch(r"[\w.:-]{1,40}", text) else "of that name"
