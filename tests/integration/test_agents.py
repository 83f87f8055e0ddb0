"""What agents make of their answers, through Redis, a real worker and a real engine."""

import pytest
from pydantic import BaseModel

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.errors import AnswerUnfit, InvalidInvocation
from gaelp_tasks.streams import End, Piece
from support.model_server import ModelServer
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine]

SENTENCE = {"num_predict": 200, "stop": ["."], "seed": 1}  # the model stops by itself
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


class Town(BaseModel):
    large: bool


@pytest.fixture(scope="module", autouse=True)
def _beside(broker, tmp_path_factory):
    """A worker beside models with room for a prompt full of documents."""
    folder = tmp_path_factory.mktemp("agents")
    with (
        ModelServer(folder, num_ctx=8192, num_parallel=1) as node,
        WorkerProcess(folder, GAELP_BROKER_URL=broker.url, GAELP_OLLAMA_NODES=node.url),
    ):
        yield


def test_of_documents_that_do_not_fit_some_are_chosen_by_their_embeddings_and_cited():
    documents = [
        {
            "title": f"Page {page}",
            "text": f"Page {page}. " + "The river finds a bridge near the harbour. " * 20,
        }
        for page in range(12)
    ]
    asked = invoke_agent.delay("A river?", agent="research", documents=documents, options=SENTENCE)
    result = asked.get(timeout=60)
    assert result["text"] == "".join(asked.stream(timeout=10))
    for citation in result["data"]["citations"]:
        page = documents[citation["document"]]
        assert page["text"][citation["start"] : citation["end"]] == citation["text"]
        assert citation["title"] == page["title"]
    assert result["usage"]["prompt_tokens"] > 1000


def test_a_critique_thinks_aloud_and_counts_all_three_calls():
    options = {"num_predict": 20}
    result = invoke_agent.delay("Why?", agent="reasoning", mode="critique", options=options).get(timeout=60)
    assert 20 < result["usage"]["completion_tokens"] <= 60
    once = invoke_agent.delay("Why?", agent="reasoning", options=options).get(timeout=60)
    assert result["usage"]["prompt_tokens"] > 3 * once["usage"]["prompt_tokens"]


def test_a_class_shapes_a_later_step_of_a_chain():
    first = invoke_agent.s("Name a town.", options=SENTENCE)
    last = (first | invoke_agent.s(format=Town, options={"num_predict": 100})).apply_async()
    Town.model_validate(last.get(timeout=60)["data"]["parsed"])


def test_an_answer_that_its_parser_refuses_fails_with_an_error_of_its_own_and_keeps_its_text():
    asked = invoke_agent.delay("Hello", parser="json", options=SENTENCE)
    with pytest.raises(AnswerUnfit, match="parser 'json' cannot take the answer"):
        asked.get(timeout=60)
    text = ""
    for event in asked.events():
        if isinstance(event, Piece):
            text += event.text
        elif isinstance(event, End):
            break
    assert (bool(text), event.facts["error"]) == (True, "AnswerUnfit")


def test_the_call_of_a_schema_comes_back_and_its_result_is_answered_in_the_next_invocation():
    question = {"role": "user", "content": "What is 1 + 1?"}
    [call] = invoke_agent.delay([question], tools=[ADD]).get(timeout=60)["tool_calls"]
    assert call["function"]["name"] == "add"
    talk = [
        question,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "add", "content": "2"},
    ]
    result = invoke_agent.delay(messages=talk, tools=[ADD], options=SENTENCE).get(timeout=60)
    assert (result["tool_calls"], bool(result["text"])) == ([], True)


@pytest.mark.parametrize(
    "arguments", [{"tools": ["rm"]}, {"agent": "reasoning", "mode": "bold"}, {"parser": "x"}]
)
def test_a_name_that_stands_for_nothing_fails_a_plain_senders_task_without_a_retry(arguments):
    sent = app.send_task("gaelp.invoke_agent", ["Hi"], arguments, queue="interactive")
    with pytest.raises(InvalidInvocation, match="there are: "):
        sent.get(timeout=30)
