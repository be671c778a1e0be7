"""A real Chromium that tests drive: it reads pages from disk, and whatever it complains of or loads fails the test."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE = 120
"""Seconds that what must come is waited for, such as a training run that a page follows."""


class Browser:
    """What the tests ask of the browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1200, height: int = 900, scheme: str = "light") -> None:
        """Show a page in a window of this size, for a reader whose system has this scheme of colours."""
        self.size(width, height)
        self.scheme(scheme)
        self.driver.get(page.as_uri())

    def size(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, value: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": value}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str) -> Any:
        """The first true value of an expression, which must come in time without the page being loaded again."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.1).until(lambda _: self.run(f"return {script}"))

    def texts(self, selector: str) -> list[str]:
        """Words of what is shown; of a table's cell without its smaller lines."""
        return [element.text.split("\n")[0] for element in self.all(selector) if element.is_displayed()]

    def point_at(self, element: Any) -> None:
        from selenium.webdriver import ActionChains

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver, duration=0).move_to_element(element).perform()

    def press(self, *keys: str) -> Any:
        """Press keys on what has the focus, and give what has it then."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)
        return self.driver.switch_to.active_element

    @contextmanager
    def stored(self, key: str, value: str) -> Iterator[None]:
        """Pages loaded meanwhile find this in their storage; all others find it empty."""
        added = self.at_each_load(f"localStorage.setItem({json.dumps(key)}, {json.dumps(value)})")
        yield
        self.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)

    def at_each_load(self, script: str) -> Any:
        """Have a script run before those of any page, after the scripts that were named before."""
        return self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})

    def requests(self) -> list[str]:
        """Addresses that were asked for since the last call."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="session")
def started_browser() -> Iterator[Browser]:
    """One browser for all tests of a process."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    service = shutil.which("chromedriver")
    if binary is None or service is None:
        pytest.skip("needs chromium and chromedriver on PATH")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(service))
    browser = Browser(driver)
    # Chromium's processes have copies of what is stored, and show a page late, or not, what another one stored.
    browser.at_each_load("try { localStorage.clear(); } catch { /* a page without storage */ }")
    yield browser
    driver.quit()


@pytest.fixture
def browser(started_browser: Browser) -> Iterator[Browser]:
    """The browser, empty before a test; after it, nothing may have been complained of or loaded from anywhere."""
    driver = started_browser.driver
    driver.get("about:blank")
    driver.get_log("browser")
    started_browser.requests()
    yield started_browser
    assert driver.get_log("browser") == []
    assert [url for url in started_browser.requests() if not url.startswith(("file:", "data:", "about:"))] == []
