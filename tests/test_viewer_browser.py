"""The viewer in a headless Chromium, which looks, drags, types, saves and drops photos."""

import base64
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from viewer_visits import POSES, shared_of

import viewer
from generators.inversion import FitOptions
from web_viewer import photo_fits, uploads
from web_viewer.page import PoseMap, Server
from web_viewer.session import LABELS

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WIDTH, HEIGHT = 1280, 800
PICTURE = (330, 160, 930, HEIGHT)  # what no field and no notice covers
EMPTY = (PICTURE[2] - PICTURE[0], PICTURE[3] - PICTURE[1])
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # fmt: skip
PATIENCE = 60  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
    ),
]


def wait_for(condition, what):
    """Return the first true result of condition()."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"no {what} after {PATIENCE} seconds")


@pytest.fixture
def address(tiny_run, tmp_path):
    """Start a viewer of a tiny run; yield its address."""
    command = [sys.executable, "viewer.py", tiny_run / "generator.pth", "--image_size", "96"]
    command += ["--output_dir", tmp_path / "views"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(viewer.__file__).parent,
        env={**os.environ, "SSH_CONNECTION": ""},
    )
    with process:
        yield re.match(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        process.terminate()


class Visitor:
    """One tab of a browser."""

    def __init__(self, driver, folder):
        self.driver, self.folder, self.count = driver, folder, 0

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self):
        return self.driver.execute_script("return document.body.innerText")

    def screen(self):
        self.count += 1
        path = self.folder / f"screen{self.count}.png"
        self.driver.save_screenshot(str(path))
        with Image.open(path) as image:
            return image.convert("RGB").crop(PICTURE)

    def picture_unlike(self, before):
        """Wait for a finished picture that differs from before; return the screenshot."""

        def found():
            is_finished, screen = self.is_finished(), self.screen()
            return screen if is_finished and differ(before, screen) > 1 else None

        return wait_for(found, "finished picture unlike the last one")

    def is_finished(self):
        return re.search(r"px in [\d.]+ s, step \d+$", self.text(), re.MULTILINE)

    def type(self, label, text):
        """Put text into the field of that label."""
        from selenium.webdriver.common.keys import Keys

        path = f"//label[normalize-space()='{label}']/following::input[1]"
        field = self.driver.find_element("xpath", path)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def command_line(self):
        """Read the field in one call: the page replaces it whenever something changes."""
        found = "document.querySelector(\"textarea[aria-label='command line']\")"
        return self.driver.execute_script(f"return {found}?.value ?? ''")

    def complaint(self):
        found = "document.querySelector('[data-trouble]')"
        return self.driver.execute_script(f"return {found}?.innerText ?? ''")


@pytest.fixture
def driver(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS, f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={tmp_path / 'me'}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False},
    )
    yield driver
    driver.quit()


@pytest.fixture
def visitor(driver, address, tmp_path):
    driver.get(address)
    return Visitor(driver, tmp_path)


def differ(one, other):
    """Return the mean difference of two screenshots, in units of 1/255."""
    histogram = ImageChops.difference(one, other).convert("L").histogram()
    return sum(i * n for i, n in enumerate(histogram)) / sum(histogram)


def drag(visitor, right):
    from selenium.webdriver.common.action_chains import ActionChains

    (canvas, *_) = visitor.find("canvas")
    hand = ActionChains(visitor.driver, duration=50)
    hand.move_to_element_with_offset(canvas, -100, 0).click_and_hold()
    for _ in range(8):
        hand.move_by_offset(right // 8, 3)
    hand.release().perform()


def test_a_visitor_looks_drags_types_and_saves(visitor, tmp_path):
    first = visitor.picture_unlike(Image.new("RGB", EMPTY, "white"))

    drag(visitor, 240)
    wait_for(lambda: "yaw 90°" not in visitor.text(), "turn")
    turned = visitor.picture_unlike(first)

    visitor.type("Seed", "7")
    wait_for(lambda: "--seed 7 " in visitor.command_line(), "new seed")
    visitor.picture_unlike(turned)

    visitor.type("Seed", "many")
    wait_for(lambda: "must be a whole number" in visitor.complaint(), "complaint")
    assert "--seed 7 " in visitor.command_line()
    visitor.type("Seed", "7")
    wait_for(lambda: not visitor.complaint(), "end of the complaint")

    visitor.driver.find_element("xpath", "//button[contains(., 'Save picture')]").click()
    path = tmp_path / "views" / "7.png"
    wait_for(path.is_file, "saved picture")
    wait_for(lambda: "saved" in visitor.text(), "word of it")
    saved = path.read_bytes()
    path.unlink()
    viewer.main(shlex.split(visitor.command_line())[2:])
    assert path.read_bytes() == saved


def test_two_tabs_are_two_visitors_and_a_closed_one_leaves_no_work(driver, tiny_run, tmp_path):
    shared = shared_of(tiny_run, tmp_path / "views")
    server = Server(shared, PoseMap(POSES), "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.port}"
    driver.get(address)
    first = Visitor(driver, tmp_path)
    wait_for(first.is_finished, "picture")
    driver.switch_to.new_window("tab")
    driver.get(address)
    second = Visitor(driver, tmp_path)
    wait_for(second.is_finished, "picture")
    second.type(LABELS["seed"], "9")
    wait_for(lambda: "--seed 9 " in second.command_line(), "new seed")
    seeds = sorted(page.session.request.seed for page in server._pages.values())
    assert seeds == [0, 9]
    driver.close()
    wait_for(lambda: visitors() == 1, "end of the closed tab's thread")
    assert [page.session.request.seed for page in server._pages.values()] == [0]
    server.stop()
    wait_for(lambda: visitors() == 0, "end of all threads")


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), letter => letter.charCodeAt(0));
const transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[1]));
document.querySelector('canvas').dispatchEvent(
    new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""


def test_photos_are_uploaded_or_dropped_and_their_fits_shown(
    driver, tiny_run, tmp_path, monkeypatch
):
    quick = FitOptions(num_candidates=32, num_starts=1, latent_steps=2, film_steps=2)
    monkeypatch.setattr(photo_fits, "EFFORT", quick)
    monkeypatch.setattr(uploads, "MAX_BYTES", 2000)
    photo, views = tmp_path / "photo.png", tmp_path / "views"
    Image.linear_gradient("L").resize((20, 20)).save(photo)
    server = Server(shared_of(tiny_run, views), PoseMap(POSES), "127.0.0.1", 0)
    try:
        driver.get(f"http://127.0.0.1:{server.port}")
        visitor = Visitor(driver, tmp_path)
        first = visitor.picture_unlike(Image.new("RGB", EMPTY, "white"))
        (field,) = visitor.find("input[type=file]")
        field.send_keys(str(photo))
        wait_for(lambda: "photo1" in visitor.command_line(), "fit of the upload")
        shown = visitor.picture_unlike(first)
        assert "fitted" in visitor.text()

        def drop(content, name):
            driver.execute_script(DROP, base64.b64encode(content).decode(), name)

        drop(b"no photo", "photo.png")
        wait_for(lambda: "cannot be read: not a picture" in visitor.complaint(), "complaint")
        drop(bytes(3000), "large.png")
        wait_for(lambda: "the photo has 0 MiB" in visitor.complaint(), "complaint about its size")
        Image.linear_gradient("L").rotate(90).resize((20, 20)).save(photo)
        drop(photo.read_bytes(), "../../photo.png")
        wait_for(lambda: "photo2" in visitor.command_line(), "fit of the dropped photo")
        visitor.picture_unlike(shown)
        assert sorted(path.name for path in views.iterdir()) == ["photo1", "photo2"]
        assert {path.name for path in tmp_path.iterdir()} >= {"views", "tiny_run", "photo.png"}
    finally:
        server.stop()
        server._shared.saver.shutdown()


def visitors():
    return sum(thread.name == "visitor" for thread in threading.enumerate())
