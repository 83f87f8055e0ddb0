"""One Ollama server, asked synchronously; what goes wrong is a NodeError of one sentence."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import requests
import typer

from gaelp_tasks.clients import ModelInfo, wire
from gaelp_tasks.clients.requests import keep_alive_value
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import ModelMissing, NodeError, NodeFailed, NodeUnreachable, RequestRefused
from gaelp_tasks.footprints import ModelShape
from gaelp_tasks.settings import Settings

__all__ = ["Away", "Listed", "Server", "address", "chosen"]

ASK_S = 5.0  #: for small questions
PULL_SILENCE_S = 1800.0  #: a server that checks what it has pulled says nothing meanwhile
NOT_FOUND = 404
MAX_DETAIL = 300  #: characters of a server's own words


class Away(NodeUnreachable):
    """No answer from a server; its sentence is the reason and the advice."""

    def __init__(self, node: str, reason: str, advice: str) -> None:
        super().__init__(f"{node} {reason}: {advice}.", node=node)
        self.reason = reason
        self.advice = advice


class Listed(NamedTuple):
    """A model on a server's disk, and what it takes in memory."""

    name: str
    size_bytes: int  #: of its files
    digest: str
    family: str
    capabilities: tuple[str, ...]  #: () where the server does not tell
    context: int  #: tokens: of the loaded one, else what it was trained for; 0 where the server does not tell
    memory_bytes: int  #: 0 when it is not in memory
    expires_at: str  #: when it leaves memory if nobody uses it, ISO 8601; '' when it is not there


class Server:
    """A client of one address of GAELP_OLLAMA_NODES. Raises Away, NodeFailed, ModelMissing."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.name = address(url)
        self._url = url.rstrip("/")
        self._settings = settings
        self._session = requests.Session()
        self._session.headers.update(
            {name: value.get_secret_value() for name, value in settings.ollama_headers.items()}
        )
        self._session.verify = settings.ollama_ca_file or True
        self._session.trust_env = False  # no proxy and no ~/.netrc: the worker does not go that way either

    def version(self) -> dict[str, Any]:
        """What /api/version says."""
        return self._document("GET", "/api/version")

    def names(self) -> list[str]:
        """Of the models on its disk."""
        return [str(model["name"]) for model in self._models("/api/tags")]

    def loaded(self) -> dict[str, dict[str, Any]]:
        """The models in memory by name, as /api/ps tells them."""
        return {str(model["name"]): model for model in self._models("/api/ps")}

    def models(self) -> list[Listed]:
        """The models on its disk, in its order."""
        in_memory = self.loaded()
        try:
            return [
                self._listed(model, in_memory.get(model["name"], {})) for model in self._models("/api/tags")
            ]
        except (ValueError, TypeError, AttributeError):
            raise self._foreign() from None

    def find(self, model: str) -> Listed:
        """One model; `x` and `x:latest` are the same. Raises ModelMissing."""
        for found in self.models():
            if canonical(found.name) == canonical(model):
                return found
        raise self._missing(model)

    def infos(self) -> tuple[ModelInfo, ...]:
        """The models on its disk, by what the list itself tells."""
        return wire.models(self._answer("/api/tags"), self.name)

    def shapes(self, names: Collection[str] = ()) -> list[ModelShape]:
        """What the memory of these models depends on; of all on its disk where none is named."""
        infos = {canonical(info.name): info for info in self.infos()}
        wanted = list(dict.fromkeys(canonical(name) for name in names)) or list(infos)
        if missing := [name for name in wanted if name not in infos]:
            raise self._missing(missing[0])
        return [self._shape(infos[name]) for name in wanted]

    def running(self) -> tuple[wire.Running, ...]:
        """The models in memory, with what they take."""
        return wire.running(self._answer("/api/ps"), self.name)

    def pull(self, model: str) -> Iterator[dict[str, Any]]:
        """Fetch a model; what the server says of it until it is there. Raises NodeFailed where it fails.

        Leaving early stops it; what has come stays on the server, which goes on from there.
        """
        done = False
        request = {"model": model, "stream": True}
        with self._ask("POST", "/api/pull", request, stream=True, read_s=PULL_SILENCE_S) as reply:
            try:
                for line in reply.iter_lines():
                    told = self._read(line) if line else {}
                    if "error" in told:
                        raise NodeFailed(self._words(f"cannot pull '{model}'", told["error"]), node=self.name)
                    done = done or told.get("status") == "success"
                    yield told
            except requests.RequestException:
                done = False
        if not done:
            raise NodeFailed(
                f"{self.name} broke off while it pulled '{model}': pull again, it goes on where it was.",
                node=self.name,
            )

    def load(self, model: str, *, embeds: bool) -> None:
        """Have a model in memory, for as long and with the context that the settings say."""
        settings = self._settings
        request: dict[str, Any] = {"model": model, "keep_alive": keep_alive_value(settings.keep_alive_s)}
        if settings.num_ctx > 0:
            request["options"] = {"num_ctx": settings.num_ctx}
        path, nothing = ("/api/embed", {"input": ""}) if embeds else ("/api/generate", {"stream": False})
        self._document("POST", path, request | nothing, read_s=settings.load_timeout_s)

    def unload(self, model: str) -> None:
        """Let a model go as soon as nothing runs on it."""
        request = {"model": model, "keep_alive": 0, "stream": False}
        try:
            self._document("POST", "/api/generate", request)
        except RequestRefused:  # some servers generate nothing with an embedding model, not even that
            self._document("POST", "/api/embed", request | {"input": ""})

    def close(self) -> None:
        """Give back its connections."""
        self._session.close()

    def _shape(self, info: ModelInfo) -> ModelShape:
        asked = {"model": info.name}
        shape = wire.shape(self._answer("/api/show", asked), info, self.name)
        if shape is not None:
            return shape
        return wire.whole_shape(self._answer("/api/show", asked | {"verbose": True}), info, self.name)

    def _answer(self, path: str, request: Mapping[str, Any] | None = None) -> bytes:
        with self._ask("GET" if request is None else "POST", path, request, read_s=ASK_S) as reply:
            return reply.content

    def _listed(self, model: dict[str, Any], in_memory: dict[str, Any]) -> Listed:
        details = model.get("details") or {}
        capabilities, context = model.get("capabilities") or (), in_memory.get("context_length") or 0
        if not capabilities or not context:
            shown = self._document("POST", "/api/show", {"model": model["name"]})
            capabilities = capabilities or shown.get("capabilities") or ()
            info = shown.get("model_info") or {}
            lengths = (value for name, value in info.items() if name.endswith(".context_length"))
            context = context or next(lengths, 0)
        return Listed(
            name=str(model["name"]),
            size_bytes=int(model.get("size") or 0),
            digest=str(model.get("digest") or ""),
            family=str(details.get("family") or ""),
            capabilities=tuple(map(str, capabilities)),
            context=int(context),
            memory_bytes=int(in_memory.get("size") or 0),
            expires_at=str(in_memory.get("expires_at") or ""),
        )

    def _models(self, path: str) -> list[dict[str, Any]]:
        found = self._document("GET", path).get("models") or []
        if not isinstance(found, list) or not all(isinstance(one, dict) and "name" in one for one in found):
            raise self._foreign()
        return found

    def _document(
        self, method: str, path: str, request: Mapping[str, Any] | None = None, *, read_s: float = ASK_S
    ) -> dict[str, Any]:
        with self._ask(method, path, request, read_s=read_s) as reply:
            return self._read(reply.content)

    def _ask(
        self,
        method: str,
        path: str,
        request: Mapping[str, Any] | None,
        *,
        stream: bool = False,
        read_s: float,
    ) -> requests.Response:
        try:
            reply = self._session.request(
                method,
                self._url + path,
                json=request,
                stream=stream,
                timeout=(self._settings.connect_timeout_s, read_s),
                allow_redirects=False,  # our headers are meant for this server
            )
        except requests.RequestException as error:
            raise self._away(error, read_s) from error
        if reply.status_code == requests.codes.ok:
            return reply
        with reply:
            self._refuse(reply, path, str((request or {}).get("model", "")))
        raise AssertionError(reply)  # _refuse raised

    def _refuse(self, reply: requests.Response, path: str, model: str) -> None:
        try:
            detail = json.loads(reply.content)["error"]
        except (ValueError, LookupError, TypeError):
            detail = f"it answered {path} with status {reply.status_code}"
        if path == "/api/pull":
            raise NodeFailed(self._words(f"cannot pull '{model}'", detail), node=self.name)
        if reply.status_code == NOT_FOUND and model:
            raise self._missing(model)
        kind = RequestRefused if reply.status_code < 500 else NodeFailed  # noqa: PLR2004  HTTP: whose fault it is
        raise kind(self._words("refuses", detail), node=self.name)

    def _read(self, text: bytes) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise self._foreign()
        return document

    def _words(self, what: str, detail: object) -> str:
        words = " ".join(str(detail).split())[:MAX_DETAIL].rstrip(".")
        return f"{self.name} {what}: {words}."

    def _missing(self, model: str) -> NodeError:
        words = f"{self.name} has no model '{model}'; pull it there: gaelp models pull {model}."
        return ModelMissing(words, node=self.name)

    def _foreign(self) -> NodeError:
        return NodeFailed(
            f"{self.name} does not answer as Ollama does: check GAELP_OLLAMA_NODES.", node=self.name
        )

    def _away(self, error: requests.RequestException, read_s: float) -> Away:
        if isinstance(error, requests.ConnectTimeout):
            within = f"took no connection within {self._settings.connect_timeout_s:g} s"
            return Away(self.name, within, "see whether its machine is up, or set GAELP_OLLAMA_NODES")
        if isinstance(error, requests.Timeout):
            return Away(self.name, f"did not answer within {read_s:g} s", "it hangs; restart it")
        cause = _cause(error)
        why = f"cannot be reached ({cause})" if cause else "cannot be reached"
        return Away(self.name, why, "start it (`ollama serve`), or set GAELP_OLLAMA_NODES")


@contextmanager
def chosen(node: str, settings: Settings) -> Iterator[list[Server]]:
    """The nodes of the settings, or one of them, or whatever address is given. Raises BadParameter."""
    urls = settings.ollama_nodes
    if node:
        if not node.startswith(("http://", "https://")):
            raise typer.BadParameter(f"{node} is no http:// or https:// address.", param_hint="--node")
        # as the settings write it: there it may carry a password
        urls = tuple(url for url in urls if address(url) == address(node)) or (node,)
    servers = [Server(url, settings) for url in urls]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def _cause(error: BaseException) -> str:
    """What the system said, 'Connection refused'; '' where it was something else."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return str(cause.strerror)
        cause = cause.__cause__ or cause.__context__
    return ""


def address(url: str) -> str:
    """The address without user and password, as people see it and as workers announce it."""
    parts = urlsplit(url.rstrip("/"))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
