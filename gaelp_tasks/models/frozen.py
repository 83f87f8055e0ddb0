"""The base of all our data: immutable, strict about unknown fields, silent about its values in errors."""

from pydantic import BaseModel, ConfigDict

__all__ = ["Frozen"]


class Frozen(BaseModel):
    """A value: frozen, unknown fields and NaN refused, inputs kept out of error texts (may be prompts)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )
