"""Pages in a real browser, headless: Chromium, driven over the DevTools protocol."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

type Json = dict[str, Any]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS = 30
ANSWER_SECONDS = 10

MISFITS = """
(() => {
  const all = [...document.querySelectorAll('*')], style = one => getComputedStyle(one);
  const wide = all
    .filter(one => one === document.documentElement || ['auto', 'scroll'].includes(style(one).overflowX))
    .filter(one => one.scrollWidth > one.clientWidth)
    .map(one => `${one.tagName} scrolls: ${one.scrollWidth} > ${one.clientWidth}`);
  const ragged = all
    .filter(one => style(one).display === 'grid')
    .filter(one => one.children.length % style(one).gridTemplateColumns.split(' ').length)
    .map(one => `${one.tagName} has a row that is not full`);
  return [...wide, ...ragged];
})()
"""
"""What scrolls sideways (the page itself, or a part of it), and grids whose last row is not full."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One page: what does not fit, by width (CSS pixels), what was complained of, what else was asked for."""

    misfits: Mapping[int, list[str]]
    complaints: list[str]
    requests: list[str]


def find_program() -> str | None:
    """The browser's program, or None where there is none on the PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def look_at(program: str, profile: Path, pages: Sequence[Path], widths: Sequence[int]) -> dict[Path, Seen]:
    """Open every page and give it every width. `profile` is an empty folder for the browser."""
    return asyncio.run(_look_at(program, profile, pages, widths))


async def _look_at(program: str, profile: Path, pages: Sequence[Path], widths: Sequence[int]) -> dict[Path, Seen]:
    async with running_browser(program, profile) as tab:
        return {page: await tab.look_at(page, widths) for page in pages}


class Tab:
    """One tab. Messages are answered in order; what comes between is kept in `events`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self._session: Json = {}
        self.events: list[Json] = []

    async def open(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        await self.call("Page.setLifecycleEventsEnabled", enabled=True)

    async def look_at(self, page: Path, widths: Sequence[int]) -> Seen:
        self.events.clear()
        navigation = await self.call("Page.navigate", url=page.as_uri())
        while not any(is_quiet(event, navigation["loaderId"]) for event in self.events):
            await self._receive()
        return Seen(
            misfits={width: await self._misfits(width) for width in widths},
            complaints=list(filter(None, map(complaint, self.events))),
            requests=[url for url in map(requested, self.events) if url and url != page.as_uri()],
        )

    async def _misfits(self, width: int) -> list[str]:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        found = await self.call("Runtime.evaluate", expression=MISFITS, returnByValue=True)
        return list(found["result"]["value"])

    async def call(self, method: str, **parameters: object) -> Json:
        self._calls += 1
        number = self._calls
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **self._session})
        while True:
            message = await self._receive()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message}"
                result: Json = message["result"]
                return result

    async def _receive(self) -> Json:
        message: Json = await self._socket.receive_json(timeout=ANSWER_SECONDS)
        if "method" in message:
            self.events.append(message)
        return message


def is_quiet(event: Json, loader: str) -> bool:
    """Whether that page is loaded and has asked for nothing for half a second."""
    parameters = event["params"]
    is_lifecycle = event["method"] == "Page.lifecycleEvent"
    return is_lifecycle and (parameters["name"], parameters["loaderId"]) == ("networkIdle", loader)


def complaint(event: Json) -> str:
    """An error or warning of the console, a script that failed, or a request that did; else nothing."""
    match event:
        case {"method": "Log.entryAdded", "params": {"entry": {"level": "error" | "warning", "text": str(text)}}}:
            return text
        case {"method": "Runtime.consoleAPICalled", "params": {"type": "error" | "warning" | "assert", "args": args}}:
            return json.dumps(args)
        case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": {"text": str(text)}}}:
            return text
        case {"method": "Network.loadingFailed", "params": {"errorText": str(text)}}:
            return text
        case _:
            return ""


def requested(event: Json) -> str:
    if event["method"] != "Network.requestWillBeSent":
        return ""
    return str(event["params"]["request"]["url"])


@asynccontextmanager
async def running_browser(program: str, profile: Path) -> AsyncIterator[Tab]:
    """A tab of a browser of its own. No sandbox: containers forbid it, and the pages are our own."""
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage")
    process = subprocess.Popen(
        [program, *flags, "--remote-debugging-port=0", f"--user-data-dir={profile}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = await devtools_address(process, profile)
        async with aiohttp.ClientSession() as client, client.ws_connect(address, max_msg_size=0) as socket:
            tab = Tab(socket)
            await tab.open()
            yield tab
            await tab.call("Browser.close")
            process.wait(ANSWER_SECONDS)
    finally:
        process.kill()
        process.wait()


async def devtools_address(process: "subprocess.Popen[bytes]", profile: Path) -> str:
    """Where the browser listens: it writes its port and path into its profile once it does."""
    told = profile / "DevToolsActivePort"
    async with asyncio.timeout(START_SECONDS):
        while not (told.exists() and re.fullmatch(r"\d+\n/\S+\s*", told.read_text())):
            assert process.poll() is None, "the browser ended before it listened"
            await asyncio.sleep(0.05)
    port, path = told.read_text().split()
    return f"ws://127.0.0.1:{port}{path}"
