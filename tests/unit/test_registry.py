"""Agents, parsers and tools by name."""

import sys
from types import ModuleType

import pytest

from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.models import Invocation
from gaelp_tasks.registry import (
    AGENTS,
    PARSERS,
    TOOLS,
    agent_class,
    agent_names,
    refuse_unknown,
    register_agent,
    register_parser,
    register_tool,
)
from gaelp_tasks.settings import Settings
from support.fakes import assert_one_sentence

BUILT_IN = ("chat", "coding", "reasoning", "research")
REGISTRIES = pytest.mark.parametrize("registry", [AGENTS, PARSERS, TOOLS], ids=lambda one: one.kind)


@pytest.fixture(autouse=True)
def _fresh_names(monkeypatch):
    for registry in (AGENTS, PARSERS, TOOLS):
        monkeypatch.setattr(registry, "registered", {})


@pytest.fixture
def poems(monkeypatch):
    module = ModuleType("poems")
    module.Poet = type("Poet", (), {})
    monkeypatch.setitem(sys.modules, "poems", module)
    return module


def settings_of(registry, **named):
    return Settings(**{f"{registry.kind}s": named})


def test_the_four_agents_of_the_seed_are_known_and_import(poems):
    assert agent_names(Settings()) == BUILT_IN
    for name in BUILT_IN:
        assert agent_class(name, Settings()).__name__ == f"{name.title()}Agent"


@pytest.mark.parametrize("name", ["code", "json", "lines", "list"])
def test_the_built_in_parsers_are_known_and_import(name):
    assert name in PARSERS.names(Settings())
    assert callable(PARSERS.find(name, Settings()))


def test_an_agent_registered_here_is_known_and_found():
    @register_agent("my.agent-1_x")
    class Mine:
        pass

    assert "my.agent-1_x" in agent_names(Settings())
    assert agent_class("my.agent-1_x", Settings()) is Mine


def test_a_parser_and_a_tool_registered_here_are_found_and_stay_functions():
    @register_parser("upper")
    def upper(text):
        return text.upper()

    @register_tool
    def add(a: int, b: int) -> int:
        return a + b

    @register_tool("twice")
    def double(a: int) -> int:
        return 2 * a

    assert PARSERS.find("upper", Settings()) is upper
    assert (TOOLS.find("add", Settings()), TOOLS.find("twice", Settings())) == (add, double)
    assert (upper("a"), add(1, 2), double(2)) == ("A", 3, 4)


def test_what_cannot_be_a_tool_is_refused_where_it_is_registered():
    with pytest.raises(ValueError, match="type hint"):
        register_tool("untyped")(lambda x: x)
    assert TOOLS.names(Settings()) == ()


@REGISTRIES
def test_what_a_setting_names_is_imported_when_it_is_called(registry, poems):
    settings = settings_of(registry, poet="poems:Poet")
    assert "poet" in registry.names(settings)
    assert registry.find("poet", settings) is poems.Poet


@REGISTRIES
def test_names_are_known_without_importing_what_they_stand_for(registry):
    assert "poet" in registry.names(settings_of(registry, poet="no.such.module:Poet"))


@pytest.mark.parametrize("name", [*BUILT_IN, "twice"])
def test_a_name_is_given_once(name):
    if name == "twice":
        register_agent("twice")(type("First", (), {}))
    with pytest.raises(ValueError, match=name):
        register_agent(name)


def test_a_parser_cannot_take_the_name_of_a_built_in_one():
    with pytest.raises(ValueError, match="There is a parser called 'json' already"):
        register_parser("json")


@pytest.mark.parametrize("register", [register_agent, register_parser, register_tool])
@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\n", "ä", "a" * 201, "a:b"])
def test_a_name_has_simple_characters_only(register, name):
    with pytest.raises(ValueError, match="no name"):
        register(name)


@pytest.mark.parametrize("name", ["a.b", "1a", "a" * 65])
def test_the_name_of_a_tool_is_one_that_model_servers_take(name):
    with pytest.raises(ValueError, match="no name"):
        register_tool(name)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidInvocation, match=r"'poet'.*chat, coding, reasoning, research"):
        agent_class("poet", Settings())


@REGISTRIES
@pytest.mark.parametrize(
    "path",
    [
        "no.such.module:Poet",
        "poems:Nobody",
        "poems",
        "poems:",
        "",
        ":Poet",
        ".poems:Poet",
        "broken_agent:Poet",
    ],
)
def test_a_path_that_does_not_import_is_a_wrong_setting(registry, path, poems, tmp_path, monkeypatch):
    (tmp_path / "broken_agent.py").write_text("class Poet(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match=f"GAELP_{registry.kind.upper()}S"):
        registry.find("poet", settings_of(registry, poet=path))


# --- what a producer checks


def asked(**arguments):
    return Invocation.parse({"prompt": "x"} | arguments, max_prompt_bytes=1000)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"agent": "poet"}, "no agent 'poet'"),
        ({"agent": "Write me a poem about it"}, "no agent of that name"),
        (
            {"parser": "poem"},
            r"no parser 'poem'; there are: code, json, lines, list \(more by",
        ),
        ({"tools": ["add"]}, r"no tool 'add'; there are: none \(more by GAELP_TOOLS\)"),
        ({"tools": [{"type": "function"}, "add"]}, "no tool 'add'"),
        ({"mode": "brief"}, "agent 'chat' has no mode 'brief'; it has none"),
        ({"agent": "reasoning", "mode": "bold"}, "no mode 'bold'; there are: brief, step_by_step, critique"),
        ({"documents": ["a"]}, "agent 'chat' takes none; research does"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused_at_the_call(arguments, told):
    with pytest.raises(InvalidInvocation, match=told) as caught:
        refuse_unknown(asked(**arguments), Settings())
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"agent": "reasoning", "mode": "critique"},
        {"agent": "research", "documents": ["a"]},
        {"parser": "json"},
        {"tools": [{"type": "function"}]},
        {"agent": "poet", "mode": "sonnet", "documents": ["a"]},
        {"parser": "poem", "tools": ["rhyme"]},
    ],
)
def test_what_is_known_is_let_through_and_an_agent_of_ones_own_says_itself_what_it_takes(arguments):
    settings = Settings(agents={"poet": "a:B"}, parsers={"poem": "a:b"}, tools={"rhyme": "a:c"})
    refuse_unknown(asked(**arguments), settings)
