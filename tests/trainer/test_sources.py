"""The sources made of bundled tables: what their examples are, item by item."""

import dataclasses

import numpy as np
import pytest

from trainer.data import censored, lists, pairs, sequences, shapes, teacher
from trainer.data.base import Source
from trainer.data.bundled import Diabetes, Digits, Engel
from trainer.errors import ConfigError

# Source -> kind, shape of the features, shape of the targets.
SOURCES = {
    pairs.DigitPairs: ("same", (898, 2, 8, 8, 1), (898, 1)),
    pairs.DigitTriplets: ("none", (543, 3, 8, 8, 1), None),
    pairs.DigitViews: ("none", (1797, 2, 8, 8, 1), None),
    pairs.DiabetesPairs: ("preference", (220, 2, 10), (220, 1)),
    lists.TravelChoice: ("relevance", (210, 4, 9), (210, 4)),
    lists.DiabetesLists: ("relevance", (55, 8, 10), (55, 8)),
    censored.EngelBrackets: ("interval", (235, 1), (235, 2)),
    censored.Strikes: ("survival", (62, 1), (62, 2)),
    teacher.DigitsTeacher: ("logits", (1797, 8, 8, 1), (1797, 10)),
    shapes.DigitPoints: ("points", (1797, 8, 8, 1), (1797, 16, 2)),
    shapes.DigitTree: ("ball", (1797, 8, 8, 1), (1797, 2)),
    sequences.Sunspots: ("series", (266, 33, 1), (266, 11, 1)),
}


@pytest.fixture(scope="module")
def digit_of():
    digits = Digits().load()
    table = {image.tobytes(): digit for image, digit in zip(digits.features, digits.targets, strict=True)}
    return lambda image: table[np.float32(image).tobytes()]


@pytest.fixture(scope="module")
def progression_of():
    patients = Diabetes().load()
    table = {row.tobytes(): float(target[0]) for row, target in zip(patients.features, patients.targets, strict=True)}
    return lambda row: table[row.tobytes()]


@pytest.mark.parametrize("source", SOURCES)
def test_source(source):
    kind, features, targets = SOURCES[source]
    examples = source().load()
    examples.check(kind=kind)
    assert (source.kind, examples.features.shape, examples.features.dtype) == (kind, features, np.float32)
    assert examples.targets is None if targets is None else examples.targets.shape == targets


def test_every_source_is_tested():
    modules = (censored, lists, pairs, sequences, shapes, teacher)
    found = {v for m in modules for v in vars(m).values() if isinstance(v, type) and issubclass(v, Source) and v.__module__ == m.__name__}
    assert found == {*SOURCES, sequences.DigitLines}


@pytest.mark.parametrize("source", [pairs.DigitPairs, pairs.DigitViews, lists.DiabetesLists, sequences.DigitLines])
def test_what_is_drawn_is_the_same_every_time_and_nobody_elses(source):
    np.random.seed(0)
    state = np.random.get_state()[1].tolist()
    one = source().load().features
    np.random.seed(1)
    np.testing.assert_array_equal(source().load().features, one)
    np.random.seed(0)
    source().load()
    assert np.random.get_state()[1].tolist() == state


def test_pairs_of_digits(digit_of):
    examples = pairs.DigitPairs().load()
    digits = np.array([[digit_of(image) for image in pair] for pair in examples.features])
    np.testing.assert_array_equal(examples.targets[:, 0], digits[:, 0] == digits[:, 1])
    assert 0.4 < examples.targets.mean() < 0.6
    assert len(np.unique(examples.features.reshape(-1, 64), axis=0)) == 1796  # no image is in two pairs


def test_triplets_of_digits(digit_of):
    examples = pairs.DigitTriplets().load()
    anchor, positive, negative = np.array([[digit_of(image) for image in images] for images in examples.features]).T
    assert (anchor == positive).all()
    assert (anchor != negative).all()
    assert set(anchor) == set(negative) == set(range(10))
    assert len(np.unique(examples.features.reshape(-1, 64), axis=0)) == 3 * len(examples)


def test_views_of_digits_are_more_alike_than_others():
    first, second = pairs.DigitViews().load().features.reshape(-1, 2, 64).transpose(1, 0, 2)
    assert (np.abs(first - second).max(axis=1) > 0).mean() > 0.99

    def alike(a, b):
        return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    assert alike(first, second).mean() > alike(first, np.roll(second, 1, axis=0)).mean() + 0.05


def test_a_view_is_the_moved_image_times_a_number():
    image = Digits().load().features[0, :, :, 0]
    for view in pairs.DigitViews().load().features[0, :, :, :, 0]:
        padded = np.pad(image, 1)
        moves = [padded[y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
        ratios = [view[moved > 0] / moved[moved > 0] for moved in moves if ((view > 0) == (moved > 0)).all()]
        assert any(np.ptp(ratio) < 1e-5 and 0.7 <= ratio[0] <= 1.3 for ratio in ratios)


def test_the_preferred_patient_has_progressed_further(progression_of):
    examples = pairs.DiabetesPairs().load()
    progression = np.array([[progression_of(row) for row in pair] for pair in examples.features])
    np.testing.assert_array_equal(examples.targets[:, 0], progression[:, 0] > progression[:, 1])


def test_grades_follow_progression(progression_of):
    examples = lists.DiabetesLists(num_items=5).load()
    progression = np.array([[progression_of(row) for row in patients] for patients in examples.features])
    assert examples.targets.shape == (88, 5)
    assert set(examples.targets.ravel()) == {0, 1, 2, 3, 4}
    for grade in range(4):
        assert progression[examples.targets == grade].max() <= progression[examples.targets == grade + 1].min()


def test_every_traveller_chooses_one_way():
    examples = lists.TravelChoice().load()
    np.testing.assert_array_equal(examples.targets.sum(axis=1), 1)
    np.testing.assert_array_equal(examples.features[:, :, 5:], np.broadcast_to(np.eye(4), (210, 4, 4)))
    assert (examples.features[:, 3, 0] == 0).all()  # nobody waits at a terminal for the car
    assert examples.targets.sum(axis=0).tolist() == [58, 63, 30, 59]  # Greene's table


def test_brackets_hold_what_was_spent():
    spent = Engel().load().targets[:, 0]
    lower, upper = censored.EngelBrackets(width=100, top=1000).load().targets.T
    assert ((lower <= spent) & (spent < upper)).all()
    np.testing.assert_array_equal(np.isinf(upper), spent >= 1000)
    np.testing.assert_array_equal((upper - lower)[spent < 1000], 100)


def test_a_last_bracket_that_is_narrower_ends_at_the_top():
    lower, upper = censored.EngelBrackets(width=300, top=1000).load().targets.T
    assert set(lower) == {0, 300, 600, 900, 1000}
    assert set(upper) == {300, 600, 900, 1000, np.inf}


def test_long_strikes_are_censored():
    seen, cut = (censored.Strikes(horizon=days).load().targets for days in (1000.0, 50.0))
    assert seen[:, 1].all()
    np.testing.assert_array_equal(cut[:, 0], np.minimum(seen[:, 0], 50))
    np.testing.assert_array_equal(cut[:, 1], seen[:, 0] <= 50)
    assert 0 < cut[:, 1].mean() < 1


def test_the_teacher_knows_the_digits_and_is_surer_when_stronger():
    right = Digits().load().targets
    weak, strong = (teacher.DigitsTeacher(strength=c).load().targets for c in (0.01, 1.0))
    assert (strong.argmax(axis=1) == right).mean() > 0.97
    assert np.ptp(strong, axis=1).mean() > 2 * np.ptp(weak, axis=1).mean()


def test_points_lie_where_the_ink_is():
    examples = shapes.DigitPoints(num_points=7).load()
    rows, columns = np.moveaxis(np.rint((examples.targets + 1) * 3.5).astype(int), -1, 0)
    ink = examples.features[np.arange(1797)[:, None], rows, columns, 0]
    assert ink.shape == (1797, 7)
    assert (ink > 0).all()
    assert np.abs(examples.targets).max() == 1


def test_the_tree_is_a_tree():
    digits, points = Digits().load().targets, shapes.DigitTree().load().targets
    places = np.array([points[digits == digit][0] for digit in range(10)])
    for digit in range(10):
        np.testing.assert_array_equal(points[digits == digit], np.broadcast_to(places[digit], (np.sum(digits == digit), 2)))
    square = np.sum((places[:, None] - places) ** 2, axis=-1)
    gap = 1 - np.sum(places**2, axis=1)
    distances = np.arccosh(1 + 2 * square / gap[:, None] / gap)
    np.fill_diagonal(distances, np.inf)
    # Every step of the tree has the same length, 1.5; siblings are two steps apart along it, and the way through the disk is a bit shorter.
    assert 2 * 1.5 * 0.6 < distances.min() < 2 * 1.5
    assert np.isclose(distances, distances.min(), rtol=1e-3).sum() >= 6  # three pairs of siblings at least
    assert len(np.unique(places.round(6), axis=0)) == 10


def test_windows_of_sunspots_go_on():
    examples = sequences.Sunspots(past=5, future=3, stride=4).load()
    whole = np.concatenate([examples.features, examples.targets], axis=1)[:, :, 0]
    assert len(examples) == (309 - 8) // 4 + 1
    np.testing.assert_allclose(whole[1:, :4], whole[:-1, 4:], rtol=1e-6)
    np.testing.assert_array_equal(whole[0, :5], [5, 11, 16, 23, 36])  # 1700 to 1704


def test_lines_hold_their_digits(digit_of):
    examples = sequences.DigitLines(num_lines=50, fewest=1, most=4, seed=3).load()
    examples.check(kind="labels")
    assert (sequences.DigitLines.kind, examples.features.shape, examples.num_classes) == ("labels", (50, 32, 8), 10)
    labels, num_frames = examples.targets["labels"], examples.targets["num_frames"]
    assert set(num_frames) == {8, 16, 24, 32}
    for line, label, length in zip(examples.features, labels, num_frames // 8, strict=True):
        images = line.reshape(4, 8, 8).transpose(0, 2, 1)[..., None]
        assert [digit_of(image) for image in images[:length]] == label[:length].tolist()
        assert (label[length:] == -1).all()
        assert not images[length:].any()


@pytest.mark.parametrize(
    ("source", "keys", "message"),
    [
        (lists.DiabetesLists, {"num_items": 1}, r"data\.num_items=1"),
        (censored.EngelBrackets, {"width": 0.0}, r"data\.width=0\.0"),
        (censored.EngelBrackets, {"width": 10.0, "top": 5.0}, r"at most data\.top=5\.0"),
        (censored.Strikes, {"horizon": 0.0}, r"data\.horizon=0\.0"),
        (teacher.DigitsTeacher, {"strength": 0.0}, r"data\.strength=0\.0"),
        (shapes.DigitPoints, {"num_points": 0}, r"data\.num_points=0"),
        (sequences.Sunspots, {"past": 0}, r"data\.past=0"),
        (sequences.Sunspots, {"stride": 500}, r"data\.stride=500"),
        (sequences.DigitLines, {"fewest": 3, "most": 2}, r"data\.fewest=3 data\.most=2"),
        (sequences.DigitLines, {"num_lines": 1}, r"data\.num_lines=1"),
    ],
)
def test_keys_are_checked(source, keys, message):
    assert dataclasses.fields(source)
    with pytest.raises(ConfigError, match=message):
        source(**keys)
