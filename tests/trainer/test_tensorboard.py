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
