"""Chromium and Firefox without a window, each with one tab in which JavaScript is run."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import websocket

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import browser_check  # noqa: E402

PATIENCE = 3000  # seconds for one answer


class Tab:
    """What both browsers have in common: `ask` evaluates an expression, the rest is built on it."""

    process: subprocess.Popen

    def ask(self, expression: str):
        """The value of an expression, a promise awaited; only what JSON can say."""
        raise NotImplementedError

    def run(self, code: str, **given):
        """What an async function of this body returns; ``given`` are its constants."""
        names = "".join(f"const {name} = {json.dumps(value)};" for name, value in given.items())
        return json.loads(self.ask(f"(async () => {{ {names} {code} }})().then((it) => JSON.stringify(it ?? null))"))


class Chromium(Tab):
    programs = browser_check.PROGRAMS

    def __init__(self, program: str, scratch: str):
        self.browser = browser_check.Browser(program, scratch)
        self.browser.socket.settimeout(PATIENCE)
        self.process = self.browser.process

    def open(self, address: str) -> None:
        self.browser.call("Page.navigate", url=address)

    def ask(self, expression: str):
        answer = self.browser.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def close(self) -> None:
        self.browser.close()


class Firefox(Tab):
    """Driven through WebDriver BiDi."""

    programs = ("firefox", "firefox-esr")

    def __init__(self, program: str, scratch: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["--headless", "--no-remote", "--profile", scratch, f"--remote-debugging-port={port}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([program, *options], **quiet)
        self.count = 0
        for _ in range(300):
            with contextlib.suppress(OSError):
                address = f"ws://127.0.0.1:{port}/session"
                self.socket = websocket.create_connection(address, suppress_origin=True, timeout=PATIENCE)
                break
            time.sleep(0.5)
        self.call("session.new", capabilities={})
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **parameters) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        message = browser_check.reply(self.socket, self.count, [])
        if message["type"] == "error":
            raise RuntimeError(f"{method}: {message['message']}")
        return message["result"]

    def open(self, address: str) -> None:
        self.call("browsingContext.navigate", context=self.context, url=address, wait="none")

    def ask(self, expression: str):
        where = {"target": {"context": self.context}, "awaitPromise": True}
        answer = self.call("script.evaluate", expression=expression, **where)
        if answer["type"] == "exception":
            raise RuntimeError(answer["exceptionDetails"]["text"])
        return answer["result"].get("value")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("browser.close")
        self.socket.close()
        self.process.wait(timeout=60)


BROWSERS = {"chromium": Chromium, "firefox": Firefox}
