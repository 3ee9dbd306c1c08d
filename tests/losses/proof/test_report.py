"""The report of a complete check: its verdict, its file, its page."""

import json
import re

import pytest

import losses
from losses.mse import MSE
from losses.proof.finding import Finding
from losses.proof.report import Report


def report(*verdicts, mutants=()):
    findings = tuple(Finding("meaning", f"check {n}", verdict, f"said {n}") for n, verdict in enumerate(verdicts))
    return Report("mse", {}, "exact", "auto", ("auto", "analytic"), (1e-6, 1e6), findings, tuple(mutants), 1.0)


@pytest.mark.parametrize(
    ("found", "verdict", "said"),
    [
        (report("holds", "excepted"), "holds", "Everything holds."),
        (report("holds", "inconclusive"), "inconclusive", "1 check is inconclusive."),
        (report("fails", "inconclusive", "inconclusive"), "fails", "1 check fails. 2 checks are inconclusive."),
        (report("holds", mutants=[("sign", "dy"), ("factor 2", None)]), "fails", "Not caught: factor 2."),
        (report("holds", mutants=[("sign", "dy")]), "holds", "Everything holds."),
    ],
)
def test_only_what_holds_is_ok(tmp_path, found, verdict, said):
    assert (found.verdict, found.ok) == (verdict, verdict == "holds")
    found.save(tmp_path)
    saved = json.loads((tmp_path / "gradcheck.json").read_text())
    assert (saved["verdict"], saved["ok"]) == (verdict, verdict == "holds")
    assert said in (tmp_path / "gradcheck.html").read_text()


class Wrong(MSE):
    def gradient(self, y_true, y_pred):
        return 1.001 * super().gradient(y_true, y_pred)


@pytest.mark.slow
def test_a_wrong_gradient_is_on_the_page(tmp_path):
    found = losses.check(Wrong())
    assert found.verdict == "fails"
    assert {finding.section for finding in found.failures} >= {"contract", "accuracy", "meaning"}
    found.save(tmp_path)
    html = (tmp_path / "gradcheck.html").read_text()
    assert "1.001 times what it should be" in html
    assert html.count("<svg") == 4  # a map for every dtype
    assert "analytic" in html
    assert "the tape" in html
    assert not re.search(r"<(?:script|link|img)|url\(|@import", html), "the page needs nothing beside it"


class Raises(MSE):
    def value(self, y_true, y_pred):
        return {}["value"]


@pytest.mark.slow
def test_a_loss_that_raises_has_a_report():
    found = losses.check(Raises(), mutations=True)
    assert found.verdict == "fails"
    assert "raised KeyError: 'value'" in found.failures[0].message
    assert found.mutants == ()


@pytest.mark.parametrize("given", [None, 3, lambda y_true, y_pred: y_pred, MSE])
def test_what_is_no_loss_is_refused(given):
    with pytest.raises(TypeError, match=r"losses\.check takes a Loss or the name of a shipped one"):
        losses.check(given)


@pytest.mark.slow
def test_a_name_stands_for_the_loss(tmp_path):
    found = losses.check("mse", mutations=True)
    assert found.ok
    assert found.num_caught == len(found.mutants) >= 10
