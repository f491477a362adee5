"""The site in headless Chromium, opened from the file system."""

import json
import re
import shutil

import pytest

from regbench.tables.report import build_site

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install selenium"
)
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="Chromium and chromedriver are not installed: apt install chromium-driver",
)


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(made, made_large, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    papers = [
        {
            "slug": f"paper_{i}",
            "title": f"A paper on {'noisy labels' if i % 2 else 'graphs'}, number {i}",
            "year": 2000 + (7 * i) % 53,
            "task": "classification",
            "arxiv": "2203.10761",
            "built": i < 5,
        }
        for i in range(53)
    ]
    found = [made | {"slug": "paper_3"}, made_large | {"slug": "paper_3"}]
    build_site(found, papers, [], folder)
    return (folder / "index.html").as_uri()


def rows(browser, table):
    """The texts of the visible rows' first cells."""
    script = """return Array.from(document.querySelector(arguments[0]).tBodies[0].rows)
        .filter(row => row.offsetParent).map(row => Array.from(row.cells, cell => cell.textContent.trim()))"""
    return browser.execute_script(script, table)


def button(browser, table, name):
    path = f"//table[contains(@class, '{table}')]//th//button[normalize-space()='{name}']"
    return browser.find_element("xpath", path)


def test_no_request_leaves_the_file_system_and_nothing_is_complained_about(browser, site):
    browser.get_log("performance")
    browser.get(site)
    browser.find_element("link text", "A paper on noisy labels, number 3").click()
    assert browser.find_element("tag name", "h1").text == "A paper on noisy labels, number 3"

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert len(sent) >= 2
    assert {url.partition(":")[0] for url in sent} <= {"file", "data"}
    assert browser.get_log("browser") == []


def test_a_click_sorts_and_another_turns_the_order_round(browser, site):
    browser.get(site)
    year = button(browser, "index", "year")
    heading = year.find_element("xpath", "..")
    assert heading.get_attribute("aria-sort") == "none"

    year.click()
    assert [int(row[1]) for row in rows(browser, "table.index")] == list(range(2000, 2053))
    assert heading.get_attribute("aria-sort") == "ascending"
    year.send_keys(webdriver.Keys.ENTER)  # by keyboard
    assert [int(row[1]) for row in rows(browser, "table.index")] == list(range(2052, 1999, -1))
    assert heading.get_attribute("aria-sort") == "descending"

    button(browser, "index", "hold").click()
    assert rows(browser, "table.index")[0][0].startswith("A paper on noisy labels, number 3")
    assert heading.get_attribute("aria-sort") == "none"


def test_cells_without_a_number_sort_last_in_either_direction(browser, site):
    browser.get(site.replace("index.html", "paper_3/index.html"))
    measured = button(browser, "cells", "measured")  # of the first column: 93.1, 93.2, failed, 92.25

    measured.click()
    assert [row[0] for row in rows(browser, "table.cells")] == [
        "FMix, η=0.1",
        "none",
        "Mixup",
        "CutMix & co_1",
    ]
    measured.click()
    assert [row[0] for row in rows(browser, "table.cells")] == [
        "Mixup",
        "none",
        "FMix, η=0.1",
        "CutMix & co_1",
    ]


def test_the_filter_leaves_the_rows_that_have_all_words(browser, site):
    browser.get(site)
    box = browser.find_element("id", "filter")
    count = browser.find_element("css selector", ".filter output")
    assert count.text == "53 of 53 entries"

    box.send_keys("GRAPHS paper_4")
    found = [row[0].partition(",")[2] for row in rows(browser, "table.index")]
    assert found == [f" number {i}paper_{i}" for i in (4, 40, 42, 44, 46, 48)]
    assert count.text == "6 of 53 entries"
    box.clear()
    box.send_keys("tables")
    assert [row[3] for row in rows(browser, "table.index")] == ["tables"]


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", ["index.html", "paper_3/index.html", "paper_3/large/small/index.html"])
def test_the_page_never_scrolls_sideways(browser, site, width, scheme, page):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.get(site.replace("index.html", page))
        browser.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true })")
        wide, window = browser.execute_script("return [document.scrollingElement.scrollWidth, innerWidth]")
        assert wide <= window == width
        paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (luminance(paper) > 0.5) == (scheme == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser, site, scheme):
    """WCAG 2.2, 1.4.3: 4.5 to 1 between a text and what is behind it."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(site.replace("index.html", "paper_3/index.html"))
    texts = "h1, p, a, td, th, li, span, code, summary, svg text"
    script = """return Array.from(document.querySelectorAll(arguments[0]), e => {
        const back = function*(n) { for (; n; n = n.parentElement) yield getComputedStyle(n).backgroundColor };
        const style = getComputedStyle(e);
        return [e.closest('svg') ? style.fill : style.color, [...back(e)].find(c => c !== 'rgba(0, 0, 0, 0)')] })"""
    pairs = {tuple(pair) for pair in browser.execute_script(script, texts)}
    assert len(pairs) >= 6
    for ink, paper in pairs:
        low, high = sorted(luminance(colour) for colour in (ink, paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
