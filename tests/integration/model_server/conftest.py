"""The demo model server as a process of its own, with the real engine and tiny models."""

from collections.abc import Iterator

import pytest

from gaelp_tasks.demo.tiny_model import write_tiny_chat_model
from support.chats import ENDING, SLOW
from support.model_server import ModelServer, slow_model, tiny_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        **tiny_models(folder),
        SLOW: slow_model(folder),
        ENDING: write_tiny_chat_model(folder / "ending.gguf", sentences=3),
    }


@pytest.fixture(scope="module")
def server(models, tmp_path_factory) -> Iterator[ModelServer]:
    with ModelServer(tmp_path_factory.mktemp("server"), models=models) as running:
        yield running
