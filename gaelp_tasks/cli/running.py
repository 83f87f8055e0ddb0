"""`gaelp run`, `embed`, `attach`: work from the command line."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gaelp_tasks import app, invoke_agent
from gaelp_tasks import embed as embed_task
from gaelp_tasks.cli.answer import pieces, printable, warn_without_worker
from gaelp_tasks.cli.output import Json, OneId, note, print_json
from gaelp_tasks.errors import GaelpError, InvalidInvocation, StreamUnavailable
from gaelp_tasks.lifecycle import State, state_of
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import Description, describe, whole_id
from gaelp_tasks.results import InvocationHandle

__all__ = ["ModelName", "attach", "embed", "json_object", "run", "unknown"]

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
    idempotency_key: Annotated[
        str | None, typer.Option(help="Asked again with the same key it runs once, and tells the same.")
    ] = None,
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
        idempotency_key=idempotency_key,
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
        print(printable(result["text"]))
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
    invocation_id: OneId,
    *,
    as_json: Json = False,
) -> None:
    """Watch the stream of an invocation from its first token; Ctrl-C leaves it running."""
    whole = whole_id(app, invocation_id)
    # two looks: between the parts of one, a short run may have moved on and ended
    if unknown(describe(app, whole)) and unknown(told := describe(app, whole)):
        note(told.why)
        raise typer.Exit(1)
    handle: InvocationHandle = invoke_agent.AsyncResult(whole)
    if as_json:
        _print_events(handle)
        return
    try:
        _print_stream(handle)
    except GaelpError:
        raise
    except Exception as error:
        if not handle.ready() or handle.successful():
            raise  # it is no failure of the invocation
        note(f"It ended without an answer: {type(error).__name__}: {error}")
        raise typer.Exit(1) from None


def _print_events(handle: InvocationHandle) -> None:
    """Each as a line of JSON, up to an end: where its stream has none, the result tells how it ended."""
    for event in handle.events():
        if event is not None:
            name = type(event).__name__.lower()
            fields = {part: getattr(event, part) for part in event.__slots__ if part != "id"}
            _print_line({"event": name, "id": event.id, **fields})
            if name == "end":
                return
    _print_line({"event": "end", "id": None, "claim": None, "facts": _facts_of_result(handle)})


def _print_line(told: dict[str, Any]) -> None:
    print(json.dumps(told, ensure_ascii=False, default=str), flush=True)


def _facts_of_result(handle: InvocationHandle) -> dict[str, Any]:
    """As those of an `End`; the text is among them, for it is in no stream."""
    result = handle.result
    reason = result.get("stop_reason") if isinstance(result, dict) else None
    outcome = state_of(handle.state, stop_reason=reason, in_queue=False).value
    if handle.successful():
        return {"outcome": outcome, "stop_reason": reason, "result": result}
    return {"outcome": outcome, "error": type(result).__name__, "message": str(result)}


def unknown(told: Description) -> bool:
    """Whether there is neither a place, a result nor a stream."""
    return told.state is State.UNKNOWN and not told.start and not told.end


def _print_stream(handle: InvocationHandle) -> None:
    """The text as it comes, or its result, which is kept for longer."""
    try:
        for piece in pieces(handle):
            print(piece, end="", flush=True)
        print()
    except StreamUnavailable:
        result = handle.get()
        if isinstance(result, dict) and "text" in result:
            print(printable(result["text"]))
        else:  # vectors, or another's task
            print_json(result)


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
