"""One loaded model: the handle on its child process, and our few calls to llama.cpp's server in it."""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import psutil

from gaelp_tasks.demo.model_server.faults import ApiError, EngineFailed

_CHILD = Path(__file__).with_name("engine_child.py")
_STOP_GRACE_S = 2.0


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What a child is started with; `num_ctx` is in tokens for each of its `slots`."""

    path: str
    embed: bool
    slots: int
    num_ctx: int
    threads: int
    verbosity: int = 1


@dataclass(frozen=True, kw_only=True)
class End:
    """How a generation ended, in Ollama's terms; durations in nanoseconds."""

    done_reason: str
    prompt_eval_count: int
    prompt_eval_duration: int
    eval_count: int
    eval_duration: int


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Text that arrived together, one string per token, and the end if it came too."""

    texts: Sequence[str]
    end: End | None


class Engine:
    """A running child; made by `start`, useless after `stop` or once `is_alive` is False."""

    def __init__(self, process: Process, url: str, http: aiohttp.ClientSession) -> None:
        self._process = process
        self._url = url
        self._http = http
        self._is_broken = False

    @classmethod
    async def start(cls, spec: EngineSpec, http: aiohttp.ClientSession) -> Self:
        """Spawn the child and wait until its model is loaded. Raises EngineFailed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            _CHILD,
            json.dumps({**asdict(spec), "parent_pid": os.getpid()}),
            stdin=PIPE,
            stdout=PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(spec.threads), "OMP_WAIT_POLICY": "passive"},
        )
        assert process.stdout is not None  # noqa: S101  PIPE was asked for
        try:
            url = _url_in(await process.stdout.readline(), spec)
        except BaseException:
            await _end(process)
            raise
        return cls(process, url, http)

    @property
    def is_alive(self) -> bool:
        """Whether the child still runs and answers."""
        return self._process.returncode is None and not self._is_broken

    @property
    def resident_bytes(self) -> int:
        """Memory of the child that is in RAM, its share of the mapped file included; 0 once it is gone."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    async def stop(self) -> None:
        """End the child and wait for it; what it was doing is lost."""
        await _end(self._process)

    async def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that the model's own chat template makes of `messages`."""
        answer = await self._post("/apply-template", {"messages": messages})
        return str(answer["prompt"])

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`, with the marks that the model puts around a text."""
        answer = await self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return list(answer["tokens"])

    async def embed(self, inputs: Sequence[str | list[int]]) -> tuple[list[list[float]], int]:
        """One unit vector per text (or list of token ids), and the number of tokens read."""
        answer = await self._post("/v1/embeddings", {"input": inputs})
        ordered = sorted(answer["data"], key=lambda item: item["index"])
        return [item["embedding"] for item in ordered], answer["usage"]["prompt_tokens"]

    async def processing(self) -> int:
        """Slots that are computing at this moment, as the engine itself says."""
        async with self._talking(), self._http.get(self._url + "/slots") as response:
            return sum(slot["is_processing"] for slot in await response.json())

    async def complete(self, request: Mapping[str, Any]) -> AsyncGenerator[Pieces]:
        """Generate from a `prompt` or from `messages`; leaving the iterator early stops the model.

        A `json_schema` needs `messages`: with a `prompt` the engine drops a schema that it cannot compile and
        writes what it likes. It looks for a closed connection only when it has something to send, hence
        `stream` and `return_progress` always: the latter sends a line after each batch of the prompt.
        """
        path = "/v1/chat/completions" if "messages" in request else "/completion"
        body = {**request, "stream": True, "return_progress": True}
        async with self._talking(), self._http.post(self._url + path, json=body) as response:
            try:
                await _raise_for_status(response)
                rest = b""
                async for received in response.content.iter_any():
                    *lines, rest = (rest + received).split(b"\n")
                    pieces = _read(lines)
                    if pieces.texts or pieces.end:
                        yield pieces
                    if pieces.end:
                        return
            finally:
                response.close()
        raise EngineFailed("the model's engine ended its answer without saying why")

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._talking(), self._http.post(self._url + path, json=body) as response:
            await _raise_for_status(response)
            return await response.json()

    @contextlib.asynccontextmanager
    async def _talking(self) -> AsyncIterator[None]:
        try:
            yield
        except aiohttp.ClientError as error:
            self._is_broken = True
            raise EngineFailed(
                "the model's engine stopped unexpectedly; the next request starts it anew"
            ) from error


def _url_in(report: bytes, spec: EngineSpec) -> str:
    answer = json.loads(report) if report else {"error": "its process ended while loading"}
    if "error" in answer:
        raise EngineFailed(f"the model in {spec.path} could not be loaded: {answer['error']}")
    return str(answer["url"])


def _read(lines: Sequence[bytes]) -> Pieces:
    texts = []
    for line in lines:
        field, _, value = line.partition(b": ")
        if field == b"error":
            raise EngineFailed(_message(json.loads(value)))
        if field != b"data":
            continue
        event = json.loads(value.decode())  # from bytes it would guess the encoding of each
        if "error" in event:
            raise EngineFailed(_message(event["error"]))
        text, reason = _text_and_reason(event)
        if text:
            texts.append(text)
        if reason is not None:
            return Pieces(texts=texts, end=_end_of(reason, event["timings"]))
    return Pieces(texts=texts, end=None)


def _text_and_reason(event: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """An event of either endpoint; the reason is None until the last."""
    if "choices" in event:
        (choice,) = event["choices"]
        return choice["delta"].get("content"), choice["finish_reason"]
    return event["content"], event["stop_type"] if event["stop"] else None


def _end_of(reason: str, timings: Mapping[str, Any]) -> End:
    return End(
        done_reason="length" if reason in {"limit", "length"} else "stop",
        prompt_eval_count=timings["cache_n"] + timings["prompt_n"],
        prompt_eval_duration=int(timings["prompt_ms"] * 1e6),
        eval_count=timings["predicted_n"],
        eval_duration=int(timings["predicted_ms"] * 1e6),
    )


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status >= 400:  # noqa: PLR2004  HTTP
        raise ApiError(response.status, _message((await response.json())["error"]))


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


async def _end(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_GRACE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
