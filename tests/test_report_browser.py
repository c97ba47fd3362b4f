"""The pages in a real browser: headless Chromium opens them from disk, sorts by mouse and keyboard, and shows every figure."""

from __future__ import annotations

import base64

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browsing import lightness, opened, overflow, quiet
from tests.fake_runs import write_audit, write_failed, write_hardest, write_run
from tests.test_report import write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a report with every part there is; give its address."""
    folder = tmp_path_factory.mktemp("runs")
    for data in ("one", "two", "three"):
        for backbone, correct in (("resnet_with_a_very_long_name_18", 15), ("vgg11", 10)):
            for loss in ("cross_entropy", "balanced_trusted"):
                for seed in range(2):
                    run = write_run(
                        folder, correct + seed, data=data, backbone=backbone, loss=loss, seed=seed, pictures=True, groups=10
                    )
                    write_hardest(run, ["song0-19"])
    write_audit(folder / "audit", data="one")
    write_failed(folder / "failed")
    write(folder)
    return (folder / "report.html").as_uri()


def column(browser: webdriver.Chrome, number: int) -> list[str]:
    cells = browser.find_elements(By.CSS_SELECTOR, f"table.sortable tbody tr > :nth-child({number})")
    return [cell.text for cell in cells[:4]]  # of the first table


def test_opens_silently_and_loads_nothing(browser, page):
    opened(browser, page)
    quiet(browser)


def test_every_part_is_there_and_every_figure_is_seen(browser, page):
    opened(browser, page)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    headings = [heading.text for heading in browser.find_elements(By.CSS_SELECTOR, "h2, h3")]
    for part in ("Forest plot", "Backbone by loss", "Score and cost", "Learning curves", "Confusion", "Classes", "Calibration"):
        assert headings.count(part) == 3
    for part in ("Hardest songs", "The data", "Methods", "Over all data sets", "Not finished (1)"):
        assert part in headings
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('svg, img')].map(one => [one.tagName, one.getBoundingClientRect().width,"
        " one.getBoundingClientRect().height, one.tagName !== 'IMG' || (one.complete && one.naturalWidth > 0)])"
    )
    assert len(sizes) > 50
    assert not [size for size in sizes if size[1] < 20 or size[2] < 10 or not size[3]]


def test_contents_lead_to_what_they_name(browser, page):
    opened(browser, page)
    missing = browser.execute_script(
        "return [...document.querySelectorAll('nav a')].filter(one => !document.getElementById(one.hash.slice(1))).length"
    )
    assert missing == 0
    assert len(browser.find_elements(By.CSS_SELECTOR, "nav a")) > 30


def test_sorts_by_click_both_ways(browser, page):
    opened(browser, page)
    head = browser.find_elements(By.CSS_SELECTOR, "table.sortable thead button")[4]
    assert head.text == "mean"
    head.click()
    rising = [float(text.split()[0]) for text in column(browser, 5)]
    assert rising == sorted(rising)
    assert rising[0] < rising[-1]
    head.click()
    assert [float(text.split()[0]) for text in column(browser, 5)] == sorted(rising, reverse=True)
    quiet(browser)


def test_sorts_by_keyboard(browser, page):
    opened(browser, page)
    browser.find_element(By.TAG_NAME, "body").click()
    for _ in range(60):  # past the contents
        browser.switch_to.active_element.send_keys(Keys.TAB)
        if browser.switch_to.active_element.text == "configuration":
            break
    active = browser.switch_to.active_element
    assert active.text == "configuration"
    assert active.value_of_css_property("outline-style") == "solid"
    active.send_keys(Keys.ENTER)
    names = column(browser, 2)
    assert names == sorted(names)
    active.send_keys(Keys.SPACE)
    assert column(browser, 2) == names[::-1]
    assert active.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"


def test_all_is_open_on_paper(browser, page):
    opened(browser, page)
    closed = "return document.querySelectorAll('details:not([open])').length"
    assert browser.execute_script(closed) > 0
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})["data"])
    assert pdf.startswith(b"%PDF")
    assert browser.execute_script(closed) == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1200])
def test_nothing_is_wider_than_the_window(browser, page, width, dark):
    opened(browser, page, width, dark)
    assert overflow(browser) == 0
    ink, paper = lightness(browser)
    assert (ink > paper) == dark
    quiet(browser)
