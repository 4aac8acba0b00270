"""Pages in a browser, as their readers have them."""

import json
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

# `pytestmark` of tests that look with the fixture `browser`.
in_browser = [
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="There is no Chromium to look with: apt-get install chromium chromium-driver.",
    ),
    # selenium leaves its connection to the driver to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@contextmanager
def started(profile: Path) -> Iterator[Any]:
    """A browser that keeps a record of its console and of its requests."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def look(browser: Any, address: str, *, width: int = 1280, scheme: str = "light") -> None:
    """Open a page anew, with nothing in the logs but its own."""
    browser.get("about:blank")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for name in ("browser", "performance"):
        browser.get_log(name)
    browser.get(address)


def texts(browser: Any, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((x) => x.textContent)"
    return browser.execute_script(script, selector)


def assert_quiet(browser: Any, address: str, *, beside: Collection[str] = ()) -> None:
    """The page opened last has said nothing on the console, and has asked for itself only, and
    for the files beside it that are named.
    """
    assert browser.get_log("browser") == []
    events = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert {x.partition(":")[0] for x in asked} <= {"file", "data"}
    assert [x for x in asked if x.startswith("file:") and x not in beside] == [address]
    resources = "return performance.getEntriesByType('resource').map((x) => x.name)"
    named = set(browser.execute_script(resources)) - {*beside}
    assert all(name.startswith("data:") for name in named)
