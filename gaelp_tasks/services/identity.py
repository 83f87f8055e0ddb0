"""Who asks: from a token to a caller."""

from gaelp_tasks.models.caller import Caller
from gaelp_tasks.services.tokens import Tokens
from gaelp_tasks.settings import Settings

__all__ = ["Identity"]


class Identity:
    """Recognises callers of one process. Raises SettingsError where no secret is set."""

    def __init__(self, settings: Settings) -> None:
        self._tokens = Tokens(settings)

    async def caller(self, token: str) -> Caller:
        """Who sent this token. Raises NotSignedIn."""
        return self._tokens.read(token).caller
