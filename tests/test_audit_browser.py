"""The audit's page in a real browser: headless Chromium opens it from disk, plays its sounds, and prints it."""

from __future__ import annotations

import base64

import pytest
from selenium.webdriver.common.by import By

from tests.browsing import lightness, opened, overflow, quiet
from tests.test_audit import Planted, song

pytestmark = pytest.mark.slow
LONG = "a_name_without_any_place_to_break_" * 4


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Audit songs with a copy across splits, a bad file, a silent one and long names; give the page's address."""
    planted = Planted(tmp_path_factory.mktemp("audited"))
    planted.add(f"{LONG}.mp3", song(1), "blues", "test")
    planted.add("silent.wav", 0.0 * song(2), "blues", "train")
    (planted.root / "<b>bad.wav").write_bytes(b"no sound")
    planted.add("<b>bad.wav", None, "jazz", "train")
    (planted.root / "音樂.wav").write_bytes(b"no sound either")
    planted.add("音樂.wav", None, "jazz", "train")
    code, record = planted.audit()
    assert (code, record["leaks"]["duplicates"]) == (1, 1), record["split_error"]
    return (planted.root / "out/audit.html").as_uri()


def test_opens_silently_and_plays_what_it_compares(browser, page):
    opened(browser, page)
    quiet(browser)
    assert "Leak" in browser.find_element(By.TAG_NAME, "body").text
    lengths = browser.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.querySelectorAll('audio')].map(one => new Promise(told => {"
        " one.onloadedmetadata = () => told(one.duration); one.onerror = () => told(-1); one.preload = 'auto'; one.load() }))"
        ").then(done)"
    )
    assert len(lengths) == 2
    assert all(2.9 < length < 3.2 for length in lengths)
    quiet_again = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not quiet_again


def test_names_are_text_and_contents_lead_to_what_they_name(browser, page):
    opened(browser, page)
    text = browser.find_element(By.TAG_NAME, "body").text
    assert all(name in text for name in ("<b>bad.wav", "音樂.wav", LONG))
    links = "[...document.querySelectorAll('nav a')]"
    assert browser.execute_script(f"return {links}.length") > 2
    assert browser.execute_script(f"return {links}.filter(one => !document.getElementById(one.hash.slice(1))).length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(browser, page, width, dark):
    opened(browser, page, width, dark)
    assert overflow(browser) == 0
    ink, paper = lightness(browser)
    assert (ink > paper) == dark
    quiet(browser)


def test_prints(browser, page):
    opened(browser, page)
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert pdf.startswith(b"%PDF")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not [one for one in browser.find_elements(By.CSS_SELECTOR, "nav, audio") if one.is_displayed()]
    assert overflow(browser) == 0
