"""Text as tokens: windows, vocabularies, the bundled text, and what is refused."""

import numpy as np
import pytest

from trainer.data.prepare import prepare
from trainer.data.text import Text
from trainer.errors import ConfigError, DataError
from trainer.schema import Data


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes) -> str:
        path = tmp_path / "mine.txt"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def decoded(examples, joined: str = "") -> str:
    """The text again: the first token, and every target."""
    tokens = [examples.features[0, 0], *examples.targets.ravel()]
    return joined.join(examples.class_names[token] for token in tokens)


def test_characters(write):
    examples = Text(write("abcabcädefg"), length=3).load()
    assert decoded(examples) == "abcabcädef"  # what is left over makes no window
    assert examples.features.shape == examples.targets.shape == (3, 3)
    assert (examples.features.dtype, examples.num_tokens, examples.num_classes) == (np.int32, 8, 8)
    np.testing.assert_array_equal(examples.features.ravel()[1:], examples.targets.ravel()[:-1])


def test_bytes(write):
    examples = Text(write(bytes([0, 255, 7, 7, 128])), unit="byte", length=2).load()
    assert examples.features.tolist() == [[0, 255], [7, 7]]
    assert examples.targets.tolist() == [[255, 7], [7, 128]]
    assert (examples.num_tokens, examples.class_names[255]) == (256, "ff")


def test_words(write):
    path = write("the cat, the dog; the end.\n\nthe cat, the dog; the end.")
    examples = Text(path, unit="word", length=2).load()
    assert decoded(examples, " ").startswith("the cat , the dog ; the end . the cat")
    assert examples.class_names[:2] == ["(unknown)", "the"]
    assert examples.features.min() > 0


def test_rare_words_are_one_token(write):
    examples = Text(write("b b b a a c d e a b"), unit="word", length=2, max_words=3).load()
    assert examples.class_names == ["(unknown)", "b", "a"]
    assert decoded(examples, " ") == "b b b a a (unknown) (unknown) (unknown) a"


@pytest.mark.parametrize(("unit", "num_tokens"), [("char", (90, 120)), ("byte", (256, 256)), ("word", (3000, 8192))])
def test_the_bundled_text(unit, num_tokens):
    examples = Text(unit=unit).load()
    assert num_tokens[0] <= examples.num_tokens <= num_tokens[1]
    assert examples.features.shape[1] == 64
    assert examples.features.size > (60_000 if unit == "word" else 400_000)
    if unit == "char":
        assert decoded(examples).startswith('The "assert" statement\n')


def test_tokens_are_never_standardized():
    examples = Text(length=100).load()
    prepared = prepare(examples, "classes", "classes", Data())
    assert prepared.train.features.dtype == np.int32
    assert (prepared.num_tokens, prepared.target_shape) == (examples.num_tokens, ())
    both = np.concatenate([prepared.train.features, prepared.evaluation.features])
    assert sorted(map(bytes, both)) == sorted(map(bytes, examples.features))
    with pytest.raises(ConfigError, match="one class an example"):
        prepare(examples, "classes", "classes", Data(class_weight="balanced"))
    with pytest.raises(DataError, match="sequences of classes are not made real"):
        prepare(examples, "classes", "real", Data())


@pytest.mark.parametrize(
    ("content", "keys", "error", "message"),
    [
        ("abc", {"unit": "line"}, ConfigError, r"data\.unit=line must be one of char, byte, word"),
        ("abc", {"length": 1}, ConfigError, r"data\.length=1"),
        ("abc", {"max_words": 1}, ConfigError, r"data\.max_words=1"),
        ("abcdefgh", {"length": 64}, DataError, r"8 tokens.*at most data\.length=3"),
        ("", {}, DataError, "two different tokens"),
        ("aaaa", {"length": 2}, DataError, "two different tokens"),
        (b"\xff\xfe", {}, DataError, r"no UTF-8 text.*data\.unit=byte"),
    ],
)
@pytest.mark.fault
def test_refused(write, content, keys, error, message):
    with pytest.raises(error, match=message):
        Text(write(content), **keys).load()


@pytest.mark.fault
def test_a_missing_file_is_named():
    with pytest.raises(DataError, match=r"data\.path=nowhere\.txt can't be read"):
        Text("nowhere.txt").load()
