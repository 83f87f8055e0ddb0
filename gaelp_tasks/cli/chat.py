"""`gaelp chat`: a conversation on the interactive tier."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from gaelp_tasks import app, invoke_agent
from gaelp_tasks.cli.answer import pieces, warn_without_worker
from gaelp_tasks.cli.conversation import Conversation
from gaelp_tasks.cli.output import Json, note
from gaelp_tasks.cli.running import ModelName, json_object
from gaelp_tasks.clients.wire import canonical
from gaelp_tasks.errors import GaelpError
from gaelp_tasks.models.invocation import Tier
from gaelp_tasks.overview import live_nodes
from gaelp_tasks.registry import agent_names
from gaelp_tasks.results import InvocationHandle

__all__ = ["chat"]

STOP_S = 10.0  #: a stopped run settles well within this
UNSTARTED_S = 1.0  #: one of which nothing has come may still be queued, and ends only when a worker takes it
BYTES_PER_TOKEN = 3  #: fewer than most texts have: what is sent must fit the context
HELP = """\
Commands:
/help          this list
/new           forget what was said; the system prompt stays
/retry         ask the last question again
/system TEXT   set the system prompt; alone it shows it, with - it removes it
/model NAME    another model; alone it shows it, with - the node's default
/agent NAME    another agent; alone it shows it
/save FILE     write the conversation: JSON for a name in .json, else Markdown
/quit          leave
A question that begins with a slash is typed with two: //etc is what?
A line that ends with \\ goes on in the next. Ctrl-C stops an answer."""


@dataclass
class Session:
    """Where a chat stands, and how it talks to its user."""

    agent: str
    model: str | None
    options: dict[str, Any]
    think: bool | None
    person: bool  #: somebody sits at a terminal; else lines come from a pipe
    as_json: bool
    said: Conversation
    failed: bool = False
    answered: bool = False  #: at least once, and printed
    left_out: int = 0  #: turns that no longer fit
    saved: set[Path] = field(default_factory=set)

    @property
    def limit_bytes(self) -> int:
        """How much of the conversation is sent."""
        settings = app.settings
        limit = settings.most_prompt_bytes
        return min(limit, settings.num_ctx * BYTES_PER_TOKEN) if settings.num_ctx else limit

    def ask(self, question: str) -> None:
        """One turn; whatever goes wrong is one sentence, and the conversation can go on."""
        self.said = self.said.asked(question)
        handle: InvocationHandle = invoke_agent.AsyncResult(str(uuid4()))
        seen: list[str] = []
        result: dict[str, Any] | None
        try:
            result = self._answer(handle, seen)
        except KeyboardInterrupt:
            result = self._stop(handle, "".join(seen))
            if not self.person:
                raise typer.Exit(130) from None
        except GaelpError as error:
            self._fail(handle.id, question, str(error))
            return
        except Exception as error:  # noqa: BLE001  whatever an agent raised, Celery raises here again
            self._fail(handle.id, question, f"{type(error).__name__}: {error}")
            return
        if result is None:
            self.said = self.said.without_last()
            return
        reason = result["stop_reason"]
        cut = reason not in {"stop", "length"}
        self.said = self.said.answered(result["text"], cut=cut)
        if self.as_json:
            print(json.dumps({"prompt": question, **result}, ensure_ascii=False), flush=True)
        elif cut and reason != "cancelled":
            note(f"It ended early: {reason}.")

    def _answer(self, handle: InvocationHandle, seen: list[str]) -> dict[str, Any]:
        """Publish, print what comes, and return the result; `seen` is filled meanwhile."""
        self._tell_what_is_left_out()
        invoke_agent.apply_async(
            (),
            {
                "messages": self.said.messages(self.limit_bytes),
                "agent": self.agent,
                "model": self.model,
                "think": self.think,
                "options": self.options,
                "tier": Tier.INTERACTIVE.value,
            },
            task_id=handle.id,
        )
        warn_without_worker(Tier.INTERACTIVE)
        if not self.as_json:
            for piece in pieces(handle):
                if not seen and self.answered and not self.person:
                    print()
                self.answered = True
                seen.append(piece)
                print(piece, end="", flush=True)
            print()
        return dict(handle.get())

    def _stop(self, handle: InvocationHandle, seen: str) -> dict[str, Any] | None:
        """Stop the model; what the user has seen stays. None where nothing had come."""
        if not self.as_json:
            print()
        with suppress(KeyboardInterrupt):  # a second one waits no longer
            try:
                handle.cancel()
                result = dict(handle.get(timeout=STOP_S if seen else UNSTARTED_S))
                note("Stopped.")
            except Exception as error:  # noqa: BLE001  it is over either way; the user goes on
                note("Cancelled." if not isinstance(error, GaelpError) else str(error))
            else:
                seen = seen or result["text"]
                reason = result["stop_reason"] if seen == result["text"] else "cancelled"
                return {**result, "text": seen, "stop_reason": reason} if seen else None
        return {"id": handle.id, "text": seen, "stop_reason": "cancelled"} if seen else None

    def _fail(self, invocation_id: str, question: str, sentence: str) -> None:
        self.failed = True
        if self.as_json:
            told = {"prompt": question, "id": invocation_id, "error": sentence}
            print(json.dumps(told, ensure_ascii=False), flush=True)
        else:
            note(f"{sentence} /retry asks again." if self.person else sentence)

    def _tell_what_is_left_out(self) -> None:
        left_out = self.said.left_out(self.limit_bytes)
        if left_out > self.left_out:
            note(f"Too long to send it all: the oldest turns are left out, {left_out} by now.")
        self.left_out = left_out

    def command(self, line: str) -> None:
        """A line that begins with a slash. Raises EOFError for `/quit`."""
        name, _, rest = line[1:].strip().partition(" ")
        text = rest.strip()
        match name:
            case "help":
                note(HELP)
            case "new":
                self.said = Conversation(system=self.said.system)
                note("What was said is forgotten.")
            case "retry":
                self._retry()
            case "system":
                self._system(text)
            case "model":
                self._model(text)
            case "agent":
                self._agent(text)
            case "save":
                self._save(text)
            case "quit":
                raise EOFError
            case _:
                note(f"There is no command /{name}: /help lists them.")

    def _retry(self) -> None:
        if not self.said.turns:
            note("Nothing was asked yet.")
            return
        question = self.said.turns[-1].question
        self.said = self.said.without_last()
        self.ask(question)

    def _system(self, text: str) -> None:
        if text:
            self.said = Conversation(system="" if text == "-" else text, turns=self.said.turns)
        note(f"System prompt: {self.said.system}" if self.said.system else "There is no system prompt.")

    def _model(self, name: str) -> None:
        if name:
            self.model = None if name == "-" else name
            _warn_of_unknown_model(self.model)
        note(f"Model: {self.model or 'the default'}.")

    def _agent(self, name: str) -> None:
        known = agent_names(app.settings)
        if name and name not in known:
            note(f"There is no agent of that name; there are: {', '.join(known)}.")
            return
        self.agent = name or self.agent
        note(f"Agent: {self.agent}.")

    def _save(self, name: str) -> None:
        path = Path(name).expanduser()
        if not name:
            note("Name a file: /save talk.md")
            return
        text = json.dumps(self.said.as_json(), ensure_ascii=False, indent=2) + "\n"
        again = path.resolve() in self.saved
        try:
            # what was talked of is nobody else's; a file of somebody else's is not written over
            flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if again else os.O_EXCL)
            with open(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123  a descriptor
                file.write(text if path.suffix == ".json" else self.said.as_text())
        except FileExistsError:
            note(f"{path} exists; choose another name.")
        except OSError as error:
            note(f"{path} cannot be written: {error.strerror}.")
        else:
            self.saved.add(path.resolve())
            note(f"Saved in {path}.")


def _warn_of_unknown_model(name: str | None) -> None:
    """Say it when no announced node has the model; without a worker nobody knows."""
    try:
        nodes = live_nodes(app)
    except GaelpError:
        return  # the next question tells
    has = sorted({model for node in nodes for model in node.models})
    if name and nodes and canonical(name) not in map(canonical, has):
        known = ", ".join(has) or "none"
        note(f"No node has {name}; there are: {known}. `gaelp models pull {name}` fetches it.")


def chat(
    *,
    agent: Annotated[str, typer.Option(help="Which agent answers.")] = "chat",
    model: ModelName = None,
    system: Annotated[str, typer.Option(help="System prompt; most agents have one of their own.")] = "",
    think: Annotated[
        bool | None, typer.Option("--think/--no-think", help="For models that can think first.")
    ] = None,
    options: Annotated[str, typer.Option(help='Model options as JSON, {"temperature": 0}.')] = "{}",
    as_json: Json = False,
) -> None:
    """Talk with an agent; it knows what was said before.

    Ctrl-C while it answers stops that answer; Ctrl-D at the prompt leaves.
    There, /help lists what else can be typed.

    Each turn sends the whole conversation, less its oldest turns once it
    would not fit GAELP_MAX_PROMPT_BYTES or GAELP_NUM_CTX any more.

    From a pipe each line is a turn and only answers are printed, as in
    `echo hi | gaelp chat`; --json prints one object on one line a turn.
    It exits with 1 if a turn from a pipe failed.
    """
    person = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    session = Session(
        agent, model, json_object(options), think, person, as_json, said=Conversation(system=system)
    )
    if agent not in agent_names(app.settings):
        raise typer.BadParameter(f"--agent: there are {', '.join(agent_names(app.settings))}.")
    if person:
        with suppress(ImportError):
            import readline  # noqa: F401, PLC0415  input() edits lines once it is there
        print(f"Agent {agent}, model {model or 'the default'}. /help lists commands, Ctrl-D leaves.")
        warn_without_worker(Tier.INTERACTIVE)
    elif hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    _talk(session)
    if session.failed and not person:
        raise typer.Exit(1)


def _talk(session: Session) -> None:
    """Read and answer until there is no more to read."""
    try:
        while True:
            line = _read(session)
            if line.startswith("/") and not line.startswith("//"):
                session.command(line)
            elif line.strip():
                session.ask(line.removeprefix("/") if line.startswith("//") else line)
    except EOFError:
        if session.person:
            print()
    except KeyboardInterrupt:
        print()
        raise typer.Exit(130) from None


def _read(session: Session) -> str:
    """One question: a line, and those that a trailing backslash adds. Raises EOFError at the end."""
    lines: list[str] = []
    while True:
        try:
            line = input(("... " if lines else "> ") if session.person else "")
        except EOFError:
            if lines:
                return "\n".join(lines)
            raise
        if not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line[:-1])
