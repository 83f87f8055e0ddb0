"""Code blocks: nested, indented, with tildes, named, never closed; and the agent that hands them out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaelp_tasks.agents import CodingAgent
from gaelp_tasks.clients import ScriptedClient
from gaelp_tasks.texts.fences import CodeBlock, blocks

code_lines = st.text(alphabet="ab `~#\t\u20ac", max_size=12)
codes = st.lists(code_lines, min_size=1, max_size=6).map("\n".join)
languages = st.sampled_from(["", "python", "c++", "JavaScript", "objective-c"])


def block(language, text, name=""):
    return CodeBlock(language=language, text=text, name=name)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no code, only `a span` of it", []),
        ("```\na\n```", [block("", "a")]),
        ("```py\na\n\nb\n```\nand\n```js\nc\n```", [block("py", "a\n\nb"), block("js", "c")]),
        ("~~~ruby\na\n```\nb\n~~~", [block("ruby", "a\n```\nb")]),
        ("````md\n```py\na\n```\n````", [block("md", "```py\na\n```")]),
        ("```md\n```py\na\n```\nb\n```\nc", [block("md", "```py\na\n```\nb")]),
        ("```py\na\n`````", [block("py", "a")]),
        ("`````py\na\n```\nb\n`````", [block("py", "a\n```\nb")]),
        ("1. So:\n   ```py\n   if a:\n       b\n\n   ```", [block("py", "if a:\n    b\n")]),
        ("\t```\n\ta\n\t```", [block("", "a")]),
        ("    ```py\n  shallow\n    ```", [block("py", "shallow")]),
        ("```py\na\nb", [block("py", "a\nb")]),
        ("```py\na\n", [block("py", "a")]),
        ("```py", [block("py", "")]),
        ("```\n```", [block("", "")]),
        ("```a``` is a span\n```b\nc\n```", [block("b", "c")]),
        ("```py\r\na\r\n```\r\n", [block("py", "a\r")]),
        ("text ```py\na\n```", [block("", "")]),
    ],
)
def test_the_blocks_of_a_text(text, found):
    assert blocks(text) == found


@pytest.mark.parametrize(
    ("info", "language", "name"),
    [
        ("Python", "python", ""),
        ('python title="a b.py"', "python", "a b.py"),
        ("python filename='a.py' hl", "python", "a.py"),
        ("{.python title=a.py}", "python", "a.py"),
        ("python:src/a.py", "python", "src/a.py"),
        ("python src/a.py", "python", "src/a.py"),
        ("src/a.py", "py", "src/a.py"),
        ('title="a.py"', "", "a.py"),
        ("c++", "c++", ""),
        ("objective-c", "objective-c", ""),
        ("python linenos", "python", ""),
        (".env", "env", ""),
        ("???", "", ""),
    ],
)
def test_language_and_file_name_are_read_from_the_fence(info, language, name):
    assert blocks(f"```{info}\nx\n```") == [block(language, "x", name)]


@given(codes, languages, st.sampled_from("`~"), st.text(alphabet="xy .\n", max_size=20))
def test_any_code_comes_back_from_a_fence_that_is_longer_than_all_in_it(code, language, mark, prose):
    fence = mark * (max(3, len(code)) + 1)
    assert blocks(f"{prose}\n{fence}{language}\n{code}\n{fence}\n{prose}") == [block(language.lower(), code)]


@given(st.text(alphabet='`~ab \n\r\t="{}.', max_size=80))
def test_no_text_is_too_strange_and_every_line_of_a_block_is_one_of_the_text(text):
    lines = {line.lstrip(" \t") for line in text.split("\n")}
    for found in blocks(text):
        assert {line.lstrip(" \t") for line in found.text.split("\n")} <= lines | {""}


@given(codes, st.integers(0, 60))
def test_a_block_that_was_cut_anywhere_begins_as_the_whole_one(code, at):
    fence = "`" * (len(code) + 3)
    cut = f"{fence}py\n{code}"[: len(fence) + 3 + at]
    [found] = blocks(cut)
    assert code.startswith(found.text)


async def test_the_coding_agent_hands_out_the_code_with_its_last_chunk():
    client = ScriptedClient(["Here:\n``", "`python a.py\nx = ", "1\n```\nand\n", "```\ncut"])
    chunks = [chunk async for chunk in CodingAgent(client).run("Hi")]
    assert [chunk.data for chunk in chunks[:-1]] == [None] * 4
    assert chunks[-1].done
    assert chunks[-1].data == {
        "code": [
            {"language": "python", "text": "x = 1", "name": "a.py"},
            {"language": "", "text": "cut"},
        ]
    }
