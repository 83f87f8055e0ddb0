"""A text that an answer shall rest on."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.frozen import Frozen, JsonText

__all__ = ["Document", "as_documents"]


class Document(Frozen):
    """One document; a plain text where one is expected counts as a document without a title."""

    text: Annotated[JsonText, Field(min_length=1)]
    title: JsonText = ""  #: how a citation names it; '': its number
    source: JsonText = ""  #: where it is from, for the reader: an address, a file; never fetched

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"text": value} if isinstance(value, str) else value

    @property
    def size_bytes(self) -> int:
        """Bytes of its texts."""
        return len(self.text.encode()) + len(self.title.encode()) + len(self.source.encode())


_documents = TypeAdapter(tuple[Document, ...])


def as_documents(given: Iterable[Any]) -> tuple[Document, ...]:
    """Texts, mappings and documents as documents. Raises InvalidInvocation."""
    try:
        return _documents.validate_python([given] if isinstance(given, str) else list(given))
    except (TypeError, ValidationError) as error:
        at = error.errors(include_input=False)[0]["loc"] if isinstance(error, ValidationError) else ()
        place = "".join(f".{part}" for part in at)
        raise InvalidInvocation(
            f"documents{place}: give texts, or mappings with a text that is not empty, and perhaps title and "
            "source."
        ) from None
