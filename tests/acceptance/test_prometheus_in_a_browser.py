"""Our figures as a person sees them in Prometheus, in a real browser after its scripts have drawn them.

GAELP_TEST_PICTURES=FOLDER keeps the picture.
"""

import os
import struct
import zlib
from pathlib import Path
from urllib.parse import urlencode

import pytest
from ruamel.yaml import YAML

from gaelp_tasks import app
from support.browser import Browser, chromium
from support.claims import message, publish
from support.eventually import eventually
from support.exporter import Exporter
from support.needs import needs
from support.prometheus import FOLDER, Prometheus

pytestmark = [
    pytest.mark.browser,
    pytest.mark.redis,
    pytest.mark.slow,
    needs("prometheus", "prometheus"),
]

QUERY = 'gaelp_queue_depth{model="phi"}'
WAITING = {"interactive": 2, "batch": 7, "background": 4}
SAMPLES = 4  #: enough for a line
DRAWN = 100  #: different rows of pixels; a blank page has one or two


@pytest.fixture
def prometheus(broker, tmp_path):
    """A real one that has seen queues fill."""
    chromium()  # without it nothing need be started
    app.redis.flushdb()
    jobs = [job["job_name"] for job in YAML().load(FOLDER / "prometheus.yaml")["scrape_configs"]]
    with Exporter(tmp_path, broker.url) as exporter:
        ports = {job: [exporter.port] if job == "gaelp" else [] for job in jobs}
        with Prometheus(tmp_path, ports) as running:
            for tier, number in WAITING.items():
                publish(*(message(f"{tier}-{n}") for n in range(number)), queue=f"{tier}.phi")
                app.redis.sadd(app.keys.queues, f"{tier}.phi")
            seen = f"min(count_over_time({QUERY}[1m])) >= {SAMPLES}"
            eventually(lambda: running.ask(seen), within_s=60, what="Prometheus has seen them")
            yield running
    app.redis.flushdb()


def rows_of(picture):
    """The rows of a PNG as they are packed, each only once."""
    data, at, packed, row_bytes = picture.read_bytes(), 8, b"", 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, _, depth, colours = struct.unpack(">IIBB", chunk[:10])
            row_bytes = 1 + width * {2: 3, 6: 4}[colours] * depth // 8
        elif kind == b"IDAT":
            packed += chunk
        at += size + 12
    unpacked = zlib.decompress(packed)
    return {unpacked[start : start + row_bytes] for start in range(0, len(unpacked), row_bytes)}


async def test_a_series_of_ours_is_drawn(prometheus, tmp_path):
    picture = Path(os.environ.get("GAELP_TEST_PICTURES", tmp_path)) / "prometheus.png"
    asked = urlencode({"g0.expr": QUERY, "g0.tab": "0", "g0.range_input": "1m", "g0.step_input": "1"})
    async with Browser(tmp_path) as page:
        assert await page.open(f"{prometheus.url}/graph?{asked}") == 200
        for tier in WAITING:
            await page.until(f"document.body.textContent.includes('tier=\"{tier}\"')")
        text = await page.text()
        await page.run("window.scrollTo(0, document.body.scrollHeight)")  # to the legend
        await page.picture(picture)
    assert "gaelp_queue_depth" in text
    assert 'model="phi"' in text
    assert len(rows_of(picture)) > DRAWN
