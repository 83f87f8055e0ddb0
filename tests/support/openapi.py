"""What the API's own OpenAPI document says can be asked, for tests that ask all of it."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

VERBS = ("get", "post", "put", "patch", "delete")


class Operation(NamedTuple):
    """One method of one path."""

    method: str
    path: str  #: with {places}
    schema: dict[str, Any]

    def url(self, **places: Any) -> str:
        """The path with its places filled: those not given by 1."""
        return re.sub(r"{(\w+)(?::\w+)?}", lambda place: str(places.get(place[1], 1)), self.path)


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    """Every one in a document."""
    for path, item in document["paths"].items():
        for verb in VERBS:
            if verb in item:
                yield Operation(verb.upper(), path, item[verb])
