from xml.etree import ElementTree

from benchmarks import report
from benchmarks.results import Entry, Result


def window(rate):
    return {"rate": rate, "loss": 1.0, "peak_memory_mb": 512.4}


def found():
    entries = {
        "gradtrain": Entry("gradtrain", "gradtrain 1.0, keras 3.0", [window(200.0), window(300.0), window(100.0)]),
        "keras_fit": Entry("Keras <fit>", "keras 3.0", [window(100.0), window(100.0), window(100.0)]),
        "orbit": Entry("Orbit", error="not installed: ERROR: no such | package"),
        "torch_eager": Entry("PyTorch eager", "torch 2.0", [window(50.0), None, None], "no answer"),
    }
    return {"mlp": Result("MLP, batch 32", "2026-01-02", "2 CPUs", entries)}


def test_spread_is_the_median_with_the_ends():
    assert report.spread([3.0, 1.0, 2.5]) == "2.50 (1.00 to 3.00)"
    assert report.spread([]) == ""


def test_a_row_says_why_there_is_no_rate():
    rows = report.rows(found()["mlp"])
    assert rows == [
        ["gradtrain", "200", "", "512"],
        ["Keras <fit>", "100", "2.00 (1.00 to 3.00)", "512"],
        ["Orbit", "failed: not installed: ERROR: no such | package", "", ""],
        ["PyTorch eager (failed: no answer)", "50", "4.00 (4.00 to 4.00)", "512"],
    ]


def test_the_page_has_date_machine_versions_and_wanted_beside_found():
    page = report.page(found(), "performance.svg")
    assert "2026-01-02, 2 CPUs" in page
    assert "Versions: gradtrain 1.0, keras 3.0, torch 2.0." in page
    assert "| mlp: gradtrain | ≥ 7 times Keras <fit> | 2.00 (1.00 to 3.00) | missed |" in page
    assert "| mlp: gradtrain | ≥ 2.5 times Orbit | not measured | missed |" in page
    assert "no such / package" in page  # a | would end the cell


def test_the_plot_is_an_svg_with_a_dot_for_each_ratio_where_the_median_is():
    root = ElementTree.fromstring(report.plot(found()))
    dots = [float(dot.get("cx")) for dot in root.iter("{http://www.w3.org/2000/svg}circle")]
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(dots) == 2
    assert dots[1] > dots[0]  # 4 times as fast as one, twice as fast as the other
    assert {"MLP, batch 32", "Keras <fit>", "2.00", "4.00"} <= set(texts)


def test_a_plot_of_nothing_is_one_too():
    ElementTree.fromstring(report.plot({}))
