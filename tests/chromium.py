"""A page in headless Chromium, driven over its DevTools protocol (tornado, which ipykernel
brings, has the websocket)."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

LEAVES = ("navigated", "context")
"""Of what a refusal says where a page was left while it was asked: inspected target
navigated, execution context destroyed or not found."""


class Refused(AssertionError):
    """An answer of the protocol that is an error."""


def _pages(base: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(base, timeout=60) as answer:
        return [target for target in json.load(answer) if target["type"] == "page"]


class Browser:
    """``with Browser(path, width=1280) as page``: ``page.js("1 + 1")``, ``page.key("j")``.

    ``requests``: addresses that the page asked for; ``errors``: what its console says,
    with violations of the content security policy."""

    def __init__(
        self, path: Path, *, width: int = 1280, dark: bool = False, hash: str = ""
    ):
        self.address = path.resolve().as_uri() + hash
        self.width, self.dark = width, dark
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.loop = asyncio.new_event_loop()

    def __enter__(self) -> Browser:
        self.profile = tempfile.mkdtemp(prefix="rap-chromium-")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        self.process = subprocess.Popen(
            [
                str(CHROMIUM),
                *options,
                "--remote-debugging-port=0",
                f"--user-data-dir={self.profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.loop.run_until_complete(self._open())
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.run_until_complete(self._close())
        self.process.terminate()
        self.process.wait(60)
        self.loop.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    async def _open(self) -> None:
        from tornado.websocket import websocket_connect

        port = Path(self.profile, "DevToolsActivePort")
        end = time.monotonic() + 120
        while not (port.exists() and port.read_text().count("\n")):
            assert self.process.poll() is None and time.monotonic() < end
            await asyncio.sleep(0.1)
        base = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
        while not (pages := _pages(base)):  # the port is there before the page
            assert time.monotonic() < end
            await asyncio.sleep(0.1)
        self.connection = await websocket_connect(
            pages[0]["webSocketDebuggerUrl"], max_message_size=2**30
        )
        self.count = 0
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self._send(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
        await self._send("Emulation.setEmulatedMedia", features=[scheme])
        await self._send(
            "Emulation.setDeviceMetricsOverride",
            width=self.width,
            height=900,
            deviceScaleFactor=1,
            mobile=self.width < 700,
        )
        await self._send("Page.navigate", url=self.address)
        while not await self._holds("document.readyState === 'complete'"):
            assert time.monotonic() < end
            await asyncio.sleep(0.1)

    async def _close(self) -> None:
        """Within the loop: tornado asks for the running one as it writes."""
        self.connection.close()
        await asyncio.sleep(0.1)

    async def _send(self, method: str, **params: Any) -> Any:
        self.count += 1
        number = self.count
        await self.connection.write_message(
            json.dumps({"id": number, "method": method, "params": params})
        )
        while True:
            text = await self.connection.read_message()
            assert text is not None, "Chromium has gone"
            message = json.loads(text)
            if message.get("id") == number:
                if "error" in message:
                    raise Refused(message["error"]["message"])
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.errors.append(params["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.errors.append(str(params["args"]))

    async def _value(self, expression: str) -> Any:
        found = await self._send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def _holds(self, expression: str) -> bool:
        """Not yet, of a page that is being loaded."""
        try:
            return bool(await self._value(expression))
        except Refused as error:
            if not any(word in str(error) for word in LEAVES):
                raise
            return False

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        return self.loop.run_until_complete(self._value(expression))

    def until(self, expression: str) -> None:
        """Waits until it holds. Raises AssertionError after two minutes."""
        end = time.monotonic() + 120
        while not self.loop.run_until_complete(self._holds(expression)):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def key(self, key: str, text: str = "") -> None:
        """Press and release one key, as a keyboard does."""
        codes = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, " ": 32}
        common = {"key": key, "windowsVirtualKeyCode": codes.get(key, ord(key.upper()[0]))}
        down = {"text": text or (key if len(key) == 1 else "\r" if key == "Enter" else "")}
        for kind, more in (("keyDown", down), ("keyUp", {})):
            self.loop.run_until_complete(
                self._send("Input.dispatchKeyEvent", type=kind, **common, **more)
            )

    def shot(self, path: Path) -> None:
        """The whole page as PNG."""
        import base64

        found = self.loop.run_until_complete(
            self._send("Page.captureScreenshot", captureBeyondViewport=True)
        )
        Path(path).write_bytes(base64.b64decode(found["data"]))
