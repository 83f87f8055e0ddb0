"""docs/agents.md says what is so: every block on the page is run, on a real worker beside a real engine."""

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from gaelp_tasks.demo.weights import fetch_minilm, fetch_smollm2
from support.model_server import ModelServer
from support.snippets import run, snippets, write_files
from support.worker import WorkerProcess

pytestmark = [pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "agents.md"
TEXT = PAGE.read_text()
BLOCKS = snippets(PAGE)


def section(block):
    """The heading under which a block stands."""
    before = TEXT.split("\n")[: int(block.name.partition(":")[2])]
    return next(line for line in reversed(before) if line.startswith("## ")).removeprefix("## ")


PROGRAMS = {(section(block), at): block for at, block in enumerate(BLOCKS) if not block.file}
#: GAELP_AGENTS, GAELP_TOOLS and GAELP_PARSERS, as the page says
NAMES = dict(re.findall(r"(GAELP_\w+)='(\{.*?\})'", TEXT))
#: what the program of a section prints, whatever the model says
PRINTED = {
    "Calling an agent": r"(?s).+",
    "Modes": r"(?s).+ [1-9]\d*\n$",
    "Structured answers": r"(True|False) [1-5]\n$",
    "Tools": r"(?s)(price \{'fruit': '(apple|pear)'.*\} (\{'cents': \d+\}|Error: .+)\n)+.*",
    "Documents and citations": r"(?s).+",
    "Parsers": r"\{'title': '.+', 'more': \d+\}\n$",
    "An agent of your own": r"(?s)pirate .+\nshouting [^a-z]+\necho Where is the gold\? \n$",
    "As a library, without a queue": r"(?s).+name='.*'.+'tool_runs': \[\{'name': 'add'.+\{'words': \d+\}\n$",
}


#: shown on larger models too: they are slower, and the engine is the same
ON_REAL_MODELS = ("Structured answers", "Tools", "Documents and citations", "An agent of your own")
#: on a real Ollama nothing makes so small a model call a tool: it is offered some, and answers
PRINTED_BY_OLLAMA = {"Tools": r"(?s).+"}


def ids(key):
    return key[0].replace(" ", "-")


def smollm2_server(folder):
    cache = Path(__file__).parents[2] / ".cache" / "models"
    models = {"smollm2:135m": fetch_smollm2(cache), "all-minilm": fetch_minilm(cache)}
    return ModelServer(folder, models=models, num_parallel=2)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    with smollm2_server(tmp_path_factory.mktemp("smollm2")) as server:
        yield server.url


@pytest.fixture(scope="module")
def start(broker, tmp_path_factory):
    """`start(node)` is a folder with the files of the page, and the settings of the worker beside them."""
    with ExitStack() as stack:
        begun = {}

        def beside(node):
            if node not in begun:
                stack.pop_all().close()  # one worker at a time, or another one might answer
                begun.clear()
                folder = tmp_path_factory.mktemp("page")
                write_files(BLOCKS, folder)
                settings = {"GAELP_BROKER_URL": broker.url, "GAELP_OLLAMA_NODES": node, **NAMES}
                more = {"PYTHONPATH": str(folder), "GAELP_NUM_PARALLEL": "2"}
                stack.enter_context(WorkerProcess(folder, **settings, **more))
                begun[node] = folder, settings
            return begun[node]

        yield beside


def look_at(place, key, printed=PRINTED):
    folder, settings = place
    out = run(PROGRAMS[key], folder, within_s=120, **settings)
    assert re.match(printed[key[0]], out), out


@pytest.mark.parametrize("key", PROGRAMS, ids=ids)
def test_a_program_of_the_page_runs_and_prints_what_it_should(start, node, key):
    look_at(start(node), key)


@pytest.mark.smollm2
@pytest.mark.timeout(300)
@pytest.mark.parametrize("key", [key for key in PROGRAMS if key[0] in ON_REAL_MODELS], ids=ids)
def test_it_does_so_with_the_real_small_model(start, smollm2, key):
    look_at(start(smollm2), key)


@pytest.mark.ollama
@pytest.mark.timeout(300)
@pytest.mark.parametrize("key", [key for key in PROGRAMS if key[0] in ON_REAL_MODELS], ids=ids)
def test_it_does_so_on_a_real_ollama(start, real_ollama, key):
    shown = requests.post(f"{real_ollama}/api/show", json={"model": "smollm2:135m"}, timeout=10).json()
    assert "tools" in shown["capabilities"]
    look_at(start(real_ollama), key, PRINTED | PRINTED_BY_OLLAMA)


def test_the_page_names_what_it_defines_and_every_section_with_a_program_is_looked_at():
    assert NAMES.keys() == {"GAELP_AGENTS", "GAELP_PARSERS", "GAELP_TOOLS"}
    assert PRINTED.keys() == {section for section, _ in PROGRAMS}
