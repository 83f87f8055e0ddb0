"""What a worker says at its start of names that stand for nothing it can import."""

from gaelp_tasks.settings import Settings
from gaelp_workers.names import warn_of_names

ENDING = " Runs that need it will fail here."


def test_each_name_that_cannot_be_imported_is_one_line(caplog, tmp_path, monkeypatch):
    (tmp_path / "broken_words.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(tmp_path)
    warn_of_names(
        Settings(
            agents={"pirate": "nowhere:Pirate"},
            parsers={"there": "json:loads", "gone": "json:gone"},
            tools={"price": "broken_words:price"},
        )
    )
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert [record.getMessage().removesuffix(ENDING) for record in caplog.records] == [
        "GAELP_AGENTS: agent 'pirate' is nowhere:Pirate, which fails: No module named 'nowhere'.",
        "GAELP_PARSERS: parser 'gone' is json:gone, which fails: module 'json' has no attribute 'gone'.",
        "GAELP_TOOLS: tool 'price' is broken_words:price, which fails: two lines.",
    ]


def test_what_can_be_imported_is_not_spoken_of(caplog):
    warn_of_names(
        Settings(agents={"mine": "gaelp_tasks.agents.chat:ChatAgent"}, tools={"dump": "json:dumps"})
    )
    assert caplog.records == []
