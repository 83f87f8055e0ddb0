"""`gaelp users`, `keys`, `token`: who may use the API, and by what they come in."""

import getpass
import re
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape
from rich.table import Table

from gaelp_tasks import app
from gaelp_tasks.cli.asking import Tenant, opened, readable
from gaelp_tasks.cli.output import Json, out, print_json
from gaelp_tasks.errors import Conflict, SettingsError
from gaelp_tasks.models.audit import COMMAND
from gaelp_tasks.models.caller import Caller, Role
from gaelp_tasks.models.user import LONGEST_S, Key, NewKey, NewUser, User, UserChanges, parsed

if TYPE_CHECKING:
    from gaelp_tasks.db.database import Database

__all__ = ["keys_app", "token_app", "users_app"]

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
T = TypeVar("T")

users_app = typer.Typer(
    help="Who may use the API; these verbs write to the database, and need no API.",
    no_args_is_help=True,
    epilog="Example: gaelp users add ann --role operator, then gaelp token create --user ann",
)
keys_app = typer.Typer(
    help="Keys for programs: they come in without a token that ends.",
    no_args_is_help=True,
    epilog="Example: gaelp keys create --user ann --name ci",
)
token_app = typer.Typer(help="Tokens for the API, signed by GAELP_JWT_SECRET.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the user.", callback=readable)]
GivenRole = Annotated[Role | None, typer.Option(help="What they may do; user if not given.")]


def _ask(question: Callable[["Database"], Coroutine[Any, Any, T]]) -> T:
    with opened(lambda db: db) as ask:
        return ask(question)


async def _named(db: "Database", name: str) -> User:
    from gaelp_tasks.db.users import Users  # noqa: PLC0415  SQLAlchemy takes a while to import

    return await Users(db, None).named(name)


@users_app.command("list")
def list_users(*, as_json: Json = False) -> None:
    """Every user with role and tenant.

    Example: gaelp users list --json | jq '.[] | select(.disabled) | .name'
    """

    async def ask(db: "Database") -> list[User]:
        from gaelp_tasks.db.users import Users  # noqa: PLC0415  as above

        return await Users(db, None).listed(0, None)

    found = _ask(ask)
    if as_json:
        print_json([user.model_dump(mode="json") for user in found])
    elif not found:
        out.print("There are no users: gaelp users add NAME")
    else:
        _table(("name", "role", "tenant", "disabled", "since"), [_row(user) for user in found])


@users_app.command("add")
def add_user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new one.", callback=readable)],
    *,
    role: GivenRole = None,
    tenant: Tenant = "",
    as_json: Json = False,
) -> None:
    """Know somebody from now on.

    Example: gaelp users add ann --role operator --tenant acme
    """
    new = parsed(NewUser, name=name, tenant=tenant, role=role or Role.USER)

    async def ask(db: "Database") -> User:
        from gaelp_tasks.db.users import Users  # noqa: PLC0415  as above

        return await Users(db, None).add(new, datetime.now(UTC))

    _say(_ask(ask), "added", as_json)


@users_app.command("edit")
def edit_user(
    name: Name,
    *,
    role: GivenRole = None,
    tenant: Annotated[str | None, typer.Option(help="Whose work they see.", callback=readable)] = None,
    disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Let nobody in by this name, or again.")
    ] = None,
    sign_out: Annotated[
        bool, typer.Option("--sign-out", help="Tokens made before now hold no more; keys do.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Change what is given; it counts within seconds.

    Example: gaelp users edit ann --disable
    """
    changes = parsed(UserChanges, tenant=tenant, role=role, disabled=disabled, sign_out=sign_out)

    async def ask(db: "Database") -> User:
        from gaelp_tasks.db.users import Users  # noqa: PLC0415  as above

        user = await _named(db, name)
        return await Users(db, None).change(user.id, changes, datetime.now(UTC))

    _say(_ask(ask), "changed", as_json)


@users_app.command("remove")
def remove_user(name: Name, *, as_json: Json = False) -> None:
    """Let nobody in by this name any more; its keys are gone, its work goes on.

    Example: gaelp users remove ann
    """

    async def ask(db: "Database") -> User:
        from gaelp_tasks.db.users import Users  # noqa: PLC0415  as above

        user = await _named(db, name)
        return await Users(db, None).remove(user.id, datetime.now(UTC))

    _say(_ask(ask), "removed", as_json)


@keys_app.command("list")
def list_keys(
    *, user: Annotated[str, typer.Option(help="Whose; everybody's if not given.")] = "", as_json: Json = False
) -> None:
    """Every key by how it begins; nobody can be shown the rest again.

    Example: gaelp keys list --user ann
    """

    async def ask(db: "Database") -> list[Key]:
        from gaelp_tasks.db.users import Keys  # noqa: PLC0415  as above

        return await Keys(db, user or None).listed(0, None)

    found = _ask(ask)
    if as_json:
        print_json([key.model_dump(mode="json", exclude={"key"}) for key in found])
        return
    rows = [
        (str(key.id), key.user, key.role, key.name, key.prefix, _day(key.created_at), _day(key.expires_at))
        for key in found
    ]
    _table(("id", "user", "role", "name", "begins", "since", "until"), rows)


@keys_app.command("create")
def create_key(
    *,
    user: Annotated[str, typer.Option(help="Who comes in by it.", callback=readable)],
    name: Annotated[str, typer.Option(help="What it is for.", callback=readable)] = "",
    role: Annotated[Role | None, typer.Option(help="At most this; what the user has if not given.")] = None,
    ttl: Annotated[str, typer.Option(help="How long it holds: 90d, 12h; for ever if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Make a key and print it: this once, for only a hash of it is kept.

    Example: export GAELP_API_TOKEN=$(gaelp keys create --user ann --name laptop)
    """
    new = parsed(NewKey, name=name, role=role, ttl_s=_ttl(ttl) if ttl else None)

    async def ask(db: "Database") -> Key:
        from gaelp_tasks.services.users import make_key  # noqa: PLC0415  as above

        known = await _named(db, user)
        return await make_key(
            db, Caller(name=known.name, tenant=known.tenant, role=known.role), new, by=COMMAND
        )

    made = _ask(ask)
    if as_json:
        print_json(made.model_dump(mode="json"))
    else:
        print(made.key)


@keys_app.command("remove")
def remove_key(
    key_id: Annotated[int, typer.Argument(metavar="ID", min=1, help="As `list` shows it.")],
    *,
    as_json: Json = False,
) -> None:
    """Let nobody in by it any more, within seconds.

    Example: gaelp keys remove 3
    """

    async def ask(db: "Database") -> str:
        from gaelp_tasks.db.users import Keys  # noqa: PLC0415  as above

        return await Keys(db, None).remove(key_id)

    begins = _ask(ask)
    if as_json:
        print_json({"id": key_id, "prefix": begins})
    else:
        out.print(escape(f"{begins}...: removed"))


@token_app.command("create")
def create_token(
    *,
    user: Annotated[
        str, typer.Option(help="Who comes in by it; you, as this machine calls you, if not given.")
    ] = "",
    role: Annotated[
        Role | None, typer.Option(help="At most this; what the user has, or user, if not given.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose work they see.", callback=readable)] = None,
    ttl: Annotated[str, typer.Option(help="How long it holds: 12h, 7d; GAELP_JWT_TTL_S if not given.")] = "",
    as_json: Json = False,
) -> None:
    """Print a token for the API. Somebody whom the database knows gets no more by it than it says there.

    Example: export GAELP_API_TOKEN=$(gaelp token create --role admin)
    """
    from gaelp_tasks.db import address  # noqa: PLC0415  as above

    try:
        from gaelp_tasks.services.tokens import Tokens  # noqa: PLC0415  PyJWT is of the API's extra
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"Tokens need more than a worker does ({error.name}): pip install 'gaelp-tasks[api]'."
        ) from None
    tokens = Tokens(app.settings)
    name = user or getpass.getuser()
    known = _ask(lambda db: _known(db, name)) if address.is_here(app.settings.sql_url) else None
    if known is not None:
        _check(known, role, tenant)
        caller = Caller(name=known.name, tenant=known.tenant, role=role or known.role)
    else:
        caller = parsed(Caller, name=name, tenant=tenant or "", role=role or Role.USER)
    ttl_s = _ttl(ttl) if ttl else app.settings.jwt_ttl_s
    token = tokens.issue(caller, ttl_s)
    if as_json:
        print_json({"token": token, **caller.model_dump(mode="json"), "ttl_s": ttl_s})
    else:
        print(token)


async def _known(db: "Database", name: str) -> User | None:
    from gaelp_tasks.db.users import Users  # noqa: PLC0415  as above

    return await Users(db, None).find(name)


def _check(known: User, role: Role | None, tenant: str | None) -> None:
    """Raises Conflict where the API would refuse the token, or take it for less than it says."""
    if known.disabled:
        raise Conflict(f"User {known.name!r} is disabled or removed: no token lets anybody in by that name.")
    if tenant is not None and tenant != known.tenant:
        raise Conflict(f"User {known.name!r} is of tenant {known.tenant!r}: `gaelp users edit` changes that.")
    if role is not None and not known.role.covers(role):
        raise Conflict(f"User {known.name!r} has the role {known.role}: `gaelp users edit` changes that.")


def _ttl(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise typer.BadParameter("write it as 90, 30s, 10m, 2h or 7d, ten years at most", param_hint="--ttl")
    return seconds


def _row(user: User) -> tuple[str, ...]:
    return user.name, user.role, user.tenant, "yes" if user.disabled else "", _day(user.created_at)


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _table(names: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(*names, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _say(user: User, what: str, as_json: bool) -> None:
    if as_json:
        print_json(user.model_dump(mode="json"))
    else:
        out.print(escape(f"{user.name}: {what}"))
