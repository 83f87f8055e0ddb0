"""A text that an answer shall rest on."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from gaelp_tasks.models.frozen import Frozen, JsonText

__all__ = ["Document"]


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
