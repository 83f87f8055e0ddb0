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


def sample(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """The smallest value that a schema allows, for most schemas."""
    while "$ref" in schema or {"anyOf", "oneOf", "allOf"} & schema.keys():
        if "$ref" in schema:
            schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        else:
            schema = next(schema[kind][0] for kind in ("anyOf", "oneOf", "allOf") if kind in schema)
    for given in ("default", "const"):
        if given in schema:
            return schema[given]
    known = schema.get("properties", {})
    fewest = schema.get("minItems", 0)
    simple = {
        "object": {name: sample(known[name], document) for name in schema.get("required", ())},
        "array": [sample(schema["items"], document)] * fewest if fewest else [],
        "integer": schema.get("minimum", 1),
        "number": schema.get("minimum", 1),
        "boolean": False,
    }
    if "enum" in schema:
        return schema["enum"][0]
    return simple.get(schema.get("type", ""), "x" * max(1, schema.get("minLength", 1)))


def body_of(operation: Operation, document: dict[str, Any]) -> Any:
    """The smallest body that it takes; None where it takes none."""
    content = operation.schema.get("requestBody", {}).get("content", {})
    return sample(content["application/json"]["schema"], document) if "application/json" in content else None


def query_of(operation: Operation, document: dict[str, Any]) -> dict[str, Any]:
    """What its query must have."""
    asked = (one for one in operation.schema.get("parameters", ()) if one["in"] == "query")
    return {one["name"]: sample(one["schema"], document) for one in asked if one.get("required")}


def places_of(operation: Operation) -> list[str]:
    """The names in its path."""
    return re.findall(r"{(\w+)(?::\w+)?}", operation.path)
