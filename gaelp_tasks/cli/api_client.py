"""How the verbs of the control plane ask `gaelp api`: over HTTP, signed in by GAELP_API_TOKEN."""

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
import typer

from gaelp_tasks.errors import (
    BudgetExceeded,
    Conflict,
    GaelpError,
    InvalidInvocation,
    NotAllowed,
    NotFound,
    NotSignedIn,
    QueueFull,
)
from gaelp_tasks.settings import Settings, load_settings, masked

__all__ = ["Api", "api", "read_json"]

ANSWER_S = 30.0  #: an API that says nothing for longer does not answer
PIECE_BYTES = 64 * 1024  #: of a long answer at once
PAGE = 500  #: entries of a list in one answer
#: what a refusal is here; any other is a GaelpError
KINDS: Mapping[int, type[GaelpError]] = {
    401: NotSignedIn,
    402: BudgetExceeded,
    403: NotAllowed,
    404: NotFound,
    409: Conflict,
    422: InvalidInvocation,
    429: QueueFull,
}
TOKEN = "GAELP_API_TOKEN is not set: `gaelp token create` prints a token."  # noqa: S105  a sentence


class _Bearer(requests.auth.AuthBase):
    """So that no .netrc of this user takes the token's place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class Api:
    """An API as one user; every refusal is one sentence."""

    def __init__(self, settings: Settings) -> None:
        self.url = settings.api_url.rstrip("/")
        self._token = settings.api_token.get_secret_value()
        self._session = requests.Session()
        self._session.auth = _Bearer(self._token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its connections."""
        self._session.close()

    def get(self, path: str, **query: Any) -> Any:
        """What lies at a path below /api/v1, such as "agents/5". Raises GaelpError, as all of these do."""
        return self.send("GET", path, query=query)

    def post(self, path: str, body: Any = None, **query: Any) -> Any:
        """Make or start something; the object that is told back."""
        return self.send("POST", path, body=body, query=query)

    def put(self, path: str, body: Any = None, **query: Any) -> Any:
        """Set something."""
        return self.send("PUT", path, body=body, query=query)

    def patch(self, path: str, body: Any = None, **query: Any) -> Any:
        """Change a part of something."""
        return self.send("PATCH", path, body=body, query=query)

    def delete(self, path: str, **query: Any) -> Any:
        """Take something away; None where nothing is told back."""
        return self.send("DELETE", path, query=query)

    def every(self, path: str, **query: Any) -> Iterator[Any]:
        """Every entry of a list, asked for page by page."""
        skip = 0
        while page := self.get(path, skip=skip, limit=PAGE, **query):
            yield from page
            if len(page) < PAGE:
                return
            skip += PAGE

    def send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Ask; the JSON of the answer, None for an empty one. A query leaves out what is None."""
        answer = self._answer(method, path, body=body, query=query, headers=headers)
        if not answer.content:
            return None
        try:
            return answer.json()
        except ValueError:
            raise GaelpError(f"What answers at {masked(self.url)} is not our API: it told no JSON.") from None

    def lines(self, path: str, **query: Any) -> Iterator[str]:
        """An answer of any length, line by line, each with its end."""
        with self._answer("GET", path, query=query, stream=True) as answer:
            answer.encoding = "utf-8"
            rest = ""
            try:
                for piece in answer.iter_content(PIECE_BYTES, decode_unicode=True):
                    *whole, rest = f"{rest}{piece}".split("\n")
                    yield from (f"{line}\n" for line in whole)
            except requests.RequestException as error:
                raise GaelpError(
                    f"The API at {masked(self.url)} broke off ({_cause(error)}): this is not all."
                ) from None
            if rest:
                yield rest

    def _answer(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self.url}/api/v1/{path.lstrip('/')}"
        try:
            answer = self._session.request(
                method,
                url,
                json=body,
                params=given,
                headers=headers,
                timeout=ANSWER_S,
                allow_redirects=False,
                stream=stream,
            )
        except requests.RequestException as error:
            raise GaelpError(
                f"The API at {masked(self.url)} does not answer ({_cause(error)}): `gaelp api` starts one, "
                "and GAELP_API_URL says where it is."
            ) from None
        if not answer.ok or answer.is_redirect:
            raise self._refusal(answer)
        return answer

    def _refusal(self, answer: requests.Response) -> GaelpError:
        kind = KINDS.get(answer.status_code, GaelpError)
        if answer.status_code == 401 and not self._token:  # noqa: PLR2004
            return kind(TOKEN)
        try:
            told = answer.json()["detail"]
        except (ValueError, LookupError, TypeError):
            where = masked(self.url)
            return GaelpError(f"The API at {where} refused: {answer.status_code} {answer.reason}.")
        return kind(_sentence(told))


@cache
def api() -> Api:
    """That of this process's settings."""
    return Api(load_settings())


def _sentence(told: Any) -> str:
    """The detail of a refusal: a sentence, or a list of what is wrong in a body."""
    if not isinstance(told, list):
        return str(told)
    wrong = [f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {one['msg']}" for one in told]
    return f"{'; '.join(wrong)}."


def _cause(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"nothing came within {ANSWER_S:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate does not hold"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__


def read_json(file: str) -> Any:
    """The JSON of a file; '-': of standard input. Raises BadParameter."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        return json.loads(text)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise typer.BadParameter(f"{file} cannot be read: {why}.") from None
