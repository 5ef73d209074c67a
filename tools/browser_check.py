"""Open every page of the built site in headless Chromium and report what a reader must never meet.

Each page is loaded twice: in the light theme on a desk-wide screen, and in the dark theme at the width of a telephone.
Reported are console errors and uncaught exceptions, requests that fail or go to another host, images that do not show,
links to nowhere, a page wider than the screen, a table that is cut (on a telephone: its first two columns), text too
faint for its background, formulas that were not set, code that must be scrolled sideways on the wide screen, text in a
figure that a telephone cannot show, and tracebacks. What is folded is opened first. Chromium is driven through its
DevTools protocol.

    python tools/browser_check.py [_build/html]
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import websocket

VIEWS = {"light, 1440 px": ("light", 1440), "dark, 390 px": ("dark", 390)}
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MIN_CONTRAST = 3.0
SMALLEST = 9.0
"""Pixels of the smallest text in a figure, on a telephone; a figure's file says what it has (`rewired.plots.save`)."""

PROBE = (Path(__file__).parent / "browser_probe.js").read_text().replace("MIN_CONTRAST", str(MIN_CONTRAST))


def reply(connection: websocket.WebSocket, number: int, others: list[dict]) -> dict:
    """The answer to a browser's command of this number; messages that arrive before it are added to ``others``."""
    while True:
        message = json.loads(connection.recv())
        if message.get("id") == number:
            return message
        others.append(message)


class Browser:
    """One tab of a headless Chromium. ``open`` loads a page and returns what it told and what it asked for."""

    def __init__(self, program: str, profile_folder: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            *(f"--user-data-dir={profile_folder}", f"--remote-debugging-port={port}"),
        ]
        self.process = subprocess.Popen([program, *options, "about:blank"], stderr=subprocess.DEVNULL)
        self.socket = websocket.create_connection(self._tab(port), suppress_origin=True, timeout=60)
        self.count, self.events = 0, []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def _tab(self, port: int) -> str:
        """The address of the first tab's socket, once Chromium listens."""
        for _ in range(300):
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as reply:
                    tabs = [tab for tab in json.load(reply) if tab["type"] == "page"]
                if tabs:
                    return tabs[0]["webSocketDebuggerUrl"]
            time.sleep(0.2)
        raise RuntimeError("Chromium did not start within a minute.")

    def call(self, method: str, **parameters) -> dict:
        """Send one command and return its result; events that arrive meanwhile are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        message = reply(self.socket, self.count, self.events)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def load(self, address: str, theme: str, width: int, **features: str) -> None:
        """One page in one theme at one width; more media features are named with _ for -."""
        wanted = {"prefers-color-scheme": theme} | {name.replace("_", "-"): value for name, value in features.items()}
        media = [{"name": name, "value": value} for name, value in wanted.items()]
        self.call("Emulation.setEmulatedMedia", features=media)
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        self.events = []
        loader = self.call("Page.navigate", url=address)["loaderId"]
        loaded = {"name": "load", "loaderId": loader}
        while not any(loaded.items() <= event.get("params", {}).items() for event in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def open(self, address: str, theme: str, width: int) -> tuple[dict, list[dict]]:
        """(what the probe found, the events) for one page in one theme at one width."""
        self.load(address, theme, width)
        found = self.call("Runtime.evaluate", expression=PROBE, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"The probe failed on {address}: {found['exceptionDetails']}")
        return found["result"]["value"], self.events

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self.socket.close()
        self.process.wait(timeout=20)


def told(events: list[dict], host: str) -> Iterator[str]:
    """Problems among the browser's events: console errors, exceptions, failed requests, requests to other hosts."""
    asked = {}
    for event in events:
        method, about = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            yield "console error: " + " ".join(str(a.get("value", a.get("description"))) for a in about["args"])
        elif method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            yield f"exception: {details.get('exception', {}).get('description', details['text'])}"
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            yield f"console error: {about['entry']['text']} {about['entry'].get('url', '')}"
        elif method == "Network.requestWillBeSent":
            address = about["request"]["url"]
            asked[about["requestId"]] = address
            if urlparse(address).scheme not in ("data", "blob", "about") and urlparse(address).netloc != host:
                yield f"request to another host: {address}"
        elif method == "Network.responseReceived" and about["response"]["status"] >= 400:
            yield f"request failed ({about['response']['status']}): {about['response']['url']}"
        elif method == "Network.loadingFailed" and not about.get("canceled"):
            yield f"request failed ({about['errorText']}): {asked.get(about['requestId'], '?')}"


def seen(page: dict, theme: str) -> Iterator[str]:
    """Problems that the probe found on one page."""
    if page["theme"] != theme:
        yield f"theme is {page['theme']!r}, not {theme!r}"
    if page["wide"] > 1:
        yield f"{page['wide']} px wider than the screen ({', '.join(page['culprits'])})"
    if theme == "light":  # on a telephone code may scroll
        yield from (f"code scrolls sideways: {text}" for text in page["scrolls"])
    yield from (f"table is cut: {text}" for text in page["cut"])
    yield from (f"image does not show: {image}" for image in page["images"])
    yield from (f"faint text: {text}" for text in page["faint"])
    yield from (f"formula not set: {text}" for text in page["unset"])
    if "Traceback (most recent call last)" in page["text"]:
        yield "a traceback"


def dead_links(pages: dict[str, dict], root: str, folder: Path) -> Iterator[tuple[str, str]]:
    """(page, link) for each link inside the site whose file or whose place in it does not exist."""
    targets = {address: set(page["targets"]) for address, page in pages.items()}
    for address, page in pages.items():
        for link in sorted(set(page["links"])):
            file, place = urldefrag(urljoin(address, link))
            if not file.startswith(root):
                continue
            path = folder / unquote(urlparse(file).path).lstrip("/")
            missing = not (path / "index.html" if path.is_dir() else path).is_file()
            if missing or (place and file in targets and unquote(place) not in targets[file]):
                yield address, link


def tiny(folder: Path) -> Iterator[str]:
    """Figures of the site, in files or in pages, with text that a telephone cannot show."""
    for file in (*sorted(folder.rglob("*.svg")), *pages_of(folder)):
        for size in re.findall(r"smallest text: ([\d.]+) px of 342", file.read_text()):
            if float(size) < SMALLEST:
                yield f"{file.relative_to(folder).as_posix()}: a figure with text of {size} px on a telephone"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address under which ``folder`` is served on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


def pages_of(folder: Path) -> list[Path]:
    """The site's pages, without the theme's own files and without the start page when that only leads to another."""
    pages = [file for file in sorted(folder.rglob("*.html")) if "_static" not in file.relative_to(folder).parts]
    return [file for file in pages if 'http-equiv="refresh"' not in file.read_text().lower()]


def check(folder: Path) -> list[str]:
    """All problems of the site in ``folder``, one line each; [] for a clean one."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit(f"The browser check needs Chromium; none of {', '.join(PROGRAMS)} is installed.")
    files, problems, pages = pages_of(folder), [*tiny(folder)], {}
    with served(folder) as root, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        browser = Browser(program, scratch)
        try:
            for file in files:
                name = file.relative_to(folder).as_posix()
                for view, (theme, width) in VIEWS.items():
                    page, events = browser.open(root + name, theme, width)
                    found = [*told(events, urlparse(root).netloc), *seen(page, theme)]
                    problems += [f"{name} ({view}): {problem}" for problem in dict.fromkeys(found)]
                    pages[root + name] = page
        finally:
            browser.close()
        problems += [
            f"{page.removeprefix(root)}: dead link {link.removeprefix(root)}"
            for page, link in dead_links(pages, root, folder)
        ]
    print(f"{len(files)} pages, each in {len(VIEWS)} views: {len(problems)} problem{'' if len(problems) == 1 else 's'}")
    return problems


def main() -> int:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "_build/html")
    if not (folder / "index.html").is_file():
        raise SystemExit(f"There is no built site in {folder}; `make book` makes it.")
    problems = check(folder)
    print("\n".join(problems))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
