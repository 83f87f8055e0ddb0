"""`gaelp run`, `embed`, `attach`, `cancel`: work from the command line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gaelp_tasks import embed as embed_task
from gaelp_tasks import invoke_agent
from gaelp_tasks.cli.answer import pieces, warn_without_worker
from gaelp_tasks.cli.output import Json, note, print_json
from gaelp_tasks.errors import InvalidInvocation
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.results import InvocationHandle

__all__ = ["ModelName", "attach", "cancel", "embed", "json_object", "run"]

Ids = Annotated[list[str], typer.Argument(help="Ids of invocations.")]
ModelName = Annotated[str | None, typer.Option(help="Model; the node's default if not given.")]
TierName = Annotated[Tier, typer.Option(help="How urgent it is.")]


def run(  # noqa: PLR0913  one option each
    prompt: Annotated[str, typer.Argument(help="What to ask; '-' reads it from standard input.")],
    *,
    agent: Annotated[str, typer.Option(help="Which agent answers.")] = "chat",
    model: ModelName = None,
    tier: TierName = Tier.INTERACTIVE,
    priority: Annotated[int, typer.Option(help="1 to 10 within the tier, 10 first.")] = 5,
    options: Annotated[str, typer.Option(help='Model options as JSON, {"temperature": 0}.')] = "{}",
    deadline: Annotated[float | None, typer.Option(help="Seconds until it is cut.")] = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is whole.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Print the id and do not wait.")] = False,
    as_json: Json = False,
) -> None:
    """Ask an agent and watch its answer come."""
    text = sys.stdin.read() if prompt == "-" else prompt
    handle = invoke_agent.delay(
        text,
        agent=agent,
        model=model,
        tier=tier.value,
        priority=priority,
        options=json_object(options),
        deadline_s=deadline,
    )
    warn_without_worker(tier)
    if detach:
        print(handle.id)
        return
    with _cancelled_by_ctrl_c(handle):
        if not (no_stream or as_json):
            _print_stream(handle)
        result = handle.get()
    if as_json:
        print_json(result)
    elif no_stream:
        print(result["text"])
    if result["stop_reason"] != "stop" and not as_json:
        note(f"It ended early: {result['stop_reason']}.")


def embed(
    texts: Annotated[list[str], typer.Argument(help="Texts to embed; '-' reads one per line.")],
    *,
    model: ModelName = None,
    tier: TierName = Tier.INTERACTIVE,
    as_json: Json = False,
) -> None:
    """Turn texts into vectors."""
    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    handle = embed_task.delay(texts, model=model, tier=tier.value)
    warn_without_worker(tier)
    with _cancelled_by_ctrl_c(handle):
        result = handle.get()
    if as_json:
        print_json(result)
        return
    for text, vector in zip(texts, result["embeddings"], strict=False):
        head = " ".join(f"{value:+.3f}" for value in vector[:4])
        print(f"{len(vector)} dimensions  {head} ...  {text[:60]}")


def attach(
    invocation_id: Annotated[str, typer.Argument(metavar="ID", help="Id of an invocation.")],
    *,
    as_json: Json = False,
) -> None:
    """Watch the stream of an invocation from its first token; Ctrl-C leaves it running."""
    handle: InvocationHandle = invoke_agent.AsyncResult(invocation_id)
    if as_json:
        for event in handle.events():
            if event is not None:
                name = type(event).__name__.lower()
                fields = {part: getattr(event, part) for part in event.__slots__ if part != "id"}
                print(json.dumps({"event": name, "id": event.id, **fields}, ensure_ascii=False), flush=True)
                if name == "end":
                    return
    _print_stream(handle)


def cancel(invocation_ids: Ids, *, as_json: Json = False) -> None:
    """Stop invocations, queued or running; their partial text is kept."""
    for invocation_id in invocation_ids:
        handle: InvocationHandle = invoke_agent.AsyncResult(invocation_id)
        handle.cancel()
    if as_json:
        print_json({"cancelled": invocation_ids})
    else:
        print(f"Asked {len(invocation_ids)} to stop; `gaelp show ID` tells what became of it.")


def _print_stream(handle: InvocationHandle) -> None:
    for piece in pieces(handle):
        print(piece, end="", flush=True)
    print()


def json_object(text: str) -> dict[str, Any]:
    """The value of --options. Raises InvalidInvocation."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidInvocation("--options must be a JSON object, for example '{\"temperature\": 0}'.")
    return value


@contextmanager
def _cancelled_by_ctrl_c(handle: InvocationHandle) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        handle.cancel()
        note(f"Cancelled {handle.id}.")
        raise typer.Exit(130) from None
