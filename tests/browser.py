"""A headless Chromium that opens pages and says what they did, over the pipe of DevTools."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
"""Where it is, or None."""

Event = dict[str, Any]


class Page:
    """One tab.

    Attributes:
        events: All events so far: requests, console messages, exceptions and log entries.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._out, self._in = commands, answers
        self._waiting = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[Event] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Run a command of the protocol."""
        self._number += 1
        message: Event = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> Event:
        parts = [self._waiting]
        while b"\0" not in parts[-1]:
            parts.append(os.read(self._in, 1 << 20))
            assert parts[-1], "the browser is gone"
        data, _, self._waiting = b"".join(parts).partition(b"\0")
        found: Event = json.loads(data)
        return found

    def open(self, path: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Load a file at a size, and wait until it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def evaluate(self, script: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def requested(self) -> list[str]:
        """Addresses that the page asked for."""
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [e["params"]["request"]["url"] for e in sent]

    def complaints(self) -> list[Event]:
        """What went to the console, or went wrong."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [e for e in self.events if e["method"] in kinds]

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(found["data"])

    def pdf(self) -> bytes:
        """The page as it is printed on A4."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(found["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """Start a browser whose profile is below a folder; end it afterwards."""
    commands, our_commands = os.pipe()
    our_answers, answers = os.pipe()
    options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"
    start = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
    words = ["bash", "-c", start, str(CHROMIUM), "--remote-debugging-pipe", *options.split()]
    process = subprocess.Popen(
        [*words, f"--user-data-dir={folder / 'profile'}"],
        pass_fds=(commands, answers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    try:
        page = Page(our_commands, our_answers)
        yield page
        page._session = None
        with suppress(AssertionError, OSError):
            page.call("Browser.close")
    finally:
        os.close(our_commands)
        os.close(our_answers)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
