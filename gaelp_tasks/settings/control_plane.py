"""Settings of the control plane: the API, its tokens, training jobs, money."""

from pydantic_settings import BaseSettings

__all__ = ["ControlPlane"]


class ControlPlane(BaseSettings):
    """What only `gaelp api`, and the parts that serve it, read."""
