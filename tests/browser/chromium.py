"""Drive a headless Chromium over its DevTools protocol, by aiohttp, which the tests have anyway."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp


class Browser:
    """One page of a Chromium. Everything it says, and all that it asks for, is noted.

    Attributes
    ----------
    said : list of str
        Errors and warnings of the console, exceptions, and what the page's policy refused.
    asked_for : list of str
        URLs that the page requested.
    """

    def __init__(self, program: str) -> None:
        self._profile = tempfile.mkdtemp()
        self._loop = asyncio.new_event_loop()
        self._process = subprocess.Popen(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--remote-debugging-port=0", f"--user-data-dir={self._profile}", "about:blank",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.said: list[str] = []
        self.asked_for: list[str] = []
        self._answers: dict[int, Any] = {}
        self._number = 0
        try:
            self._run(self._connect())
        except BaseException:
            self.close()
            raise

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, 60))

    async def _connect(self) -> None:
        note = Path(self._profile) / "DevToolsActivePort"
        until = time.monotonic() + 40
        while not note.exists() or not note.read_text().strip():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Chromium did not start (exit code {self._process.poll()})")
            await asyncio.sleep(0.1)
        port = note.read_text().split()[0]
        self._http = aiohttp.ClientSession()
        async with self._http.get(f"http://127.0.0.1:{port}/json") as answer:
            target = next(one for one in await answer.json() if one["type"] == "page")
        self._socket = await self._http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._send(f"{domain}.enable")

    async def _send(self, method: str, **params: Any) -> Any:
        self._number += 1
        number = self._number
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while number not in self._answers:
            self._note(await self._socket.receive_json())
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _note(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self._answers[message["id"]] = message
            return
        method, params = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"].get("exception", params)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.said.append(str(params["args"]))
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked_for.append(params["request"]["url"])
        elif method == "Page.javascriptDialogOpening":
            self.said.append(f"dialog: {params['message']}")

    def send(self, method: str, **params: Any) -> Any:
        """Send one command, and give its result."""
        return self._run(self._send(method, **params))

    def open(
        self,
        path: Path,
        width: int = 1280,
        height: int = 900,
        scheme: str = "light",
        ready: str = "document.documentElement?.dataset.ready === 'true'",
    ) -> None:
        """Open a file, and wait until it is `ready`: by default until a report says that it is drawn."""
        self.resize(width, height)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url="about:blank")
        self.wait_for("location.href === 'about:blank'")
        self.said.clear()
        self.asked_for.clear()
        self.send("Page.navigate", url=path.as_uri())
        self.wait_for(ready)

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression is true, at most 20 seconds."""
        until = time.monotonic() + 20
        while self.evaluate(condition) is not True:
            assert time.monotonic() < until, f"{condition}: never; the page said {self.said}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Click into the middle of an element, as a mouse does."""
        at = self.evaluate(
            f"(() => {{ const one = document.querySelector({selector!r}); one.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const box = one.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        self.click_at(*at)

    def click_at(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            more = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def write(self, text: str) -> None:
        """Type into what has the focus."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press a key: its name, its number, and the text that it makes."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more
            )

    def take_picture(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as a PNG."""
        more: dict[str, Any] = {}
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            more = {"clip": clip, "captureBeyondViewport": True}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **more)["data"]))

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        http = getattr(self, "_http", None)
        if http is not None:
            self._loop.run_until_complete(http.close())
        self._loop.close()
        shutil.rmtree(self._profile, ignore_errors=True)
