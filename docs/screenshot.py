"""Makes a picture of runs as TensorBoard shows them, in headless Chromium.

    python -m trainer loss=stable_mse gradient=auto seed=1 trainer.eval_every=45 hydra.run.dir=outputs/auto
    python -m trainer loss=stable_mse gradient=analytic seed=1 trainer.eval_every=45 hydra.run.dir=outputs/analytic
    python docs/screenshot.py outputs/auto outputs/analytic --smoothing 0.8 --out docs/tensorboard.png

make the README's. A run may be given as NAME=DIRECTORY, to choose its name in the legend.
"""

import argparse
import contextlib
import io
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlencode

import numpy as np
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # without it Chromium refuses to run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PATIENCE = 90  # seconds to wait for TensorBoard, and for its cards


@contextlib.contextmanager
def tensorboard(runs: dict[str, Path]) -> Iterator[str]:
    """Shows runs (name to run directory) in TensorBoard on a free local port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryDirectory() as logdir, tempfile.TemporaryFile() as log:
        for name, run in runs.items():
            (Path(logdir) / name).symlink_to(run.absolute() / "tensorboard")
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", str(port)]
        with subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                _wait_for(address, server)
                yield address
            finally:
                server.terminate()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"TensorBoard does not answer at {address}") from error
            time.sleep(0.2)


@contextlib.contextmanager
def chromium(width: int, height: int, scale: float = 1.0) -> Iterator[webdriver.Chrome]:
    """A headless browser with an empty profile; sizes in CSS pixels of `scale` pixels each."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or "chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--force-device-scale-factor={scale}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


def open_cards(driver: webdriver.Chrome, address: str, tags: list[str], smoothing: float = 0.0) -> dict[str, WebElement]:
    """Opens the time series of `tags` and waits until each has a card with a curve drawn on it.

    TensorBoard makes the cards that the window has room for; see that it is high enough.

    Args:
        driver: the browser.
        address: TensorBoard's.
        tags: what to show, each on a card of its own.
        smoothing: of the curves, from 0 to 0.99.

    Returns:
        The cards by tag.

    Raises:
        selenium.common.exceptions.TimeoutException: a tag has no card, or a card no curve, after PATIENCE seconds.
    """
    pattern = "^(" + "|".join(re.escape(tag) for tag in tags) + ")$"
    driver.get(f"{address}?{urlencode({'tagFilter': pattern, 'smoothing': smoothing})}#timeseries")

    def drawn(_: webdriver.Chrome) -> dict[str, WebElement] | Literal[False]:
        cards = {_tag(card): card for card in driver.find_elements(By.TAG_NAME, "scalar-card")}
        if not set(cards) >= set(tags):
            return False
        page = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("HSV")
        pixels = page.width / driver.execute_script("return window.innerWidth")
        return cards if all(_has_curve(cards[tag], page, pixels) for tag in tags) else False

    waiting = WebDriverWait(driver, PATIENCE, poll_frequency=1, ignored_exceptions=[StaleElementReferenceException])
    return waiting.until(drawn, f"TensorBoard does not show a curve of each of {tags}")


def _tag(card: WebElement) -> str:
    return card.find_element(By.CSS_SELECTOR, "tb-truncated-path.tag").get_attribute("title") or ""


def _has_curve(card: WebElement, page: Image.Image, pixels: float) -> bool:
    """Whether the card's canvas (there is none until its data has come) is colored anywhere: grid and axes are gray."""
    for canvas in card.find_elements(By.TAG_NAME, "canvas"):
        x, y, width, height = (round(canvas.rect[key] * pixels) for key in ("x", "y", "width", "height"))
        saturation = page.crop((x, y, x + width, y + height)).getchannel("S")
        return width > 0 and bool(np.asarray(saturation).max() > 60)  # of 255; the palest color has 90
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN")
    parser.add_argument("--tags", default="loss,grad_norm/global,eval/accuracy", help="separated by commas")
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--size", default="1440x500", help="in CSS pixels")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    named = [run.rpartition("=") for run in arguments.runs]
    runs = {name or Path(directory).name: Path(directory) for name, _, directory in named}
    width, height = map(int, arguments.size.split("x"))
    with tensorboard(runs) as address, chromium(width, 2000, scale=1.25) as driver:
        open_cards(driver, address, arguments.tags.split(","), arguments.smoothing)
        # The picture shows curves and legend, without the tables under the curves and without the settings.
        driver.find_element(By.CSS_SELECTOR, ".scalars-step-selector input").click()
        driver.find_element(By.CSS_SELECTOR, ".settings-button").click()
        frame = driver.execute_script("return window.outerHeight - window.innerHeight")
        driver.set_window_size(width, height + frame)
        time.sleep(3)  # the curves are drawn anew in their new width
        driver.save_screenshot(arguments.out)


if __name__ == "__main__":
    main()
