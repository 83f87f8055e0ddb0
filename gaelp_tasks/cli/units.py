"""systemd units of the programs: what stands in them. Pure.

How long a program may take to end is the only thing in a unit that comes from the settings; the rest it
reads itself, from its environment file, whenever it starts.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

__all__ = ["PROGRAMS", "Place", "Program", "of_system", "of_user", "unit_name", "unit_text", "untouched"]

MARGIN_S = 10  #: a worker is gone a second after its grace; a busy machine is late
STOP_S = 15  #: for programs that have nothing to finish


class Program(NamedTuple):
    """What is particular about a program's unit."""

    what: str
    words: tuple[str, ...] = ()  #: given to it unless its user gives others; systemd's % counts in them
    wants: tuple[str, ...] = ()  #: units of this machine beside which it runs
    drains: bool = False  #: at SIGTERM it finishes what runs, for GAELP_DRAIN_GRACE_S


PROGRAMS = {
    # by a name that stays: a cordon and what was learned of models belong to it
    "worker": Program(
        "runs invocations on this machine's Ollama server",
        ("--name=gaelp@%H",),
        ("ollama.service",),
        drains=True,
    ),
    "beat": Program("publishes what is due"),
    "metrics": Program("tells Prometheus about the cluster"),
    "api": Program("serves the HTTP API", drains=True),
    "flower": Program("shows tasks, workers and queues in a browser"),
}
#: what may run on this machine, too, and is better up first
LOCAL = ("redis.service", "redis-server.service", "postgresql.service")

HEADER = """\
# {name}, written by `gaelp {program} --install` of gaelp-tasks {release}, which overwrites it only
# while nobody has edited it. Changes of yours are better kept beside it: systemctl {scope}edit {name}
# sha256 of all that follows: {digest}
"""
DIGEST = re.compile(r"\A(?:#.*\n)*?# sha256 of all that follows: ([0-9a-f]{64})\n(.*)\Z", re.DOTALL)

UNIT = """\
[Unit]
Description=gaelp {program}: {what}
{order}# started again for ever, 10 s apart: a night without Redis shall leave no dead node
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
EnvironmentFile={settings}
Restart=always
RestartSec=10
# 2: called wrongly, which no restart mends
RestartPreventExitStatus=2
# by SIGINT twice, by SIGQUIT: all was given back
SuccessExitStatus=130 131
KillSignal=SIGTERM
KillMode=mixed
# {stop}
TimeoutStopSec={stop_s}
# counted, and not limited: a limit of its own would be taken for the memory of the node
MemoryAccounting=yes
NoNewPrivileges=yes
UMask=0077
{hardening}
[Install]
WantedBy={wanted_by}
"""

#: Without PrivateDevices and ProtectClock, which hide GPUs, and ProcSubset, which hides the machine's memory
HARDENING = """\
# a user of its own, made when it starts; what it keeps is in /var/lib/gaelp
DynamicUser=yes
User=gaelp
StateDirectory=gaelp
StateDirectoryMode=0750
WorkingDirectory=%S/gaelp
Environment=XDG_STATE_HOME=%S
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
CapabilityBoundingSet=
AmbientCapabilities=
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
"""


class Place(NamedTuple):
    """Where units lie, and whose they are."""

    folder: Path
    settings: Path  #: their environment file
    by_user: bool


def of_system() -> Place:
    """Units of the machine, which root installs."""
    return Place(Path("/etc/systemd/system"), Path("/etc/gaelp/gaelp.env"), by_user=False)


def of_user(config: Path) -> Place:
    """Units of one user, whose folder of configuration is given."""
    return Place(config / "systemd/user", config / "gaelp/gaelp.env", by_user=True)


def unit_name(program: str) -> str:
    """The unit of a program, and its file."""
    return f"gaelp-{program}.service"


def unit_text(program: str, command: Sequence[str], place: Place, *, grace_s: float) -> str:
    """The whole file. `command` begins with the path of `gaelp`; `grace_s` is GAELP_DRAIN_GRACE_S."""
    kind = PROGRAMS[program]
    waits = f"GAELP_DRAIN_GRACE_S ({grace_s:g}) and {MARGIN_S} s: install it anew when that changes"
    words = [_word(one) for one in command]
    given = {one.partition("=")[0] for one in command}
    words += [one for one in kind.words if one.partition("=")[0] not in given]
    order = "" if place.by_user else _order(kind)
    body = UNIT.format(
        program=program,
        what=kind.what,
        order=order,
        command=" ".join(words),
        settings="%E/gaelp/gaelp.env" if place.by_user else place.settings,
        stop=waits if kind.drains else "it has nothing to finish",
        stop_s=math.ceil(grace_s) + MARGIN_S if kind.drains else STOP_S,
        hardening="" if place.by_user else HARDENING,
        wanted_by="default.target" if place.by_user else "multi-user.target",
    )
    header = HEADER.format(
        name=unit_name(program),
        program=program,
        release=version("gaelp-tasks"),
        scope="--user " if place.by_user else "",
        digest=_digest(body),
    )
    return header + body


def _order(kind: Program) -> str:
    wanted = " ".join(["network-online.target", *kind.wants])
    return f"Wants={wanted}\nAfter={wanted} {' '.join(LOCAL)}\n"


def _word(word: str) -> str:
    """A word of ExecStart as systemd reads it back."""
    escaped = word.replace("%", "%%").replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", escaped):
        return escaped
    quoted = escaped.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'


def untouched(text: str) -> bool:
    """Whether a unit is as it was written."""
    found = DIGEST.match(text)
    return found is not None and found[1] == _digest(found[2])


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
