"""The lab in one tab of headless Chromium: what a reader does there, what it shows, and what it takes."""

import contextlib
import json
import time

import browser_check
import psutil
from browser_check import Browser

LAB = "book/lab.html"
TOLERANCE = 1e-4  # logits
VERDICT = "#lab-patch .lab-verdict"
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36}
KEYS |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
SHIFT = 8
HIDDEN = """const at = document.activeElement, box = at.getBoundingClientRect();
const there = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
return !(there && (at.contains(there) || at.closest('label')?.contains(there)));"""


class Lab:
    """The page in a tab. Everything that reads an answer waits until the page has settled."""

    def __init__(self, browser: Browser):
        self.browser = browser
        browser.socket.settimeout(300)

    def open(self, address: str, theme: str = "light", width: int = 1440, **features: str) -> list[str]:
        """Load the page anew and wait until its models have run; returns what the browser complained of."""
        self.browser.call("Page.navigate", url="about:blank")  # an address that differs after # alone loads nothing
        self.browser.load(address, theme, width, **features)
        self.ready()
        host = "" if address.startswith("file:") else address.split("/")[2]
        told = browser_check.told(self.browser.events, host)
        return [text for text in told if "another host: file:" not in text]

    def ready(self) -> None:
        """Wait until the lab says that it is open; RuntimeError after three minutes."""
        for _ in range(1800):
            if self.js("return document.querySelector('#lab[data-ready]') !== null"):
                return
            time.sleep(0.1)
        told = "; ".join(text for text in browser_check.told(self.browser.events, "") if "another host" not in text)
        raise RuntimeError(f"The lab was not ready within three minutes. {told}")

    def js(self, code: str):
        """What the body of an asynchronous function returns in the page; RuntimeError with what it throws."""
        options = {"awaitPromise": True, "returnByValue": True}
        answer = self.browser.call("Runtime.evaluate", expression=f"(async () => {{{code}}})()", **options)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def text(self, selector: str) -> str:
        """The words of an element."""
        return self.js(f"return document.querySelector({json.dumps(selector)}).textContent")

    def until(self, condition: str) -> bool:
        """Whether the condition, an expression of the page, comes true within two minutes."""
        for _ in range(1200):
            if self.js(f"return Boolean({condition})"):
                return True
            time.sleep(0.1)
        return False

    def idle(self) -> bool:
        """Whether what is under way ends."""
        return self.until("!document.querySelector('.lab-busy')")

    # --- the reader's hands ------------------------------------------------------------------------------------------

    def click(self, selector: str) -> None:
        """Press what the selector finds."""
        self.js(f"document.querySelector({json.dumps(selector)}).click(); await rewired.ui.settled();")

    def press(self, *keys: str, modifiers: int = 0) -> None:
        """Keys as the reader presses them, one after another."""
        for key in keys:
            about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key], "modifiers": modifiers}
            text = {"Enter": {"text": "\r"}, " ": {"text": " ", "code": "Space"}}.get(key, {})
            self.browser.call("Input.dispatchKeyEvent", type="keyDown", **(about | text))
            self.browser.call("Input.dispatchKeyEvent", type="keyUp", **about)
        self.js("await rewired.ui.settled()")

    def tab_to(self, selector: str, back: bool = False) -> str | None:
        """Press Tab (with Shift, ``back``) until the focus is on what the selector finds; else, what is wrong."""
        for _ in range(200):
            self.press("Tab", modifiers=SHIFT if back else 0)
            if self.js(f"return document.activeElement.matches({json.dumps(selector)})"):
                return f"{selector} has the focus and is hidden" if self.js(HIDDEN) else None
        return f"the Tab key does not lead {'back ' if back else ''}to {selector}"

    def slide(self, k: int) -> None:
        """Put the second view's slider to checkpoint ``k``."""
        self.js(f"""const slider = rewired.ui.field('episode');
            slider.value = {k};
            slider.dispatchEvent(new Event('input', {{bubbles: true}}));""")

    # --- what the browser takes --------------------------------------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """The browser and all that it has started."""
        top = psutil.Process(self.browser.process.pid)
        return [top, *top.children(recursive=True)]

    def cpu(self) -> float:
        """Processor seconds of all processes so far."""
        total = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> tuple[float, float]:
        """MB of the process that runs the page, the largest beside the browser's own: without and with garbage."""
        sizes = []
        for _ in range(2):
            sizes.append(max(process.memory_info().rss for process in self.processes()[1:]) / 1e6)
            self.browser.call("HeapProfiler.collectGarbage")
        return sizes[1], sizes[0]
