"""Where `gaelp` begins: finds a running embedded system, then hands over to the verbs."""

import os
import sys

from gaelp_tasks.errors import GaelpError, InvalidInvocation

__all__ = ["main"]

NEEDS = "gaelp: this command needs more than a producer does: pip install 'gaelp-tasks[worker]'."


def main() -> None:
    """Run a verb; exit codes: 0 done, 1 failed, 2 usage, 130 interrupted."""
    try:
        import typer  # noqa: F401, PLC0415  is the extra installed at all?
    except ModuleNotFoundError:
        sys.exit(NEEDS)
    from gaelp_tasks.cli.app import cli  # noqa: PLC0415
    from gaelp_tasks.demo.upfile import read_upfile  # noqa: PLC0415

    # `gaelp demo` brings a system of its own, also while another one is up
    if "GAELP_BROKER_URL" not in os.environ and sys.argv[1:2] != ["demo"]:
        os.environ.update(read_upfile() or {})
    try:
        cli(standalone_mode=True)
    except InvalidInvocation as error:
        print(f"gaelp: {error}", file=sys.stderr)
        sys.exit(2)
    except GaelpError as error:
        print(f"gaelp: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone
        sys.stdout = None
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        print(f"gaelp: {where}{error.strerror or error}.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
