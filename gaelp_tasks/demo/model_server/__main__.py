"""`python -m gaelp_tasks.demo.model_server --model NAME=PATH`: serve models on loopback."""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from gaelp_tasks.demo.model_server.app import NamedModel, build_app
from gaelp_tasks.demo.model_server.check import check_engine
from gaelp_tasks.demo.model_server.gguf_info import NotGguf, read_gguf
from gaelp_tasks.demo.model_server.served_model import Limits
from gaelp_tasks.demo.model_server.wire import seconds

_OLLAMAS_PORT = 11434
_SHUTDOWN_GRACE_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; print one JSON line when ready; 0 after SIGTERM or SIGINT, 2 for what cannot be served."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    try:
        models = [_named_model(text) for text in arguments.model]
        listener = _listen(arguments.port)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  a sentence for the person who typed the command
        return 2
    if (problem := check_engine()) is not None:
        print(f"error: {problem}", file=sys.stderr)  # noqa: T201  as above
        return 2
    limits = Limits(
        num_parallel=arguments.num_parallel,
        num_ctx=arguments.num_ctx,
        max_queue=arguments.max_queue,
        threads=arguments.threads,
        keep_alive_s=arguments.keep_alive,
    )
    asyncio.run(_serve(models, limits, listener))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gaelp_tasks.demo.model_server",
        description="A small stand-in for Ollama, on loopback only.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default); 11434 is Ollama's")
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME=PATH[:chat|embed]",
        help="a GGUF file and the name to serve it under; may be repeated",
    )
    parser.add_argument("--num-parallel", type=_positive, default=4, help="slots per model (default 4)")
    parser.add_argument("--num-ctx", type=_positive, default=2048, help="tokens per slot (default 2048)")
    parser.add_argument(
        "--max-queue", type=int, default=64, help="requests that may wait per model (default 64)"
    )
    parser.add_argument("--threads", type=_positive, default=1, help="compute threads per model (default 1)")
    parser.add_argument(
        "--keep-alive",
        type=_keep_alive,
        default=300.0,
        help='seconds, or "5m"; negative is for ever (default 300)',
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _keep_alive(text: str) -> float:
    try:
        number: object = float(text)
    except ValueError:
        number = text
    return seconds(number) or 0.0


def _named_model(text: str) -> NamedModel:
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise ValueError(f'--model "{text}" is not of the form NAME=PATH')
    path, colon, kind = file.rpartition(":")
    if not colon or kind not in {"chat", "embed"}:
        path, kind = file, ""
    try:
        info = read_gguf(Path(path))
    except (OSError, NotGguf) as error:
        raise ValueError(f'--model "{text}" cannot be read: {error}') from error
    return NamedModel(name=name, info=info, embed=kind == "embed" or (not kind and info.is_encoder))


def _listen(port: int) -> socket.socket:
    if port == _OLLAMAS_PORT:
        raise ValueError(f"port {port} belongs to a real Ollama; give another one, or 0 for any free one")
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise OSError(f"port {port} of 127.0.0.1 cannot be used: {os.strerror(error.errno or 0)}") from error


async def _serve(models: Sequence[NamedModel], limits: Limits, listener: socket.socket) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(
        build_app(models, limits),
        access_log=None,
        handler_cancellation=True,  # a client that hangs up stops its request
        shutdown_timeout=_SHUTDOWN_GRACE_S,
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    address, port = listener.getsockname()
    print(json.dumps({"url": f"http://{address}:{port}", "pid": os.getpid()}), flush=True)  # noqa: T201  the protocol
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
