"""Every loss trains, by one command, on data in which it is the natural choice."""

import json
from pathlib import Path

import numpy as np
import pytest

import losses
from trainer import config, job
from trainer.errors import ConfigError

TEXT = ("data=text", "model=transformer", "model.width=32", "model.num_heads=2", "data.length=16")
LINEAR = ("model=linear", "optimizer.learning_rate=0.05")
# Loss -> data, and what else is typed.
NATURAL = {
    "adaptive_robust": ("data=stackloss", *LINEAR),
    "arcface": ("data=digits",),
    "beta_nll": ("data=engel",),
    "binary_crossentropy": ("data=breast_cancer",),
    "binary_focal": ("data=breast_cancer",),
    "categorical_focal": ("data=digits",),
    "contrastive": ("data=digit_pairs",),
    "cox": ("data=strikes", *LINEAR),
    "ctc": ("data=digit_lines", "model=frames"),
    "cubic": ("data=diabetes",),
    "distillation_kl": ("data=digits_teacher",),
    "ensemble_crps": ("data=engel",),
    "entmax15": ("data=digits",),
    "external": ("data=diabetes",),
    "gaussian_crps": ("data=engel",),
    "gaussian_nll": ("data=engel",),
    "huber": ("data=stackloss", *LINEAR),
    "infonce": ("data=digit_views",),
    "interval_logistic": ("data=engel_brackets",),
    "lambdarank": ("data=diabetes_lists",),
    "linear_crossentropy": TEXT,
    "log_cosh": ("data=stackloss", *LINEAR),
    "mae": ("data=stackloss", *LINEAR),
    "mse": ("data=diabetes",),
    "negative_binomial_nll": ("data=randhie",),
    "pairwise_logistic": ("data=diabetes_pairs",),
    "poincare": ("data=digit_tree",),
    "poisson_nll": ("data=randhie", "data.batch_size=256"),  # a few large counts make the loss of a small batch noise
    "probit": ("data=breast_cancer",),
    "quantile": ("data=engel",),
    "sinkhorn": ("data=digit_points",),
    "soft_dtw": ("data=sunspots",),
    "soft_spearman": ("data=diabetes_lists",),
    "softmax_crossentropy": ("data=digits",),
    "sparsemax": ("data=digits",),
    "stable_mse": ("data=digits",),
    "triplet": ("data=digit_triplets",),
}
QUICK = ("trainer.steps=40", "trainer.eval_every=20", "trainer.compile=graph", "logging.per_variable=false")


def train(folder: Path, *overrides: str) -> tuple[list[dict], dict]:
    """The lines of metrics.jsonl, and the summary."""
    assert job.run(config.load([*QUICK, f"hydra.run.dir={folder}", *overrides])) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return lines, json.loads((folder / "summary.json").read_text())


def test_every_loss_has_its_data():
    assert set(NATURAL) == set(losses.names())


@pytest.mark.slow
@pytest.mark.parametrize("loss", NATURAL)
def test_a_loss_learns_from_its_data(tmp_path, loss):
    lines, summary = train(tmp_path, f"loss={loss}", *NATURAL[loss])
    found = [line["loss"] for line in lines]
    assert np.isfinite(found).all()
    evaluated = [line["eval/loss"] for line in lines if "eval/loss" in line]
    assert np.mean(found[-10:]) < np.mean(found[:10])
    assert np.isfinite(evaluated).all()
    assert "derivatives agree" in summary["gradient_check"]


@pytest.mark.parametrize(
    ("overrides", "metrics"),
    [
        (("loss=triplet", *NATURAL["triplet"], "model.num_outputs=3"), {"eval/loss", "eval/accuracy"}),  # items, and no targets
        (("loss=soft_dtw", *NATURAL["soft_dtw"]), {"eval/loss"}),  # outputs with two axes
        (("loss=linear_crossentropy", *TEXT), {"eval/loss", "eval/accuracy"}),  # shared weights; tokens
        (("loss=interval_logistic", *NATURAL["interval_logistic"]), {"eval/loss"}),  # infinite targets
    ],
)
def test_shapes_of_all_sorts_train_and_are_evaluated(tmp_path, overrides, metrics):
    lines, _ = train(tmp_path, *overrides, "gradient.verify_at_start=false", "trainer.steps=6", "trainer.eval_every=3")
    assert {tag for tag in lines[-1] if tag.startswith("eval/")} == metrics
    assert all(np.isfinite(value) for value in lines[-1].values())
    assert lines[-1]["eval/loss"] < lines[2]["eval/loss"]


def test_a_model_that_gives_other_widths_than_asked_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model=mlp gives outputs of shape \(3,\); the loss softmax_crossentropy .* takes 10"):
        train(tmp_path, "model.num_outputs=3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=triplet", "data=digit_views"), r"model=mlp data=digit_views: .*shape \(2, 16\).*loss triplet: y_pred must have shape"),
        (("loss=soft_dtw", "data=sunspots", "model=frames"), r"model=frames data=sunspots: the model gives outputs of shape \(33, 11\)"),
        (("loss=softmax_crossentropy", "data=text"), r"model=mlp takes numbers.*type model=transformer"),
        (("loss=softmax_crossentropy", "data=digits", "model=transformer"), r"model=transformer takes tokens.*data=text"),
        (
            ("loss=triplet", "data=digits"),
            r"data=digits has classes targets; the loss triplet takes none: .*one of digit_triplets",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, *overrides)


def test_examples_taken_together_are_not_divided_among_replicas(tmp_path):
    with pytest.raises(ConfigError, match=r"the loss cox takes the examples of a batch together.*2 replicas: type strategy=one_device"):
        train(tmp_path, "loss=cox", *NATURAL["cox"], "strategy=cpu_sim")
