"""The models that this server knows, by name; `x` and `x:latest` are the same."""

from collections.abc import Iterator

from gaelp_tasks.demo.model_server.faults import ApiError
from gaelp_tasks.demo.model_server.served_model import ServedModel


def full_name(name: str) -> str:
    """The name with its tag, `latest` where none is given."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class Registry:
    """Models in the order in which they were named on the command line."""

    def __init__(self, models: list[ServedModel]) -> None:
        self._models = {full_name(model.name): model for model in models}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def __contains__(self, name: str) -> bool:
        return full_name(name) in self._models

    def find(self, name: str) -> ServedModel:
        """The model of that name. Raises ApiError 404 in Ollama's words."""
        try:
            return self._models[full_name(name)]
        except KeyError:
            raise ApiError(404, f'model "{name}" not found, try pulling it first') from None

    async def close(self) -> None:
        """End every child."""
        for model in self:
            await model.close()
