"""A headless Chromium for the tests of pages, and what every page is asked: silent, alone, no wider than the window."""

from __future__ import annotations

import os
import shutil
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def start() -> webdriver.Chrome:
    """Start the browser that the system has; `make browser` installs one."""
    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    assert binary, "no Chromium on PATH: run `make browser`"
    assert driver, "no chromedriver on PATH: run `make browser`"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses the root user
    # With both paths given, Selenium looks for no driver of its own on the network.
    return webdriver.Chrome(options=options, service=Service(driver))


def opened(browser: webdriver.Chrome, address: str, width: int = 1200, dark: bool = False) -> None:
    """Open a page at a width, in light or dark."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(address)


def quiet(browser: webdriver.Chrome) -> None:
    """Check that the page said nothing on the console and asked for nothing but itself."""
    assert browser.get_log("browser") == []
    sent = [entry["message"] for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert len([message for message in sent if '"url":"data:' not in message]) == 1  # the page itself


def overflow(browser: webdriver.Chrome) -> Any:
    """Give by how many pixels the page is wider than the window."""
    root = "document.documentElement"
    return browser.execute_script(f"return {root}.scrollWidth - {root}.clientWidth")


def lightness(browser: webdriver.Chrome) -> tuple[float, float]:
    """Give how light the page's text and its background are."""
    body = browser.find_element(By.TAG_NAME, "body")
    ink, paper = (body.value_of_css_property(name) for name in ("color", "background-color"))
    first, second = (sum(map(float, colour.partition("(")[2].rstrip(")").split(",")[:3])) for colour in (ink, paper))
    return first, second
