"""`PYTHONPATH=tests python -m cluster`: compose.yaml run for real, harmed, judged and taken down.

Exit status 0: all is as it should be; 1: something is not; 2: there is no engine; 130: interrupted.
"""

import argparse
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.engine import Failed, no_engine
from cluster.story import Story


def main() -> int:
    """Tell the story, say what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--public", action="store_true", help="pull the public images; make no stand-ins")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    parser.add_argument("--many", type=int, default=50, help="questions in each tier (default 50)")
    asked = parser.parse_args()
    if why := no_engine():
        say(why)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is taken down
    with TemporaryDirectory(prefix="gaelp-cluster-") as folder:
        story = Story(Path(folder), many=asked.many, say=say)
        try:
            wrong = story.tell(public=asked.public)
        except Failed as error:
            wrong = [str(error)]
        except KeyboardInterrupt:
            say("Interrupted.")
            return 130
        finally:
            if asked.keep:
                say(f"Left running: docker compose -p {story.engine.project} --profile sim down -v ends it.")
            else:
                story.end()
    for sentence in wrong:
        say(f"WRONG {sentence}")
    say("All is as it should be." if not wrong else f"{len(wrong)} things are wrong.")
    return 1 if wrong else 0


def say(line: str) -> None:
    """To the terminal, at once."""
    print(line, flush=True)  # noqa: T201  a program that tells


if __name__ == "__main__":
    sys.exit(main())
