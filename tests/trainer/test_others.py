"""Other data, as a run's own were prepared."""

import dataclasses

import numpy as np
import pytest

from trainer.data.base import Examples, Source, StreamedSource
from trainer.data.files import Csv, Npy, Npz
from trainer.data.others import aligned, with_others, without_targets
from trainer.data.prepare import prepare
from trainer.data.stream import prepare_streamed
from trainer.data.text import Text
from trainer.errors import DataError
from trainer.schema import Data

RNG = np.random.default_rng(0)
SETTINGS = Data(batch_size=4)


@dataclasses.dataclass(frozen=True)
class Held(Source):
    """Examples at hand."""

    examples: Examples
    kind: str = "real"

    def load(self):
        return self.examples


def table(path, rows, names="a,color,b,y"):
    path.write_text(names + "\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


@pytest.fixture
def rows():
    return [(i, ["red", "green", "blue"][i % 3], 100 + 10 * np.sin(i), "no" if i % 2 else "yes") for i in range(40)]


@pytest.fixture
def own(tmp_path, rows):
    source = Csv(str(table(tmp_path / "own.csv", rows)), "y")
    return prepare(source.load(), source.kind, "classes", SETTINGS)


def features_of(data):
    """By row of the source."""
    parts = ((data.train, data.train_rows), (data.evaluation, data.evaluation_rows))
    return {int(row): part.features[i] for part, rows in parts for i, row in enumerate(rows)}


def test_other_rows_are_standardized_as_the_runs_own(own, tmp_path, rows):
    some = rows[5:15]  # of other means and spreads
    found = with_others(own, Csv(str(table(tmp_path / "others.csv", some)), "y"), SETTINGS)
    expected = features_of(own)
    np.testing.assert_array_equal(found.evaluation.features, [expected[row] for row in range(5, 15)])
    assert found.evaluation.targets.tolist() == [["no", "yes"].index(row[3]) for row in some]
    assert found.evaluation_rows.tolist() == list(range(10))
    assert len(found.train) == len(own.train)


def test_columns_are_found_by_name_and_texts_by_their_own(own, tmp_path, rows):
    turned = [(row[3], row[2], "x", row[0], row[1]) for row in rows[:4] if row[1] != "blue"]  # a text that does not occur
    found = with_others(own, Csv(str(table(tmp_path / "turned.csv", turned, "y,b,more,a,color")), "y"), SETTINGS)
    expected = features_of(own)
    kept = [i for i in range(4) if rows[i][1] != "blue"]
    np.testing.assert_array_equal(found.evaluation.features, [expected[row] for row in kept])


def test_a_class_that_does_not_occur_keeps_its_number(own, tmp_path, rows):
    yes = [row for row in rows if row[3] == "yes"]
    found = with_others(own, Csv(str(table(tmp_path / "yes.csv", yes)), "y"), SETTINGS)
    assert set(found.evaluation.targets) == {1}
    examples = Examples(np.zeros([2, 5]), [0, 1], 2, feature_names=own.feature_names, class_names=["yes", "no"])
    assert aligned(examples, own).targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "cells", "said"),
    [
        ("a,b,y", (1, 2, "yes"), "there is no column 'color'"),
        ("color,b,y", ("red", 2, "yes"), "there is no column 'a'"),
        (
            "a,color,b,y",
            (1, "violet", 2, "yes"),
            "column 'color' has the text 'violet', which the run has not seen; it knows blue, green, red",
        ),
        ("a,color,b,y", (1, "red", 2, "perhaps"), "classes that the run has not seen: perhaps; it knows no, yes"),
        ("a,color,b,y", ("", "red", 2, "yes"), "is not finite"),
    ],
)
def test_what_the_run_does_not_know_is_refused(own, tmp_path, names, cells, said):
    rows = [cells, tuple("no" if cell in ("yes", "perhaps") and i == len(cells) - 1 else cell for i, cell in enumerate(cells))]
    with pytest.raises(DataError, match=said):
        with_others(own, Csv(str(table(tmp_path / "x.csv", rows, names)), "y"), SETTINGS)


def test_targets_need_not_be_there(own, tmp_path, rows):
    path = table(tmp_path / "new.csv", [(row[0], row[1], row[2]) for row in rows], "a,color,b")
    found = without_targets(own, Csv(str(path), "y"))
    expected = features_of(own)
    np.testing.assert_array_equal(found.rows(np.arange(40)).features, [expected[row] for row in range(40)])
    assert found.rows(slice(2)).targets is None


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_without_targets(tmp_path, kind):
    x, y = RNG.normal(5, 3, [30, 4]), RNG.normal(size=30)
    np.save(tmp_path / "x.npy", x[:10])
    np.savez(tmp_path / "x.npz", x=x[:10])
    own = prepare(Examples(x, y), "real", "real", SETTINGS)
    source = Npz(str(tmp_path / "x.npz")) if kind == "npz" else Npy(str(tmp_path))
    found = without_targets(own, source).rows(np.arange(10)).features
    expected = features_of(own)
    np.testing.assert_allclose(found, [expected[row] for row in range(10)], rtol=1e-5, atol=1e-6)


def test_streamed_others(tmp_path):
    x, y = RNG.normal(5, 3, [30, 4]), RNG.normal(2, 7, 30)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    source = Npy(str(tmp_path))
    for stream in (True, False):
        settings = Data(batch_size=4, stream=stream)
        own = prepare_streamed(source, "real", "real", settings)
        found = with_others(own, source, settings)
        assert found.resident is not stream
        whole = found.evaluation.rows(np.arange(30))
        kept = own.evaluation.rows(np.arange(len(own.evaluation)))
        np.testing.assert_array_equal(whole.features[own.evaluation_rows], kept.features)
        np.testing.assert_array_equal(whole.targets[own.evaluation_rows], kept.targets)


def test_streamed_classes_must_be_the_same(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Two(StreamedSource):
        names: tuple = ("a", "b")
        kind = "classes"
        num_classes = 2
        num_examples = 20

        @property
        def class_names(self):
            return self.names

        def read(self, rows):
            return rows[:, None] * 1.0, rows % 2, None

    own = prepare_streamed(Two(), "classes", "classes", SETTINGS)
    assert len(with_others(own, Two(), SETTINGS).evaluation) == 20
    with pytest.raises(DataError, match=r"there are 2 \(a, c\) classes, and the run has 2 \(a, b\)"):
        with_others(own, Two(("a", "c")), SETTINGS)


def test_weights_and_balance_are_those_of_the_run():
    x, y = RNG.normal(size=[40, 2]), (np.arange(40) < 30).astype(int)
    own = prepare(Examples(x, y, 2), "classes", "classes", Data(batch_size=4, class_weight="balanced"))
    others = Examples(x[:4], [0, 1, 1, 1], 2, {"w": [1, 1, 0, 2]})
    found = with_others(own, Held(others, "classes"), Data(batch_size=4, sample_weight="w")).evaluation
    np.testing.assert_allclose(found.weights, own.balance[[0, 1, 1, 1]] * [1, 1, 0, 2], rtol=1e-6)
    assert not found.features[2].any()


def test_tokens_are_found_by_name(tmp_path):
    (tmp_path / "own.txt").write_text("abcdcba" * 20)
    (tmp_path / "other.txt").write_text("dcbd" * 20)
    own = prepare(Text(str(tmp_path / "own.txt"), length=4).load(), "classes", "classes", SETTINGS)
    found = with_others(own, Text(str(tmp_path / "other.txt"), length=4), SETTINGS).evaluation
    assert found.features[0].tolist() == [3, 2, 1, 3]
    assert found.targets[0].tolist() == [2, 1, 3, 3]
    (tmp_path / "strange.txt").write_text("abxy" * 20)
    with pytest.raises(DataError, match="tokens that the run has not seen: x, y; it knows a, b, c, d"):
        with_others(own, Text(str(tmp_path / "strange.txt"), length=4), SETTINGS)


def test_words_that_the_run_has_not_seen_are_the_unknown_one(tmp_path):
    (tmp_path / "own.txt").write_text("the cat sees the dog. " * 20)
    (tmp_path / "other.txt").write_text("the dog sees the bird. " * 20)
    own = prepare(Text(str(tmp_path / "own.txt"), "word", length=6).load(), "classes", "classes", SETTINGS)
    found = with_others(own, Text(str(tmp_path / "other.txt"), "word", length=6), SETTINGS).evaluation
    assert [own.class_names[token] for token in found.features[0]] == ["the", "dog", "sees", "the", "(unknown)", "."]


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        (Examples(np.zeros([5, 3]), np.zeros(5)), r"have shape \(3,\); the run's model takes \(2,\)"),
        (Examples(np.zeros([5, 2]), np.zeros([5, 2])), r"targets of an example have shape \[\(2,\)\]; those of the run \[\(1,\)\]"),
        (Examples(np.zeros([5, 2], int), np.zeros(5), num_tokens=4), "the features are tokens, and the run's model takes numbers"),
    ],
)
def test_other_shapes_are_refused(examples, said):
    own = prepare(Examples(RNG.normal(size=[20, 2]), RNG.normal(size=20)), "real", "real", SETTINGS)
    with pytest.raises(DataError, match=said):
        with_others(own, Held(examples), SETTINGS)
