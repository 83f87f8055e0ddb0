"""docs/api.md says of every route who may use it, and of nothing that is none."""

import re
from pathlib import Path

from gaelp_tasks.api.access import policies
from gaelp_tasks.api.refusals import STATUS
from gaelp_tasks.api.routes import ROUTERS

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
ROW = re.compile(r"(?m)^\| `(GET|POST|PUT|PATCH|DELETE) (\S+)` \| (\w+) \|")


def test_the_table_of_routes_is_the_applications():
    told = {(method, path): role for method, path, role in ROW.findall(PAGE)}
    known = {route: role.value if role else "nobody" for route, role in policies(ROUTERS).items()}
    assert told == known, "change the table at the end of docs/api.md"


def test_every_status_of_a_refusal_is_explained():
    table = PAGE.partition("| status | what |")[2].partition("\n\n")[0]
    assert {status for _, status in STATUS} <= {int(found) for found in re.findall(r"\b\d{3}\b", table)}


def test_every_setting_that_the_page_names_exists():
    from gaelp_tasks.settings import Settings

    named = set(re.findall(r"GAELP_([A-Z_]+)", PAGE))
    assert named <= {name.upper() for name in Settings.model_fields}
