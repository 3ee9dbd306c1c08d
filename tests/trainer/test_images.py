"""Folders of images: what is read, and that every fault names its file."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import config, job, predict
from trainer.data.images import ImageFolder
from trainer.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def image(height, width, channels=3):
    return RNG.integers(0, 256, [height, width, channels]).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Classes cat (3 images) and dog (2), of 6 x 5 pixels."""
    for name in ("cat/b.png", "cat/a.PNG", "cat/c.jpg", "dog/d.jpeg", "dog/e.png"):
        write(tmp_path / name, image(6, 5))
    (tmp_path / "cat" / "notes.txt").write_text("mine")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if path.suffix.lower() == ".png" else tf.io.encode_jpeg
    path.write_bytes(encode(pixels).numpy())


def test_folders_are_classes_in_sorted_order(folder):
    source = ImageFolder(str(folder))
    assert (source.kind, source.num_examples, source.num_classes) == ("classes", 5, 2)
    features, targets, weights = source.read(np.array([3, 0, 4]))
    assert (features.shape, targets.tolist(), weights) == ((3, 6, 5, 3), [1, 0, 1], None)
    exact = tf.io.decode_png((folder / "cat" / "a.PNG").read_bytes()).numpy()
    np.testing.assert_array_equal(features[1], exact)
    assert source.read_targets(np.arange(5))[0].tolist() == [0, 0, 0, 1, 1]


def test_grey_and_resized(folder):
    write(folder / "dog" / "f.png", image(20, 30, 1))
    features, _, _ = ImageFolder(str(folder), height=4, width=3, channels=1).read(np.arange(6))
    assert features.shape == (6, 4, 3, 1)
    assert features.dtype == np.float32
    assert 0 <= features.min() < features.max() <= 255
    # Smoothed: the mean of an image that shrinks stays nearly the same.
    whole = tf.io.decode_png((folder / "dog" / "f.png").read_bytes()).numpy()
    assert features[5].mean() == pytest.approx(whole.mean(), abs=15)


def test_one_size_unless_it_is_typed(folder):
    write(folder / "dog" / "f.png", image(7, 5))
    source = ImageFolder(str(folder))
    with pytest.raises(DataError, match=r"f\.png has 7 x 5 pixels, but .*a\.PNG has 6 x 5: type data\.height="):
        source.read(np.arange(6))


@pytest.mark.parametrize("name", ["cat/b.png", "cat/c.jpg"])
@pytest.mark.parametrize("cut", [0, 5, 60, -20])
def test_a_damaged_file_is_named(folder, name, cut):
    (folder / name).write_bytes((folder / name).read_bytes()[:cut])
    with pytest.raises(DataError, match=rf"{name.replace('.', '[.]')} can't be decoded"):
        ImageFolder(str(folder), height=4, width=4).read(np.arange(5))


def test_a_file_that_is_no_image_is_named(folder):
    (folder / "dog" / "e.png").write_text("hello, this is text and no image at all")
    with pytest.raises(DataError, match=r"dog/e\.png can't be decoded"):
        ImageFolder(str(folder)).read(np.arange(5))


def test_a_file_that_is_gone_is_named(folder):
    source = ImageFolder(str(folder))
    assert source.num_examples == 5
    (folder / "dog" / "e.png").unlink()
    with pytest.raises(DataError, match=r"dog/e\.png can't be read: No such file"):
        source.read(np.array([4]))


def test_folders_that_are_not_right(tmp_path):
    def refused():
        with pytest.raises(DataError) as error:
            _ = ImageFolder(str(tmp_path / "images")).num_examples
        return str(error.value)

    assert "images can't be read: No such file" in refused()
    (tmp_path / "images").mkdir()
    assert "holds 0 folders of images" in refused()
    write(tmp_path / "images" / "a.png", image(2, 2))
    assert "put them into a folder for each class" in refused()
    write(tmp_path / "images" / "cat" / "a.png", image(2, 2))
    assert "holds 1 folders of images" in refused()
    (tmp_path / "images" / "dog").mkdir()
    assert "dog holds no images: PNG or JPEG files" in refused()
    (tmp_path / "images" / "dog" / "a.webp").write_bytes(b"RIFF")
    assert "a.webp is neither PNG nor JPEG" in refused()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"height": 0, "width": 4}, r"data\.height=0"),
        ({"height": 4}, "go together"),
        ({"channels": 2}, r"data\.channels=2 must be 3 .* or 1"),
    ],
)
def test_sizes_have_limits(keys, message):
    with pytest.raises(ConfigError, match=message):
        ImageFolder("images", **keys)


def test_without_targets_images_may_lie_anywhere(folder, tmp_path):
    every = ImageFolder(str(folder))
    found = every.unlabelled()
    assert found.num_examples == every.num_examples
    np.testing.assert_array_equal(found.read_features(np.arange(5)), every.read(np.arange(5))[0])
    alone = ImageFolder(str(folder / "dog")).unlabelled()
    np.testing.assert_array_equal(alone.read_features(np.array([1, 0])), every.read(np.array([4, 3]))[0])
    (tmp_path / "empty").mkdir()
    for path, said in (("empty", "empty holds no images"), ("nowhere", "nowhere can't be read")):
        with pytest.raises(DataError, match=said):
            _ = ImageFolder(str(tmp_path / path)).unlabelled().num_examples


def test_a_run_on_a_folder_of_images(tmp_path):
    for i in range(20):
        for name, light in (("dark", 0), ("light", 128)):
            write(tmp_path / "images" / name / f"{i}.png", image(5 + i % 3, 6) // 2 + np.uint8(light))
    arguments = ["data=image_folder", f"data.path={tmp_path / 'images'}", "data.height=6", "data.width=6", "model=cnn", "data.batch_size=8"]
    arguments += ["data.stream=true", "trainer.steps=20", "trainer.eval_every=0", "gradient.verify_at_start=false"]
    assert job.run(config.load([*arguments, f"hydra.run.dir={tmp_path / 'run'}"])) == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 20
    assert predict.run([str(tmp_path / "run"), f"data.path={tmp_path / 'images' / 'dark'}"]) == 0  # a folder without folders
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 21
