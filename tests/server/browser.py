"""A headless Chromium of Debian's packages, and what tests ask of it."""

import base64
import json
import shutil
import time
from pathlib import Path

from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
_FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars", "no-first-run")
_SECONDS = 60


class Browser:
    """One window; use it with ``with``."""

    def __init__(self, folder):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (*_FLAGS, "window-size=1360,900", f"user-data-dir={folder}"):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, selector):
        return self.find(selector).text

    def until(self, probe, seconds=_SECONDS):
        """Wait until ``probe`` returns something true, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = probe()
            except (NoSuchElementException, StaleElementReferenceException) as error:
                found, error.__traceback__ = None, None
            if found:
                return found
            assert time.monotonic() < deadline, f"waited {seconds} s for it; the page says:\n{self.text('body')}"
            time.sleep(0.05)

    def sees(self, selector, text="", seconds=_SECONDS):
        """Wait until an element that is shown has this text in it."""
        return self.until(
            lambda: next((item for item in self.all(selector) if item.is_displayed() and text in item.text), None), seconds
        )

    def click(self, selector, text=""):
        self.sees(selector, text).click()

    def type(self, name, text):
        """Put a text into a field of the form."""
        field = self.find(f"#form [name={name}]")
        folded = self.find("#form details")
        if not field.is_displayed() and not folded.get_attribute("open"):
            folded.find_element(By.TAG_NAME, "summary").click()
        field.clear()
        field.send_keys(text)

    def hover(self, element):
        ActionChains(self.driver).move_to_element(element).perform()

    def drop(self, selector, path):
        """Drop a file as a file manager does."""
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        place = self.run(
            "const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]", element
        )
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.tell("Input.dispatchDragEvent", type=kind, x=place[0], y=place[1], data=data)

    def emulate(self, scheme="light", motion="no-preference"):
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.tell("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()])

    def resize(self, width, height, *, phone=False):
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )

    def tell(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def screenshot(self, name):
        """Keep a picture of the whole page for people to look at."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        width, height = self.run("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        taken = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))

    def complaints(self):
        """What the console has said since the last time: errors, warnings, refusals of the content policy."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def requests(self):
        """The addresses that were asked since the last time."""
        told = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [item["params"]["request"]["url"] for item in told if item["method"] == "Network.requestWillBeSent"]
