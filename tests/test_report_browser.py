"""The report in a real browser: headless Chromium, where there is one (Debian: chromium, chromium-driver)."""

from __future__ import annotations

import shutil
import tempfile
import time

import pytest
from conftest import processes_of_tests
from report_runs import data_of, large, small

from mpsteps._report_page import write_report

pytestmark = pytest.mark.once

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason='needs selenium (pip install ".[browser]")')
PATIENCE = 30  # seconds
WHEEL = """
const c = document.getElementById('t-canvas'), r = c.getBoundingClientRect();
c.dispatchEvent(new WheelEvent('wheel', {
  deltaY: -400, ctrlKey: true, clientX: r.left + arguments[0], clientY: r.top + 40, cancelable: true}));
"""


class Page:
    """A page in a browser of its own size; `run` evaluates JavaScript."""

    def __init__(self, profile):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
            "--window-size=1280,900",
        ):  # fmt: skip
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))

    def open(self, path, width=1280, dark=False):
        cdp = self.driver.execute_cdp_cmd
        cdp("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1,
                                                   "mobile": width < 600})  # fmt: skip
        cdp("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme",
                                                         "value": "dark" if dark else "light"}]})  # fmt: skip
        self.driver.get_log("browser")
        began = time.monotonic()
        self.driver.get(f"file://{path}")
        self.until("return document.documentElement.dataset.ready === 'yes'")
        return time.monotonic() - began

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    def until(self, script):
        """Wait until `script` returns something true; that."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = self.run(script)
            if found:
                return found
            time.sleep(0.01)
        raise AssertionError(f"never true: {script}; {self.complaints()}")

    def text(self, selector):
        """Lone surrogates, which the driver cannot carry, as U+FFFD."""
        return self.run("return document.querySelector(arguments[0]).textContent.toWellFormed()", selector)

    def keys(self, selector, *keys):
        self.driver.find_element("css selector", selector).send_keys(*keys)

    def colours(self, selector):
        """How many different colours a canvas shows."""
        return self.run(
            "const c = document.querySelector(arguments[0]), d = new Uint32Array(c.getContext('2d').getImageData(0, 0,"
            "c.width, c.height).data.buffer); return new Set(d).size", selector)  # fmt: skip

    def complaints(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """In place of the check after each test: the browser, which all tests share, is looked after by its own fixture."""


@pytest.fixture(scope="module")
def browser():
    """One for all tests; nothing is left of it."""
    before = processes_of_tests()
    with tempfile.TemporaryDirectory(prefix="report-", ignore_cleanup_errors=True) as profile:
        page = Page(profile)
        try:
            yield page
        finally:
            page.driver.quit()
        end = time.monotonic() + PATIENCE
        while processes_of_tests() - before:
            assert time.monotonic() < end, "the browser has left processes"
            time.sleep(0.01)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Path by name; made once."""
    made = {}
    for name, records in (("small", small()), ("ten thousand", large(9_999)), ("large", large(99_999))):
        folder = tmp_path_factory.mktemp("report")
        made[name] = str(folder / "r.html")
        write_report(data_of(records, folder), made[name])
    return made


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_it_reads_at_any_width_in_light_and_dark(browser, reports, width, dark):
    """No sideways scrolling of the page, text that stands out from its ground, nothing hidden, nothing executed."""
    browser.open(reports["small"], width, dark)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    light = browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    text = browser.run("return getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert (sum(light) < sum(text)) == dark
    assert abs(sum(light) - sum(text)) > 450
    assert browser.run("return window.hurt") is None, "a step's argument was executed"
    assert browser.run("return document.images.length") == 0
    assert "failed" in browser.text("#status")
    assert "ValueError: </script>" in browser.text("#failed")
    assert browser.colours("#t-canvas") > 5
    assert browser.colours("#g-canvas") > 5, "a small graph shows its steps at once"
    assert browser.text("#g-note") == "9 of 9 steps in view"
    assert browser.complaints() == []


def test_all_of_it_can_be_reached_by_keyboard(browser, reports):
    """Find a step, walk along its worker and to another one, zoom, close; the links of the details lead on."""
    from selenium.webdriver.common.keys import Keys

    browser.open(reports["small"])
    browser.keys("#query", "8", Keys.ENTER)
    assert "Step 8 join()" in browser.text("#detail-body")
    assert "3, 4, 5, 6" in browser.text("#detail-body")
    browser.keys("#t-canvas", "p")
    assert "Step 5 fit(2" in browser.text("#detail-body"), "the step before it on worker 2"
    browser.keys("#t-canvas", Keys.ARROW_UP)
    assert "worker 1" in browser.text("#detail-body")
    browser.keys("#t-canvas", "+", "+", Keys.ARROW_LEFT, "0", Keys.ESCAPE)
    assert browser.run("return document.getElementById('detail').hidden")
    browser.keys("#query", Keys.CONTROL + "a")
    browser.keys("#query", "no such thing", Keys.ENTER)
    assert browser.text("#found") == "no such step"
    browser.keys("#g-canvas", "n", "n")
    assert "Step" in browser.text("#detail-body")
    browser.run("document.querySelector('#detail dd .link').focus()")
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert not browser.run("return document.getElementById('detail').hidden")
    browser.keys("#f-table th:nth-child(2) button", Keys.ENTER)
    assert browser.run("return document.querySelector('th[aria-sort]').textContent") == "Finished"
    assert browser.complaints() == []


def test_the_pointer_works(browser, reports):
    """Click selects, hovering tells, wheel with Ctrl zooms, dragging moves."""
    from selenium.webdriver import ActionChains

    browser.open(reports["small"])
    canvas = browser.driver.find_element("id", "t-canvas")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", canvas)
    x = browser.run("return document.getElementById('t-canvas').clientWidth / 2")
    ActionChains(browser.driver).move_to_element_with_offset(canvas, 0, -50).perform()
    browser.until("return !document.getElementById('tip').hidden")
    assert "finished" in browser.text("#tip")
    ActionChains(browser.driver).click().perform()
    assert "Step" in browser.text("#detail-body")
    before = browser.run("return document.getElementById('t-canvas').toDataURL()")
    ActionChains(browser.driver).drag_and_drop_by_offset(canvas, 60, 0).perform()
    browser.run(WHEEL, x)
    browser.until("return document.getElementById('t-canvas').toDataURL().length > 0")
    after = browser.until("return new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r("
                          "document.getElementById('t-canvas').toDataURL()))))")  # fmt: skip
    assert after != before
    assert browser.complaints() == []


def test_the_graph_is_readable_at_ten_thousand_steps(browser, reports):
    """First the functions, as few boxes; all steps on request, which show their names when zoomed in."""
    from selenium.webdriver.support.ui import Select

    browser.open(reports["ten thousand"])
    boxes = browser.run("return [...document.querySelectorAll('#g-functions text')].map(t => t.textContent)")
    assert boxes[::2] == ["alignStep", "ctfStep", "pickStep", "joinStep"]
    assert boxes[1].startswith("3\u202f333 steps")
    Select(browser.driver.find_element("id", "g-mode")).select_by_value("steps")
    assert "zoom in" in browser.text("#g-note")
    assert browser.colours("#g-canvas") > 4
    shown = "return Number(document.getElementById('g-note').textContent.replace(/\\u202f/g, '').match(/(\\d+) of/)[1])"
    all_steps = browser.run(shown)
    browser.keys("#g-canvas", "+", "+", "+", "+", "+", "+")
    browser.until(f"{shown[7:].join(['return ', ' < 2000'])}")
    assert browser.run(shown) < all_steps == 10_000
    assert "zoom in" not in browser.text("#g-note")
    assert browser.complaints() == []


def test_a_hundred_thousand_steps_open_quickly(browser, reports):
    """In a third of a second on a laptop; the bound is there to see what is not linear."""
    assert browser.open(reports["large"]) < 15
    assert browser.colours("#t-canvas") > 4
    from selenium.webdriver.common.keys import Keys

    browser.keys("#query", "mic_033000", Keys.ENTER)
    assert "mic_033000" in browser.text("#detail-body")
    assert browser.complaints() == []
