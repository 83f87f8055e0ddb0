"""What users may import, and what it looks like: a change here is a change of the product."""

import inspect
import re

import pytest

import gaelp_tasks
from gaelp_tasks import agents, clients, errors
from gaelp_tasks.errors import GaelpError, NodeBusy, NodeError, Verdict

# docs/contract names, by the module that offers them
SURFACE = {
    gaelp_tasks: {
        "InvocationHandle",
        "app",
        "embed",
        "errors",
        "invoke_agent",
        "register_agent",
        "register_parser",
        "register_tool",
    },
    agents: {
        "Answer",
        "BaseAgent",
        "ChatAgent",
        "CodingAgent",
        "Mode",
        "ReasoningAgent",
        "ResearchAgent",
        "register_agent",
        "register_parser",
        "register_tool",
    },
    clients: {
        "BaseOllamaClient",
        "ChatResponse",
        "DistributedOllamaClient",
        "Embeddings",
        "Limits",
        "LocalOllamaClient",
        "ModelInfo",
        "ScriptedClient",
        "client_from_settings",
    },
}
INVOKE_AGENT = (
    "prompt messages agent model tier priority options format tools images think deadline_s stall_timeout_s "
    "queue_ttl_s idempotency_key tenant metadata"
)
ADDED = ("mode", "documents", "parser", "cache", "most_tokens")  #: what came after the contract
TREE = re.compile(r"[├└]── (?P<name>\w+) +(?P<verdict>\w+)")

ERRORS = [value for name, value in vars(errors).items() if isinstance(value, type) and name != "Verdict"]
ERRORS = [error for error in ERRORS if issubclass(error, GaelpError) and error.__module__ == errors.__name__]


@pytest.mark.parametrize(
    ("module", "names"), SURFACE.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_a_module_offers_exactly_these_names(module, names):
    assert set(module.__all__) == names


@pytest.mark.parametrize("module", [*SURFACE, errors], ids=lambda module: module.__name__)
def test_the_names_of_a_module_are_sorted_and_real(module):
    assert module.__all__ == sorted(module.__all__)
    assert [getattr(module, name) for name in module.__all__]


def test_the_arguments_of_invoke_agent_are_those_of_the_contract():
    parameters = inspect.signature(gaelp_tasks.invoke_agent.run).parameters
    names = " ".join(name for name in parameters if name not in ADDED)
    assert names == INVOKE_AGENT
    assert set(ADDED) < set(parameters)
    assert {name for name, one in parameters.items() if one.kind is not inspect.Parameter.KEYWORD_ONLY} == {
        "prompt"
    }
    defaults = {name: one.default for name, one in parameters.items() if one.default is not None}
    assert defaults == {"agent": "chat", "priority": 5}


def test_our_tasks_have_the_names_that_other_services_send():
    ours = {name for name in gaelp_tasks.app.tasks if name.startswith("gaelp.")}
    assert {"gaelp.invoke_agent", "gaelp.embed"} <= ours
    assert {name.split(".")[1] for name in ours} <= {
        "invoke_agent",
        "embed",
        "run_batch",
        "run_training_job",
        "maintenance",
    }


@pytest.mark.parametrize("verb", ["get", "ready", "stream", "astream", "events", "cancel", "revoke"])
def test_a_handle_has_the_verbs_of_the_contract(verb):
    assert callable(getattr(gaelp_tasks.InvocationHandle, verb))


def test_every_error_is_offered():
    assert {error.__name__ for error in ERRORS} | {"Verdict"} == set(errors.__all__)


def test_the_drawn_tree_names_every_error_with_its_verdict():
    drawn = {found["name"]: found["verdict"] for found in TREE.finditer(errors.__doc__)}
    drawn["NodeError"] = "retry"  # the drawing has a sentence there
    assert drawn == {error.__name__: error.verdict.value for error in ERRORS if error is not GaelpError}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_takes_one_sentence_so_that_celery_can_rebuild_it(error):
    assert str(error("Something was wrong here: do that.")) == "Something was wrong here: do that."
    assert isinstance(error.verdict, Verdict)
    assert error.__doc__


def test_an_error_of_a_node_says_which_and_how_long_to_wait():
    busy = NodeBusy("It is full.", node="http://127.0.0.1:1", retry_after_s=2.5)
    assert isinstance(busy, NodeError)
    assert (busy.node, busy.retry_after_s) == ("http://127.0.0.1:1", 2.5)
