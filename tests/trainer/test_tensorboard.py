"""What a user sees: TensorBoard on a real run, in headless Chromium."""

import json

import pytest

from docs import screenshot
from trainer import config, job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        not (screenshot.CHROMIUM and screenshot.CHROMEDRIVER),
        reason="chromium and chromedriver are not installed (Debian: chromium-driver)",
    ),
]


def test_loss_and_the_norm_of_every_variable_are_on_the_page(tmp_path):
    run = tmp_path / "run"
    job.run(config.load(["trainer.steps=40", "trainer.eval_every=10", "model.hidden=[8]", "gradient=auto", f"hydra.run.dir={run}"]))
    variables = [f"{layer}/{kind}" for layer in ("hidden_1", "output") for kind in ("kernel", "bias")]
    tags = ["loss", "grad_norm/global", "eval/accuracy", *(f"grad_norm/{variable}" for variable in variables)]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    with screenshot.tensorboard({"mine": run}) as address, screenshot.chromium(width=1400, height=2400) as driver:
        cards = screenshot.open_cards(driver, address, tags)
        assert set(cards) == set(tags)
        for tag, card in cards.items():
            # The table under the curve shows the newest point: Run, Value, Step, Relative.
            name, value, step, _ = card.text.splitlines()[-4:]
            assert (name, step) == ("mine", "40")
            assert float(value) == pytest.approx(last[tag], rel=1e-3)


SWEEP = ("trainer.steps=40", "trainer.eval_every=10", "model.hidden=[8]", "gradient.audit_every=10", "logging.histogram_every=10")
NAMES = [f"{mode}-{seed}" for mode in ("auto", "analytic") for seed in (1, 2)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    for name in NAMES:
        mode, seed = name.split("-")
        assert job.run(config.load([*SWEEP, f"gradient={mode}", f"seed={seed}", f"hydra.run.dir={folder / name}"])) == 0
    return folder


@pytest.fixture(scope="module")
def browser(sweep):
    """A browser and the address of TensorBoard on the sweep."""
    with screenshot.serve(sweep) as address, screenshot.chromium(width=1600, height=3000) as driver:
        yield driver, address


def last(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_the_table_of_hyperparameters_has_a_row_for_every_run(sweep, browser):
    rows = {row["Trial ID"].removesuffix("/tensorboard"): row for row in screenshot.open_hparams(*browser, len(NAMES))}
    assert sorted(rows) == sorted(NAMES)
    for name, row in rows.items():
        mode, seed = name.split("-")
        assert (row["gradient.mode"], float(row["seed"])) == (mode, float(seed))  # they differ, and so are shown first
        for tag in ("eval/loss", "eval/accuracy"):
            assert float(row[tag]) == pytest.approx(last(sweep / name)[tag], rel=1e-3)


def test_both_gradient_modes_are_in_one_chart(browser):
    driver, address = browser
    titles = ["loss", "eval/loss", "grad_norm/global", "grad_norm/output/kernel", "gradient_audit/cosine"]
    cards = screenshot.open_custom_scalars(driver, address, titles, len(NAMES))
    assert len(cards) == len(screenshot.deep(driver, "tf-custom-scalar-multi-line-chart-card"))  # none twice


def test_the_configuration_is_text(sweep, browser):
    texts = screenshot.open_text(*browser, len(NAMES))
    for name in NAMES:
        assert any(text.split() == (sweep / name / "config.yaml").read_text().split() for text in texts)


def test_histograms_of_every_variable_are_drawn(browser):
    charts = screenshot.open_histograms(*browser, 4)
    assert all(len(screenshot.deep(browser[0], ".histogram", chart)) == 4 for chart in charts)  # steps 10, 20, 30, 40
