"""Agents by name."""

import sys
from types import ModuleType

import pytest

from gaelp_tasks import registry
from gaelp_tasks.errors import InvalidInvocation, SettingsError
from gaelp_tasks.registry import agent_class, agent_names, register_agent
from gaelp_tasks.settings import Settings

BUILT_IN = ("chat", "coding", "reasoning", "research")


@pytest.fixture(autouse=True)
def _fresh_names(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


@pytest.fixture
def poems(monkeypatch):
    module = ModuleType("poems")
    module.Poet = type("Poet", (), {})
    monkeypatch.setitem(sys.modules, "poems", module)
    return module


def test_the_four_agents_of_the_seed_are_known_and_import(poems):
    assert agent_names(Settings()) == BUILT_IN
    for name in BUILT_IN:
        assert agent_class(name, Settings()).__name__ == f"{name.title()}Agent"


def test_an_agent_registered_here_is_known_and_found():
    @register_agent("my.agent-1_x")
    class Mine:
        pass

    assert "my.agent-1_x" in agent_names(Settings())
    assert agent_class("my.agent-1_x", Settings()) is Mine


def test_an_agent_named_in_the_settings_is_imported_when_it_is_called(poems):
    settings = Settings(agents={"poet": "poems:Poet"})
    assert agent_names(settings) == (*BUILT_IN[:2], "poet", *BUILT_IN[2:])
    assert agent_class("poet", settings) is poems.Poet


def test_names_are_known_without_importing_what_they_stand_for():
    assert "poet" in agent_names(Settings(agents={"poet": "no.such.module:Poet"}))


@pytest.mark.parametrize("name", [*BUILT_IN, "twice"])
def test_a_name_is_given_once(name):
    if name == "twice":
        register_agent("twice")(type("First", (), {}))
    with pytest.raises(ValueError, match=name):
        register_agent(name)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\n", "ä", "a" * 201, "a:b"])
def test_a_name_has_simple_characters_only(name):
    with pytest.raises(ValueError, match="no name"):
        register_agent(name)


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(InvalidInvocation, match=r"'poet'.*chat, coding, reasoning, research"):
        agent_class("poet", Settings())


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
def test_a_path_that_does_not_import_is_a_wrong_setting(path, poems, tmp_path, monkeypatch):
    (tmp_path / "broken_agent.py").write_text("class Poet(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingsError, match="GAELP_AGENTS"):
        agent_class("poet", Settings(agents={"poet": path}))
