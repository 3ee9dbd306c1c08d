r"""Makes a picture of runs as TensorBoard shows them, in headless Chromium.

    python -m trainer loss=stable_mse gradient=auto seed=1 trainer.eval_every=45 hydra.run.dir=outputs/auto
    python -m trainer loss=stable_mse gradient=analytic seed=1 trainer.eval_every=45 hydra.run.dir=outputs/analytic
    python docs/screenshot.py outputs/auto outputs/analytic --smoothing 0.8 --out docs/tensorboard.png

make the README's. A run may be given as NAME=DIRECTORY, to choose its name in the legend.

    python -m trainer -m loss=stable_mse gradient=auto,analytic seed=1,2 trainer.steps=900 trainer.eval_every=45 gradient.audit_every=45 \
        logging.histogram_every=45 hydra.sweep.dir=outputs/pictures
    python docs/screenshot.py --sweep outputs/pictures --out docs

make those of docs/tensorboard.md.

    python -m trainer -m loss=stable_mse,mse,huber gradient=auto,analytic seed=1,2,3,4,5 sweep.parallel=2 sweep.compare=true \
        hydra.sweep.dir=outputs/difference
    python docs/screenshot.py --page outputs/difference/comparison.html --heading loss=stable_mse --size 1100x1010 --out docs/comparison.png

make that of a comparison.
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
import yaml
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
    """Shows runs (name to run directory) in TensorBoard; yields its address."""
    with tempfile.TemporaryDirectory() as logdir:
        for name, run in runs.items():
            (Path(logdir) / name).symlink_to(run.absolute() / "tensorboard")
        with serve(Path(logdir)) as address:
            yield address


@contextlib.contextmanager
def serve(logdir: Path) -> Iterator[str]:
    """TensorBoard on a free local port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", str(port)]
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
        page, pixels = _page(driver)
        return cards if all(_is_colored(cards[tag].find_elements(By.TAG_NAME, "canvas"), page, pixels) for tag in tags) else False

    return _waiting(driver).until(drawn, f"TensorBoard does not show a curve of each of {tags}")


def _tag(card: WebElement) -> str:
    return card.find_element(By.CSS_SELECTOR, "tb-truncated-path.tag").get_attribute("title") or ""


def _is_colored(drawings: list[WebElement], page: Image.Image, pixels: float) -> bool:
    """Whether the first drawing (there is none until its data has come) is colored anywhere: grid and axes are gray."""
    for drawing in drawings:
        x, y, width, height = (round(drawing.rect[key] * pixels) for key in ("x", "y", "width", "height"))
        saturation = page.crop((x, y, x + width, y + height)).getchannel("S")
        return width > 0 and bool(np.asarray(saturation).max() > 60)  # of 255; the palest color has 90
    return False


# TensorBoard's older dashboards are made of elements with shadow roots, which no selector passes.
_DEEP = """
const found = [];
const walk = root => {
  for (const element of root.querySelectorAll('*')) {
    if (element.matches(arguments[0])) found.push(element);
    if (element.shadowRoot) walk(element.shadowRoot);
  }
};
if (arguments[1]) walk(arguments[1]);
if (!arguments[1] || arguments[1].shadowRoot) walk(arguments[1] ? arguments[1].shadowRoot : document);
return found;
"""
_TEXT = """
const text = node => node.nodeType == Node.TEXT_NODE ? node.data : ['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.nodeName) ? '' :
  [...(node.shadowRoot ? [node.shadowRoot] : []), ...node.childNodes].map(text).join('');
return text(arguments[0]);
"""


def deep(driver: webdriver.Chrome, selector: str, within: WebElement | None = None) -> list[WebElement]:
    """The elements that a selector matches, in shadow roots too."""
    return driver.execute_script(_DEEP, selector, within)


def deep_text(driver: webdriver.Chrome, element: WebElement) -> str:
    """All text within an element, and within shadow roots in it."""
    return driver.execute_script(_TEXT, element)


def open_hparams(driver: webdriver.Chrome, address: str, num_rows: int) -> list[dict[str, str]]:
    """Opens the HParams table and waits until it has so many rows; each from column to text."""
    driver.get(f"{address}#hparams")

    def shown(_: webdriver.Chrome) -> list[dict[str, str]] | Literal[False]:
        columns: dict[float, list[tuple[float, str]]] = {}  # by their place from the left
        for cell in deep(driver, "#sessionGroupsTable .table-cell"):
            if cell.is_displayed() and cell.text:
                columns.setdefault(cell.rect["x"], []).append((cell.rect["y"], cell.text))
        texts = [[text for _, text in sorted(column)] for column in columns.values()]  # from above, the column's name first
        whole = [column for column in texts if len(column) == num_rows + 1]  # that of checkboxes is none
        return [{name: column[i] for name, *column in whole} for i in range(num_rows)] if len(whole) > 1 else False

    return _waiting(driver).until(shown, f"the HParams table does not show {num_rows} rows")


def open_custom_scalars(driver: webdriver.Chrome, address: str, titles: list[str], num_runs: int) -> dict[str, WebElement]:
    """Opens Custom Scalars and waits until each of these charts has curves of so many runs; the cards by title."""
    driver.get(f"{address}#custom_scalars")

    def drawn(_: webdriver.Chrome) -> dict[str, WebElement] | Literal[False]:
        cards = {str(card.get_property("title")): card for card in deep(driver, "tf-custom-scalar-multi-line-chart-card")}
        if not cards.keys() >= set(titles):
            return False
        page, pixels = _page(driver)
        complete = [
            f"Matches ({num_runs})" in deep_text(driver, cards[title])
            and _is_colored(deep(driver, "vz-line-chart2", cards[title]), page, pixels)
            for title in titles
        ]
        return cards if all(complete) else False

    return _waiting(driver).until(drawn, f"Custom Scalars does not show curves of {num_runs} runs for each of {titles}")


def open_text(driver: webdriver.Chrome, address: str, num_runs: int) -> list[str]:
    """Opens Text and waits until so many runs have text there."""
    driver.get(f"{address}#text")

    def shown(_: webdriver.Chrome) -> list[str] | Literal[False]:
        texts = [deep_text(driver, block) for loader in deep(driver, "tf-text-loader") for block in deep(driver, "pre", loader)]
        return texts if len(texts) >= num_runs else False

    return _waiting(driver).until(shown, f"Text does not show that of {num_runs} runs")


def open_histograms(driver: webdriver.Chrome, address: str, num_charts: int) -> list[WebElement]:
    """Opens Histograms and waits until so many are drawn."""
    driver.get(f"{address}#histograms")

    def drawn(_: webdriver.Chrome) -> list[WebElement] | Literal[False]:
        charts = [chart for chart in deep(driver, "vz-histogram-timeseries") if deep(driver, ".histogram path", chart)]
        return charts if len(charts) >= num_charts else False

    return _waiting(driver).until(drawn, f"Histograms does not show {num_charts} charts")


def _waiting(driver: webdriver.Chrome) -> WebDriverWait:
    return WebDriverWait(driver, PATIENCE, poll_frequency=1, ignored_exceptions=[StaleElementReferenceException])


def _page(driver: webdriver.Chrome) -> tuple[Image.Image, float]:
    """The page as it is seen, in hue, saturation and value, and how many of its pixels one CSS pixel has."""
    page = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("HSV")
    return page, page.width / driver.execute_script("return window.innerWidth")


def pictures(sweep: Path, folder: Path) -> None:
    """The dashboards beside the curves, of a sweep over gradient modes and seeds, as tensorboard_*.png."""
    runs = {}
    for job in sweep.glob("*/config.yaml"):
        config = yaml.safe_load(job.read_text(encoding="utf-8"))
        runs[f"{config['gradient']['mode']}-{config['seed']}"] = job.parent
    with tensorboard(runs) as address, chromium(1500, 2000) as driver:
        frame = driver.execute_script("return window.outerHeight - window.innerHeight")

        def take(name: str, height: int) -> None:
            driver.set_window_size(1500, height + frame)
            time.sleep(3)  # it is drawn anew
            driver.save_screenshot(folder / f"tensorboard_{name}.png")
            driver.set_window_size(1500, 2000)

        open_hparams(driver, address, len(runs))
        take("hparams", 400)
        open_custom_scalars(driver, address, ["loss", "eval/loss", "grad_norm/global"], len(runs))
        take("custom_scalars", 1150)
        open_text(driver, address, 1)
        take("text", 600)
        open_histograms(driver, address, len(runs))
        take("histograms", 700)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="[NAME=]RUN")
    parser.add_argument("--sweep", type=Path, help="make the pictures of its dashboards, in the folder --out")
    parser.add_argument("--page", type=Path, help="make a picture of this HTML file instead")
    parser.add_argument("--heading", help="from where on, of --page")
    parser.add_argument("--tags", default="loss,grad_norm/global,eval/accuracy", help="separated by commas")
    parser.add_argument("--smoothing", type=float, default=0.0)
    parser.add_argument("--size", default="1440x500", help="in CSS pixels")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.sweep:
        pictures(arguments.sweep, arguments.out)
        return
    width, height = map(int, arguments.size.split("x"))
    if arguments.page:
        with chromium(width, height) as driver:
            driver.set_window_size(width, height + driver.execute_script("return window.outerHeight - window.innerHeight"))
            driver.get(arguments.page.absolute().as_uri())
            if arguments.heading:
                heading = driver.find_element(By.XPATH, f"//h2[normalize-space()='{arguments.heading}']")
                driver.execute_script("arguments[0].scrollIntoView()", heading)
            driver.save_screenshot(arguments.out)
        return
    named = [run.rpartition("=") for run in arguments.runs]
    runs = {name or Path(directory).name: Path(directory) for name, _, directory in named}
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
