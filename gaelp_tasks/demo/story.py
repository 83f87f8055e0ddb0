"""The story of `make demo`: one program that uses a running system as any service would.

Its texts are real, its models are whatever the node has; it claims nothing that it has not just measured.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import aclosing, nullcontext, suppress
from math import sqrt
from time import monotonic

from celery.exceptions import TimeoutError as CeleryTimeout
from rich.console import Console
from rich.live import Live

from gaelp_tasks import app, embed, invoke_agent
from gaelp_tasks.demo.passages import PASSAGES, QUESTION
from gaelp_tasks.demo.scene import Act, Scene, node_shown, results_table
from gaelp_tasks.errors import GaelpError, ModelMissing
from gaelp_tasks.overview import live_nodes

__all__ = ["main"]

SILENCE_S = 300.0  # a real Ollama may first have to load a large model
LONG_ENOUGH_CHARACTERS = 240  # of the long run, before it is cancelled
LOOK_S = 0.1
QUIET_S = 5.0  # a node announces what it is doing within its poll interval
PLAIN_COLUMNS = 110


def main() -> int:
    """Tell it; 0 when every invocation did what it was asked, 1 otherwise, 130 after Ctrl-C."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_COLUMNS)
    try:
        for node in live_nodes(app):
            console.print(f"[bold]{node.worker}[/] runs agents on {node.url}: {node_shown(node)}\n")
        search(console)
        scene = asyncio.run(three_tiers(console))
    except KeyboardInterrupt:
        return 130
    except (GaelpError, CeleryTimeout) as error:
        console.print(f"[red]{error}[/]")
        return 1
    tell(console, scene)
    return 1 if any(act.error for act in scene.acts) else 0


def search(console: Console) -> None:
    """Embeddings: which of our sentences answers the question? Raises GaelpError."""
    console.rule("[bold]1  Embeddings: search by meaning", align="left")
    sentences = [sentence for passage in PASSAGES.values() for sentence in passage.splitlines()]
    began = monotonic()
    try:
        vectors = embed.delay([QUESTION, *sentences]).get(timeout=SILENCE_S)["embeddings"]
    except ModelMissing as missing:
        console.print(f"Left out, for this node cannot embed: {missing}")
        return
    question, *others = vectors
    likeness, best = max((cosine(question, other), at) for at, other in enumerate(others))
    console.print(
        f"{len(vectors)} texts became vectors of {len(question)} numbers in {monotonic() - began:.1f} s.\n"
        f"  asked    {QUESTION}\n"
        f"  nearest  {sentences[best]} [dim](cosine {likeness:.2f})[/]"
    )


def cosine(one: list[float], other: list[float]) -> float:
    """Likeness of two vectors, 1 for the same direction."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / sqrt(sum(a * a for a in one) * sum(b * b for b in other))


async def three_tiers(console: Console) -> Scene:
    """Background and batch work fills the slots; then somebody asks. Every stream is read as it comes."""
    console.rule("[bold]2  Three tiers at once, every answer streamed", align="left")
    scene = Scene()

    def ended(act: Act) -> None:
        if not console.is_terminal:
            console.print(
                f"{monotonic() - scene.began:5.1f} s  {act.tier:<12}{act.agent:<11}{act.state:<11}{act.what}"
            )

    live = Live(scene, console=console, refresh_per_second=8) if console.is_terminal else nullcontext()
    with live:
        looking = asyncio.create_task(look(scene))
        async with asyncio.TaskGroup() as readers:
            begun = asyncio.Event()
            for act in (*background_work(), *batch_work()):
                scene.acts.append(act)
                readers.create_task(read(act, begun, ended))
            await begun.wait()
            for act in questions():
                scene.acts.append(act)
                readers.create_task(read(act, begun, ended))
        with suppress(TimeoutError):
            await asyncio.wait_for(scene.quiet.wait(), QUIET_S)
        looking.cancel()
    return scene


def background_work() -> Iterable[Act]:
    """One run that is longer than anybody will wait, and a short one."""
    yield ask(
        "a long tale",
        "Tell the story of a night train from its departure to its arrival. Describe every station.",
        tier="background",
        tokens=1500,
        cut_after=LONG_ENOUGH_CHARACTERS,
    )
    yield ask(
        "tide or wind?", "Which is better for a mill, the tide or the wind?", tier="background", tokens=32
    )


def batch_work() -> Iterable[Act]:
    """A summary and a title of each passage."""
    for name, passage in PASSAGES.items():
        yield ask(
            f"summary: {name}",
            f"Summarise in one sentence:\n\n{passage}",
            tier="batch",
            tokens=40,
            priority=3,
        )
        yield ask(
            f"title: {name}",
            f"Give this text a short title:\n\n{passage}",
            tier="batch",
            tokens=12,
            priority=8,
        )


def questions() -> Iterable[Act]:
    """What people who wait ask."""
    yield ask(
        "why is the sky blue?", "Why is the sky blue? Answer in two sentences.", tier="interactive", tokens=48
    )
    yield ask(
        "a line of Python",
        "Write a Python function that adds two numbers.",
        tier="interactive",
        agent="coding",
        tokens=48,
    )


def ask(
    what: str,
    prompt: str,
    *,
    tier: str,
    tokens: int,
    agent: str = "chat",
    priority: int = 5,
    cut_after: int | None = None,
) -> Act:
    """Publish an invocation: returns at once, whoever is busy."""
    options = {"num_predict": tokens, "temperature": 0}
    handle = invoke_agent.delay(prompt, agent=agent, tier=tier, priority=priority, options=options)
    return Act(what=what, agent=agent, tier=tier, handle=handle, cut_after=cut_after)


async def read(act: Act, begun: asyncio.Event, ended: Callable[[Act], None]) -> None:
    """Read a stream to its end, then the result; cancel the run where that is its part."""
    try:
        async with aclosing(act.handle.astream(timeout=SILENCE_S)) as pieces:
            async for piece in pieces:
                act.text += piece
                begun.set()
                if act.cut_after is not None and len(act.text) >= act.cut_after and act.cut_at is None:
                    act.cut_at = monotonic()
                    act.handle.cancel()
        act.over_at = monotonic()
        # the stream's last mark comes a moment before the result, which announces itself to nobody
        while not act.handle.ready():  # noqa: ASYNC110  see above
            await asyncio.sleep(LOOK_S / 10)
        act.take(act.handle.result)
    except (GaelpError, CeleryTimeout) as error:
        act.take(error)
    finally:
        begun.set()
    ended(act)


async def look(scene: Scene) -> None:
    """Keep the node in view, until cancelled."""
    while True:
        scene.see(await asyncio.to_thread(live_nodes, app))
        await asyncio.sleep(LOOK_S)


def tell(console: Console, scene: Scene) -> None:
    """What was measured."""
    console.rule("[bold]3  What it took", align="left")
    console.print(results_table(scene.acts))
    console.print()
    asked = next(act for act in scene.acts if act.tier == "interactive")
    console.print(f"[bold]{asked.what}[/]  {' '.join(asked.text.split())}")
    console.print()
    for line in (overtaking(scene.acts), cutting(scene.acts)):
        console.print(line)
    slots = sum(node.slots for node in scene.nodes)
    console.print(f"At most {scene.most_running} of {slots} slots were busy.")
    for node in scene.nodes:
        console.print(f"Now: {node_shown(node)}")


def overtaking(acts: list[Act]) -> str:
    """How the question fared against work that was queued before it."""
    question = next(act for act in acts if act.tier == "interactive")
    before = [act for act in acts if act.tier != "interactive" and act.started_at is not None]
    if question.started_at is None:
        return ""
    passed = sum(act.started_at > question.started_at for act in before if act.started_at is not None)
    return f"The question was asked after {len(before)} other tasks and started before {passed} of them."


def cutting(acts: list[Act]) -> str:
    """How the long run ended."""
    long = next(act for act in acts if act.cut_after is not None)
    if long.cut_at is None or long.over_at is None or long.result.get("stop_reason") != "cancelled":
        return "The long tale ended by itself before it could be cancelled."
    stopped_ms = 1000 * (long.over_at - long.cut_at)
    told = (
        f"The long tale was cancelled: it stopped {stopped_ms:.0f} ms later, and the "
        f"{len(long.result['text'])} characters that it had are kept."
    )
    starts = [act.started_at for act in acts if act.started_at is not None and act.started_at > long.cut_at]
    if not starts:
        return told
    return f"{told} The next task had its slot after {1000 * (min(starts) - long.cut_at):.0f} ms."


if __name__ == "__main__":
    sys.exit(main())
