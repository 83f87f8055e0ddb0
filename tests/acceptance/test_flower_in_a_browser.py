"""Flower as a person sees it, in a real browser after its scripts have run.

GAELP_TEST_PICTURES=FOLDER keeps the pictures of all pages.
"""

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from support.browser import Browser, chromium
from support.flower import LOGIN, SCENE, WAITING, WORD, FlowerProcess, play, shown

pytestmark = [pytest.mark.browser, pytest.mark.redis, pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def scene(start_worker, node, broker, tmp_path):
    chromium()  # without it nothing need be started
    worker = start_worker(GAELP_OLLAMA_NODES=node, **SCENE)
    with FlowerProcess(tmp_path, broker.url) as flower:
        flower.watches(worker)
        yield worker, flower, play(broker.url, worker, shown(flower))


async def test_a_person_with_the_login_sees_all_but_the_texts(scene, tmp_path):
    worker, flower, played = scene
    pictures = Path(os.environ.get("GAELP_TEST_PICTURES", tmp_path))
    every_id = [one for ids in played for one in ids]
    async with Browser(tmp_path) as page:
        for path in ("/", "/tasks", "/broker", f"/worker/{worker.name}", f"/task/{played.done[0]}"):
            assert await page.open(flower.url + path) == 401
            bare = await page.source()
            assert not any(said in bare for said in (worker.name, "gaelp.invoke_agent", *every_id))

        login = ":".join(quote(part, safe="") for part in LOGIN)
        assert await page.open(f"http://{login}@{flower.url.removeprefix('http://')}/workers") == 200

        async def shows(name, path, *words, ready="true"):
            assert await page.open(flower.url + path) == 200
            await page.until(ready)
            text = await page.text()
            missing = [word for word in words if word not in text]
            assert not missing, (path, missing)
            assert WORD not in await page.source(), path
            await page.picture(pictures / f"flower-{name}.png")

        await shows(
            "workers", "/workers", worker.name, ready=f"document.body.innerText.includes('{worker.name}')"
        )
        table = "document.querySelector('#tasks-table tbody').textContent"
        await shows(
            "tasks",
            "/tasks",
            *("gaelp.invoke_agent", "gaelp.embed", "SUCCESS", "FAILURE", "STARTED", "PENDING", worker.name),
            *("agent=chat", "tier=interactive", "(hidden)"),
            ready=f"{table}.includes('{played.done[0][:8]}')",
        )
        await shows("broker", "/broker", *WAITING)
        waiting = await page.run(
            "Object.fromEntries([...document.querySelectorAll('#queue-table tbody tr')]"
            ".map(row => [row.cells[0].innerText, Number(row.cells[3].innerText)]))"
        )
        assert {name: waiting[name] for name in WAITING} == WAITING
        await shows("worker", f"/worker/{worker.name}", *played.running, "agent=echo", *WAITING)
        for one in every_id:
            await shows(f"task-{one[:8]}", f"/task/{one}", one)
        assert not await page.run("!!document.querySelector('#task-terminate, #worker-group')")
