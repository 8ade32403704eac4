"""A page in headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Nothing but this machine has a name, so nothing else can be asked.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)
# Bokeh draws in shadow trees, which innerText leaves out.
TEXT = """
(function text(node) {
    if (node.nodeType === Node.TEXT_NODE) return node.textContent + "\\n";
    if (["STYLE", "SCRIPT"].includes(node.nodeName)) return "";
    const roots = [...(node.shadowRoot ? node.shadowRoot.childNodes : []), ...node.childNodes];
    return roots.map(text).join("");
})(document.body ?? document.createTextNode(""))
"""


def find_chromium() -> str | None:
    """Path of Debian's chromium, None if it is not installed."""
    return shutil.which("chromium")


class Page:
    """One open page."""

    def __init__(self, runner: asyncio.Runner, socket: WebSocketClientConnection) -> None:
        self._runner, self._socket, self._numbers = runner, socket, itertools.count(1)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and wait for its answer."""
        return self._runner.run(asyncio.wait_for(self._call(method, params), 60))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.write_message(
            json.dumps({"id": number, "method": method, "params": params})
        )
        while True:
            message = await self._socket.read_message()
            if message is None:
                raise ConnectionError("chromium has closed the page")
            answer = json.loads(message)
            if answer.get("id") == number:  # the others are events
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def text(self) -> str:
        """Every text that the page shows, canvases left out."""
        return str(self.evaluate(TEXT))

    def wait_for(self, holds: Callable[[str], bool], timeout: float = 60) -> str:
        """Read the text until something holds of it; fails after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while not holds(text := self.text()):
            assert time.monotonic() < deadline, f"after {timeout} s the page shows:\n{text}"
            time.sleep(0.25)
        return text

    def screenshot(self, path: Path) -> None:
        """Save what a person would see as PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def open_page(url: str, width: int = 1400, height: int = 900) -> Iterator[Page]:
    """Start Chromium with one page, and end it."""
    program = find_chromium()
    assert program, "chromium is not installed; .ci/chromium installs it"
    # The browser may still write while its folder is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        flags = (*FLAGS, f"--user-data-dir={folder}", f"--window-size={width},{height}")
        process = subprocess.Popen(
            [program, *flags, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            address = _find_page(Path(folder), process)
            with asyncio.Runner() as runner:
                socket = runner.run(_connect(address))
                page = Page(runner, socket)
                size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
                page.call("Emulation.setDeviceMetricsOverride", **size)
                page.call("Page.navigate", url=url)
                yield page
                socket.close()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def _connect(address: str) -> WebSocketClientConnection:
    return await websocket_connect(address, max_message_size=64 * 2**20)


def _find_page(folder: Path, process: subprocess.Popen[bytes], timeout: float = 60) -> str:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        with suppress(OSError, ValueError, StopIteration, IndexError):
            port = int((folder / "DevToolsActivePort").read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                pages = json.load(answer)
            return next(p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page")
        time.sleep(0.1)
    raise TimeoutError(f"chromium opened no page within {timeout} s")


if __name__ == "__main__":  # python tests/chromium.py URL FILE.png
    with open_page(sys.argv[1]) as shown:
        time.sleep(5)  # the numbers come after the page
        shown.screenshot(Path(sys.argv[2]))
