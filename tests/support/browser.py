"""A headless Chromium for tests, spoken to over a pipe in its own protocol: no driver, no port, no package."""

import base64
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60
"""That Chromium may take to answer."""
MOST_WORDS, MOST_NUMBERS = 90, 12
"""On the first screen of a page."""
CHECKS = Path(__file__).with_name("accessibility.js")


def find() -> str:
    """Return the path of a Chromium; where there is none, skip the test, or fail it in CI."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail(f"CI needs a Chromium, found none of {', '.join(NAMES)}")
    pytest.skip("needs a Chromium")


@dataclass
class Browser:
    """One page of a Chromium, and what happened on it.

    Attributes:
        requests: addresses asked for, other than data in the page.
        complaints: errors and warnings of its console.
    """

    to: int
    back: int
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    session: str = ""
    _buffer: bytes = b""
    _next: int = 0

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and return its answer; what else comes is noted."""
        self._next += 1
        message: dict[str, object] = {"id": self._next, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._next:
            self._note(answer)
        assert "error" not in answer, f"{method}: {answer['error']}"
        found: dict[str, Any] = answer["result"]
        return found

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self.back], [], [], SECONDS)[0], "Chromium does not answer"
            more = os.read(self.back, 1 << 20)
            assert more, "Chromium has gone"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, what = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            if not what["request"]["url"].startswith("data:"):
                self.requests.append(what["request"]["url"])
        elif method == "Log.entryAdded":
            self.complaints.append(what["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(what["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(what["args"]))

    def open(self, page: Path, *, scripts: bool = True, width: int = 1280, height: int = 900) -> None:
        """Open a file and wait until it is laid out; what was noted of an earlier one is forgotten."""
        if not self.session:
            self._attach()
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.requests.clear()
        self.complaints.clear()
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while True:
            event = self._read()
            self._note(event)
            if event.get("method") == "Page.loadEventFired":
                break

    def _attach(self) -> None:
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def media(self, scheme: str = "light", kind: str = "screen") -> None:
        """Prefer light or dark, on a screen or in print."""
        wish = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=kind, features=wish)

    def run(self, expression: str) -> Any:
        """Return the value of an expression on the page, which runs even where the page's own scripts may not."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Return the value of an expression as soon as it is true."""
        end = time.monotonic() + SECONDS
        while not (value := self.run(expression)):
            assert time.monotonic() < end, f"never: {expression}"
            time.sleep(0.02)
        return value

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                modifiers=8 * shift,
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, selector: str, path: Path) -> None:
        """Save a picture of the part of the page that a selector names first."""
        clip = self.run(
            f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}; })()"
        )
        shot = self.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        """Print the page."""
        made = self.ask("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(made["data"]))

    def first_screen_faults(self, page: Path, *, picture: bool = True) -> list[str]:
        """Return what keeps a reader of one screen, of a phone, in the dark or on paper from a page's summary.

        The first screen is that of 1280 × 800 dots, the sheet A4. The figure's labels and the page's controls are no words.

        Args:
            page: with a summary.
            picture: whether its figure should hold pictures.
        """
        found = []
        self.open(page, width=1280, height=800)
        self.media()
        for part in (".answer", "figure svg", ".marks", ".sure p"):
            left, top, right, bottom = self.run(
                f"(({{left, top, right, bottom}}) => [left, top, right, bottom])"
                f"(document.querySelector('.summary {part}').getBoundingClientRect())"
            )
            if not (0 <= top < bottom <= 800 and right - left > 250):
                found.append(f"{part} from {top:.0f} to {bottom:.0f} is not on the screen")
        parts = "document.querySelectorAll('header, .summary .answer, .summary .sure')"
        text: str = self.run(f"[...{parts}].map((part) => part.innerText).join(' ')")
        for what, count, most in (
            ("words", len(text.split()), MOST_WORDS),
            ("numbers", len(re.findall(r"\d+(?:[.,]\d+)*", text)), MOST_NUMBERS),
        ):
            if count > most:
                found.append(f"{count} {what}: {text}")
        if picture and not self.run("document.querySelectorAll('.summary figure svg image').length"):
            found.append("no picture")
        found += [f"asks for {address}" for address in self.requests[1:]] + self.complaints
        self.open(page, width=400)
        for scheme in ("dark", "light"):
            self.media(scheme)
            if (wide := self.run("document.documentElement.scrollWidth")) > 400:
                found.append(f"{wide} dots wide on a phone")
            found += [f"{scheme}: {fault}" for fault in self.faults()]
        self.open(page, width=688)  # A4 between the page's margins, at 96 dots an inch
        self.media(kind="print")
        if (sheet := self.run("document.querySelector('.summary').getBoundingClientRect().bottom + scrollY")) > 1001:
            found.append(f"{sheet:.0f} dots high in print")
        if self.run("getComputedStyle(document.querySelector('.verdict')).breakBefore") != "page":
            found.append("in print the findings begin on the summary's sheet")
        if not self.run("document.querySelector('.summary .read p').getBoundingClientRect().height"):
            found.append("the figure's caption is not printed")
        self.media()
        return found

    def faults(self) -> list[str]:
        """Return what keeps people from using the page, in the words of `accessibility.js`."""
        found: list[str] = self.run(CHECKS.read_text(encoding="utf-8"))
        return found


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Run a Chromium that keeps its files in a folder, and end it."""
    read, to = os.pipe()
    back, write = os.pipe()
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--disable-extensions",
        "--disable-dev-shm-usage",
        f"--user-data-dir={profile}",
        "--remote-debugging-pipe",
    )
    # Chromium reads commands at 3 and answers at 4.
    swap = f"import os, sys; os.dup2({read}, 3); os.dup2({write}, 4); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", swap, find(), *options]
    with (
        (profile / "log").open("wb") as log,
        subprocess.Popen(command, pass_fds=(read, write), stdout=log, stderr=log) as process,
    ):
        os.close(read)
        os.close(write)
        try:
            yield Browser(to, back)
        finally:
            os.close(to)
            os.close(back)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
