"""A real browser for a test: Chromium without a window, spoken to in its own DevTools protocol."""

import asyncio
import base64
import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from support.eventually import eventually
from support.needs import lacking

PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-first-run", "--no-default-browser-check", "--disable-gpu", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0"),
)
SIZE = (1600, 900)
ANSWER_S = 30.0


def chromium() -> str:
    """The program; without one the test is skipped, in CI as root it fails, for .ci/run installs it there."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    return lacking("no chromium on PATH")


class Browser:
    """`async with Browser(folder) as page: await page.open(url)`; one page, ended whatever happens."""

    def __init__(self, folder: Path) -> None:
        self._profile = folder / "profile"
        self._log = folder / "chromium.log"
        self._asked = 0

    async def open(self, url: str) -> int:
        """Go there and wait for its `load`; the HTTP status of the page."""
        status = 0
        await self._send("Page.navigate", url=url)
        loaded = False
        async with asyncio.timeout(ANSWER_S):
            while not loaded:
                told = json.loads((await self._line.receive()).data)
                match told:
                    case {"method": "Network.responseReceived", "params": {"type": "Document"} as params}:
                        status = params["response"]["status"]
                    case {"method": "Page.loadEventFired"}:
                        loaded = True
                    case {"method": "Network.loadingFailed", "params": {"type": "Document"} as params}:
                        # where a browser with a window would ask for user and password
                        assert params["errorText"] == "net::ERR_INVALID_AUTH_CREDENTIALS", params["errorText"]
                        status = 401
        return status

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = await self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, script: str) -> Any:
        """The first true value of an expression."""
        async with asyncio.timeout(ANSWER_S):
            while not (value := await self.run(script)):
                await asyncio.sleep(0.05)
        return value

    async def text(self) -> str:
        """What a person can read on the page, hidden tabs included."""
        return str(await self.run("document.body.textContent"))

    async def source(self) -> str:
        """The whole page as it is now, after its scripts."""
        return str(await self.run("document.documentElement.outerHTML"))

    async def picture(self, path: Path) -> None:
        """A PNG of the window."""
        told = await self._ask("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))

    async def _send(self, method: str, **params: Any) -> int:
        self._asked += 1
        await self._line.send_json({"id": self._asked, "method": method, "params": params})
        return self._asked

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = await self._send(method, **params)
        async with asyncio.timeout(ANSWER_S):
            while True:
                told = json.loads((await self._line.receive()).data)
                if told.get("id") == number:
                    assert "error" not in told, told["error"]
                    return dict(told["result"])

    async def __aenter__(self) -> Self:
        place = (f"--window-size={SIZE[0]},{SIZE[1]}", f"--user-data-dir={self._profile}")
        command = [chromium(), *FLAGS, *place, "about:blank"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            said = self._profile / "DevToolsActivePort"
            eventually(lambda: said.exists() and said.read_text(), within_s=40, what="Chromium is up")
            port = said.read_text().partition("\n")[0]
            self._http = aiohttp.ClientSession()
            async with self._http.get(f"http://127.0.0.1:{port}/json/list") as answer:
                [page] = [one for one in await answer.json() if one["type"] == "page"]
            self._line = await self._http.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
            for domain in ("Page", "Network"):
                await self._ask(f"{domain}.enable")
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
