"""A headless Chromium, driven through chromedriver's W3C protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE = 300  # seconds for an answer: machines may be busy
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's key for "this is an element"
KEYS = {"Tab": "\ue004", "Enter": "\ue007", "Space": " "}


def missing():
    """Say in one line what a test needs and this machine lacks; empty when all is there."""
    if shutil.which("chromedriver") is None or _chromium() is None:
        return "needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
    return ""


def axe():
    """The checker of accessibility, axe-core, as text; empty when nobody put it here.

    `npm install axe-core` in the clone, or SSL_KD_AXE=path/to/axe.min.js.
    """
    places = [os.environ.get("SSL_KD_AXE", ""), "node_modules/axe-core/axe.min.js"]
    places += [f"{root}/lib/node_modules/axe-core/axe.min.js" for root in ("/usr", "/usr/local")]
    return next((Path(one).read_text(encoding="utf-8") for one in places if one and Path(one).is_file()), "")


def missing_axe():
    """As `missing`, with axe-core."""
    return missing() or ("" if axe() else "needs axe-core (npm install axe-core, or SSL_KD_AXE=path/to/axe.min.js)")


def _chromium():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One window; `with Browser(folder) as browser: browser.open(path)`."""

    def __init__(self, folder, width=1200, height=900, dark=False):
        self.folder, self.size, self.dark = Path(folder), (width, height), dark

    def __enter__(self):
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            line = next(line for line in self.driver.stdout if "started successfully on port" in line)
            port = re.search(r"port (\d+)", line)[1]
            self.address = f"http://127.0.0.1:{port}"
            self.session = ""
            options = {
                "binary": _chromium(),
                "args": [*FLAGS, f"--user-data-dir={self.folder / 'profile'}"],
            }
            wanted = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            made = self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self.session = f"/session/{made['sessionId']}"
            width, height = self.size
            metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
            self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
            self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self.driver.kill()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(10)
            self.driver.stdout.close()

    def call(self, verb, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=verb)
        plain = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with plain.open(request, timeout=PATIENCE) as answer:
            return json.load(answer)["value"]

    def devtools(self, command, **settings):
        return self.call("POST", f"{self.session}/goog/cdp/execute", {"cmd": command, "params": settings})

    def open(self, path):
        self.call("POST", f"{self.session}/url", {"url": Path(path).resolve().as_uri()})

    def run(self, script, *arguments):
        """Run the body of a function and return what it returns."""
        return self.call("POST", f"{self.session}/execute/sync", {"script": script, "args": list(arguments)})

    def faults(self):
        """What axe-core finds wrong with the page: (rule, how bad, the first element) of each fault."""
        self.run(axe())
        self.call("POST", f"{self.session}/timeouts", {"script": 1000 * PATIENCE})
        script = (
            "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(found => done(found.violations.map("
            "one => [one.id, one.impact, one.nodes[0].html.slice(0, 160), one.nodes.length])), e => done(String(e)))"
        )
        found = self.call("POST", f"{self.session}/execute/async", {"script": script, "args": []})
        assert isinstance(found, list), found
        return found

    def find(self, selector):
        return self.call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector):
        self.call("POST", f"{self.session}/element/{self.find(selector)}/click", {})

    def write(self, selector, text):
        """Click into a field and type a text."""
        self.click(selector)
        self.call("POST", f"{self.session}/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys):
        """Type keys into whatever has the focus."""
        steps = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", f"{self.session}/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def log(self, kind):
        return self.call("POST", f"{self.session}/se/log", {"type": kind})

    def requests(self):
        """The addresses that pages from disk asked for, themselves among them; not the browser's own first page."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in asked if one["documentURL"].startswith("file:")]

    def picture(self, path, whole=True):
        """Save what is shown, or the whole page, as a PNG."""
        shot = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
