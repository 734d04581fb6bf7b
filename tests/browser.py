"""A headless Chromium for the tests, driven through the pipe of its DevTools protocol: no library needed."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe", "about:blank",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 60  # seconds; a busy machine is not a bug


def find_chromium() -> str | None:
    """Path of a Chromium, or None; the variable CHROMIUM may name one."""
    names = (os.environ.get("CHROMIUM", ""), *NAMES)
    return next((path for name in names if (path := shutil.which(name))), None)


class Page:
    """One tab: what it is told, and everything it logged or asked for since it was opened."""

    def __init__(self, program: str, profile: Path) -> None:
        self.events: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)
        self._rest = b""
        down, self._out = os.pipe()
        self._in, up = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4; the numbers here must not be these two.
        far = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (down, up)]
        command = [sys.executable, "-c", START, *map(str, far), program, f"--user-data-dir={profile}", *FLAGS]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, pass_fds=far, stdin=quiet, stdout=quiet, stderr=quiet)
        for end in (down, up, *far):
            os.close(end)
        targets = self._ask("Target.getTargets", {}, "")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True}, "")["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)  # at the end of the commands Chromium ends itself
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        return self._ask(method, parameters, self._session)

    def open(self, url: str) -> float:
        """Open a page and wait until it is loaded; the seconds that took, as the page itself measured them."""
        self.events.clear()
        self.ask("Page.navigate", url=url)
        self._wait(lambda: any(e["method"] == "Page.loadEventFired" for e in self.events))
        return float(self.value("performance.getEntriesByType('navigation')[0].loadEventStart")) / 1000

    def value(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page; a page without scripts has no say in it."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def size(self, width: int, height: int = 900, scale: float = 1, *, phone: bool = False) -> None:
        """Give the window a size in CSS pixels; a phone obeys the page's viewport."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )

    def scheme(self, name: str, media: str = "") -> None:
        """Prefer a colour scheme, "light" or "dark"; media "print" is paper."""
        self.ask("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": name}])

    def press(self, key: str) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """What the console shows: messages, exceptions, violations of the content security policy."""
        wanted = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in wanted]

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def _ask(self, method: str, parameters: dict[str, Any], session: str) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        answers: list[dict[str, Any]] = []

        def answered() -> bool:
            answers.extend(e for e in self.events if e.get("id") == number)
            return bool(answers)

        self._wait(answered)
        self.events[:] = [e for e in self.events if "method" in e]
        if "error" in answers[0]:
            raise AssertionError(f"{method}: {answers[0]['error']}")
        return dict(answers[0]["result"])

    def _wait(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            if not data:
                raise AssertionError(f"Chromium said nothing for {PATIENCE} seconds, or ended")
            *whole, self._rest = (self._rest + data).split(b"\0")
            self.events.extend(json.loads(message) for message in whole)
