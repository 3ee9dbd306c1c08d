"""CSV, NPZ and NPY files of one's own: what is read, and that every fault names its place."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from trainer.data.files import Csv, Npy, Npz
from trainer.errors import ConfigError, DataError


@pytest.fixture
def write(tmp_path):
    """Writes a file and gives its path."""

    def write(content: str | bytes, name: str = "data.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def savez(tmp_path):
    """Writes an NPZ file and gives its path."""

    def savez(**arrays) -> str:
        np.savez(tmp_path / "data.npz", **arrays)
        return str(tmp_path / "data.npz")

    return savez


def test_csv_real(write):
    source = Csv(write("height,age,price\n1.5,20,100.5\n1.75,30,200\n"), target="price")
    examples = source.load()
    assert source.kind == "real"
    np.testing.assert_array_equal(examples.features, np.float32([[1.5, 20], [1.75, 30]]))
    np.testing.assert_array_equal(examples.targets, [[100.5], [200]])
    assert list(examples.feature_names) == ["height", "age"]


def test_csv_text_is_classes_in_sorted_order(write):
    source = Csv(write("x,species\n1,setosa\n2,iris\n3,setosa\n"), target="species")
    examples = source.load()
    assert (source.kind, examples.num_classes, list(examples.class_names)) == ("classes", 2, ["iris", "setosa"])
    assert examples.targets.tolist() == [1, 0, 1]


def test_csv_byte_order_mark_quotes_blank_lines_and_windows_lines(write):
    path = write(b'\xef\xbb\xbf"a, b",c\r\n"1",2\r\n\r\n" 3",-4e-1\r\n')
    examples = Csv(path, target="c").load()
    assert list(examples.feature_names) == ["a, b"]
    np.testing.assert_allclose(examples.features, [[1], [3]])
    np.testing.assert_allclose(examples.targets, [[2], [-0.4]])


@pytest.mark.parametrize(("delimiter", "character"), [(";", ";"), ("tab", "\t"), ("\t", "\t")])
def test_csv_delimiter(write, delimiter, character):
    examples = Csv(write("x,y\n0.5,1.5\n2.5,3.5\n".replace(",", character)), target="y", delimiter=delimiter).load()
    np.testing.assert_array_equal(examples.features, [[0.5], [2.5]])


def test_csv_one_hot(write):
    examples = Csv(write("color,x,y\nred,1,0.5\nblue,2,1.5\n,3,2.5\n"), target="y").load()
    assert list(examples.feature_names) == ["color=blue", "color=red", "x"]
    np.testing.assert_array_equal(examples.features, [[0, 1, 1], [1, 0, 2], [np.nan, np.nan, 3]])
    with pytest.raises(DataError, match="row 2, column 'color=blue'"):
        examples.check()


def test_csv_refuses_too_many_texts(write):
    rows = "".join(f"name{i},{i}.5\n" for i in range(101))
    with pytest.raises(DataError, match="column 'name' has 101 different texts"):
        Csv(write("name,y\n" + rows), target="y").load()


def test_csv_chosen_features_and_several_targets(write):
    path = write("a,b,c,d\n1,2,3,4\n5,6,7,8\n")
    examples = Csv(path, target=["d", "b"], features=["c"]).load()
    np.testing.assert_array_equal(examples.features, [[3], [7]])
    np.testing.assert_array_equal(examples.targets, [[4, 2], [8, 6]])
    assert Csv(path, target=["d", "b"]).kind == "real"


def test_csv_names_may_be_numbers(write):
    path = write("a,5,6\n1,2,3.5\n5,6,7.5\n")
    assert Csv(path, target=6, features=5).load().features.tolist() == [[2], [6]]
    assert Csv(path, target=[5, 6]).load().targets.tolist() == [[2, 3.5], [6, 7.5]]


def test_csv_leaves_out_columns_without_a_name(write):
    assert list(Csv(write(",a,y\n0,1.5,2.5\n1,3.5,4.5\n"), target="y").load().feature_names) == ["a"]


def test_csv_weight_is_no_feature_and_excuses_missing_values(write):
    path = write("a,w,y\n1,0.5,u\n,0,\n3,2,v\n")
    examples = Csv(path, target="y", sample_weight="w").load()
    assert list(examples.feature_names) == ["a"]
    assert examples.weights["w"].tolist() == [0.5, 0, 2]
    assert examples.targets.tolist() == [0, 0, 1]
    examples.check(examples.weights["w"], kind="classes")
    with pytest.raises(DataError, match="line 3: column 'y' has no value"):
        Csv(path, target="y", features=["a"]).load()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "classes"),
        (["3", "-1", "7"], "classes"),
        (["1.0", "2.0"], "classes"),
        ([str(i) for i in range(20)], "classes"),
        ([str(i) for i in range(21)], "real"),
        (["1", "2.5"], "real"),
        (["1", "inf"], "real"),
    ],
)
def test_auto_kind(write, savez, values, kind):
    path = write("x,y\n" + "".join(f"1,{value}\n" for value in values))
    assert Csv(path, target="y").kind == kind
    array = np.array(values) if values[0] == "a" else np.array([float(value) for value in values])
    assert Npz(savez(x=np.ones([len(values), 1]), y=array)).kind == kind


def test_kind_can_be_said(write):
    path = write("x,y\n1,7\n2,3\n3,3\n")
    examples = Csv(path, target="y", targets="classes").load()
    assert (examples.targets.tolist(), list(examples.class_names)) == ([1, 0, 0], ["3", "7"])
    for kind in ("counts", "real"):
        source = Csv(path, target="y", targets=kind)
        assert source.kind == kind
        assert source.load().targets.tolist() == [[7], [3], [3]]


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "is empty"),
        ("a,y\n", {}, "no rows"),
        ("1,2\n3,4\n", {}, "first line must name the columns; found numbers: 1, 2"),
        ("a,a,y\n1,2,3\n", {}, "two columns named 'a'"),
        ("a,y\n1,2\n1,2,3\n", {}, "line 3: 3 cells, but 2 columns"),
        ("a,y\n1\n", {}, "line 2: 1 cells, but 2 columns"),
        ("a,y\n1,2\n\nx1,2\n", {}, r"line 4, column 'a': 'x1' is no number"),
        ("a,y\n1,2.5\n1_0,2.5\n", {}, r"line 3, column 'a': '1_0' is no number"),
        ("a,y\n1,2.5\n1,few\n", {}, r"line 3, column 'y': 'few' is no number"),
        ("a,y\n1,b\n2,c\n", {"targets": "real"}, "column 'y' is text"),
        ("a,y\n1,0.5\n2,1.5\n", {"targets": "classes"}, "line 2: column 'y' has 0.5, which is no class"),
        ('a,y\n1,"2\n3,4\n', {}, "line 3: unexpected end of data"),
        ('a,y\n1,"2"3\n', {}, "line 2: "),
        ("a,y\n1," + "9" * 200_000 + "\n", {}, "line 2: field larger than field limit"),
        (b"a,y\n1,\xff\xfe\n", {}, "no UTF-8"),
    ],
)
@pytest.mark.fault
def test_csv_faults_name_their_place(write, content, keys, message):
    path = write(content)
    with pytest.raises(DataError, match=message) as caught:
        Csv(path, target="y", **keys).load()
    assert path in str(caught.value) or "column" in str(caught.value) or "classes" in str(caught.value)


def test_one_class_alone_is_no_training_data(write):
    examples = Csv(write("a,y\n1,5\n2,5\n"), target="y").load()
    with pytest.raises(DataError, match="at least 2 classes; found 1"):
        examples.check(kind="classes")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"target": "prize"}, r"data\.target=prize: .* did you mean price\?"),
        ({"target": "price", "features": ["ages"]}, r"data\.features=ages: .* did you mean age\?"),
        ({"target": "price", "sample_weight": "zzz"}, r"data\.sample_weight=zzz: .* there are age, price"),
        ({"target": "price", "features": ["age", "price"]}, "which is data.target already"),
        ({"target": ["price", "age"]}, "no columns to predict from"),
        ({"target": []}, "must name the column"),
        ({"target": "price", "targets": "class"}, "auto, real, binary, counts, classes, .*series"),
        ({"target": "price", "delimiter": ", "}, "one character, or tab"),
    ],
)
def test_csv_keys_are_checked(write, keys, message):
    path = write("age,price\n1,2.5\n2,3.5\n")
    with pytest.raises(ConfigError, match=message):
        Csv(path, **keys).load()


@pytest.mark.parametrize("source", [Csv("nowhere/data.csv", target="y"), Npz("nowhere/data.npz")])
def test_missing_file_names_the_folder(source, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"data\.path=nowhere.*No such file.*{tmp_path}"):
        source.load()


def test_folder_is_no_file(tmp_path):
    for source in (Csv(str(tmp_path), target="y"), Npz(str(tmp_path))):
        with pytest.raises(DataError, match="directory"):
            source.load()


def test_paths_count_from_the_current_folder_and_home(write, monkeypatch, tmp_path):
    write("x,y\n0.5,1.5\n2.5,3.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("data.csv", "~/data.csv"):
        assert len(Csv(path, target="y").load()) == 2


def test_npz(savez):
    images = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.uint8)
    source = Npz(savez(images=images, label=np.array(["cat", "dog"]), w=[1, 0.5]), features="images", target="label", sample_weight="w")
    examples = source.load()
    assert (source.kind, examples.features.shape, list(examples.class_names)) == ("classes", (2, 4, 4, 1), ["cat", "dog"])
    assert examples.features.dtype == np.float32
    assert examples.weights["w"].tolist() == [1, 0.5]


def test_npz_targets_of_one_column_and_of_several(savez):
    assert Npz(savez(x=np.ones([3, 1]), y=np.array([[0], [1], [1]]))).load().targets.tolist() == [0, 1, 1]
    assert Npz(savez(x=np.ones([3, 1]), y=np.array([True, False, True]))).load().targets.tolist() == [1, 0, 1]
    several = Npz(savez(x=np.ones([3, 1]), y=np.eye(3)))
    assert (several.kind, several.load().targets.shape) == ("real", (3, 3))


@pytest.mark.fault
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones([2, 1]), "y": np.array([{}, {}], object)}, "never unpickled"),
        ({"x": np.ones([2, 1]), "y": 3}, "'y' is a single number"),
        ({"x": np.ones([2, 1]), "y": np.ones(2) * 1j}, "found dtype complex128"),
        ({"x": np.ones([2, 1]), "y": np.array([b"a", b"b"])}, "numbers or text; found dtype"),
        ({"x": np.array([["a"], ["b"]]), "y": np.ones(2)}, "features must be real numbers"),
        ({"x": np.ones([3, 1]), "y": np.array([0, 1])}, "3 rows of features, but 2 of targets"),
        ({"x": np.ones([2, 1]), "y": np.array([0.0, np.nan])}, r"row 1 \(from 0\): array 'y' has no value"),
        ({"x": np.ones([0, 1]), "y": np.ones([0, 2])}, "there is no data"),
    ],
)
def test_npz_faults(savez, arrays, message):
    with pytest.raises(DataError, match=message):
        Npz(savez(**arrays)).load()


def test_npz_keys_are_checked(savez):
    path = savez(features=np.ones([2, 1]), y=np.arange(2), w=np.ones([2, 2]))
    with pytest.raises(ConfigError, match=r"data\.features=feature: .* did you mean features\?"):
        Npz(path, features="feature").load()
    with pytest.raises(ConfigError, match=r"data\.features=x: .* there are features, y, w"):
        Npz(path).load()
    with pytest.raises(DataError, match=r"weights 'w' have shape \(2, 2\)"):
        Npz(path, features="features", sample_weight="w").load()


class Exploit:
    def __reduce__(self):
        return (Path("exploited").touch, ())


@pytest.mark.fault
@pytest.mark.parametrize("kind", ["pickle", "npy", "object npy", "garbage", "truncated"])
def test_nothing_is_unpickled(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data.npz"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Exploit()))
    elif kind == "garbage":
        path.write_bytes(b"x,y\n1,2\n")
    elif kind == "truncated":
        np.savez(path, x=np.ones([100, 10]), y=np.ones(100))
        path.write_bytes(path.read_bytes()[:3000])
    else:
        with path.open("wb") as file:
            np.save(file, np.ones(3) if kind == "npy" else np.array([Exploit()], object))
    with pytest.raises(DataError, match="both features and targets are needed" if kind == "npy" else "never unpickled"):
        Npz("data.npz").load()
    assert not Path("exploited").exists()


@pytest.fixture
def save(tmp_path):
    """Writes NPY files and gives their folder."""

    def save(**arrays) -> str:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        return str(tmp_path)

    return save


def test_npy_is_read_by_row(save):
    x = np.arange(24.0).reshape(4, 3, 2)
    source = Npy(save(x=x, y=np.array(["b", "a", "b", "c"]), w=[1, 2, 3, 4]), sample_weight="w.npy")
    assert (source.kind, source.num_examples, source.num_classes) == ("classes", 4, 3)
    features, targets, weights = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(features, x[[2, 0]])
    assert (targets.tolist(), weights.tolist()) == ([1, 1], [3, 1])
    assert type(features) is np.ndarray
    assert isinstance(source._features, np.memmap)


def test_npy_paths_of_their_own(save, tmp_path):
    folder = save(x=np.ones([3, 1]), y=[[0.5], [1.5], [2.5]])
    source = Npy(str(tmp_path / "elsewhere"), features=f"{folder}/x.npy", target=f"{folder}/y.npy")
    assert (source.kind, source.num_classes) == ("real", None)
    assert source.read(np.array([1]))[1].tolist() == [1.5]


def test_npy_kinds_of_targets(save):
    x = np.ones([30, 1])
    for y, targets, kind in (
        (np.arange(30) % 2, "auto", "classes"),
        (np.arange(30), "auto", "real"),
        (np.arange(30) % 2, "binary", "binary"),
        (np.zeros([30, 5, 2]), "auto", "real"),
        (np.zeros([30, 5, 2]), "series", "series"),
        ((np.arange(30) % 2)[:, None], "auto", "classes"),
    ):
        source = Npy(save(x=x, y=y), targets=targets)
        assert source.kind == kind
        assert source.num_classes == (2 if kind == "classes" else None)
    assert isinstance(Npy(save(x=x, y=np.zeros([30, 5, 2])))._labels[1], np.memmap)  # may be as large as the features


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(3), "y": np.ones(3)}, r"x\.npy: features must have shape .*features\[:, None\]"),
        ({"x": np.ones([3, 1]), "y": np.ones(4)}, r"y\.npy holds 4 rows, but .*x\.npy has 3"),
        ({"x": np.ones([3, 1]), "y": 5.0}, "a single number"),
        ({"x": np.ones([0, 1]), "y": np.ones(0)}, "there is no data"),
        ({"x": np.ones([3, 1]), "y": np.ones(3, complex)}, "numbers or text; found dtype complex128"),
        ({"x": np.ones([3, 1]), "y": np.ones([3, 2], "U1")}, "must hold numbers, or text"),
    ],
)
def test_npy_refuses(save, arrays, message):
    with pytest.raises(DataError, match=message):
        Npy(save(**arrays)).read(np.arange(2))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"hello", None])
def test_npy_damaged(save, tmp_path, content):
    folder = save(x=np.ones([300, 10]), y=np.ones(300))
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:1000] if content is None else content)
    with pytest.raises(DataError, match=r"x\.npy.*damaged"):
        Npy(folder).read(np.arange(2))


def test_npy_is_never_unpickled(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "x.npy", np.array([[Exploit()]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="never unpickled"):
        Npy(save(y=np.ones(1))).read(np.arange(1))
    assert not Path("exploited").exists()


def test_npy_names_what_is_missing(save, tmp_path):
    with pytest.raises(DataError, match=r"nowhere/x\.npy can't be read: No such file"):
        _ = Npy(str(tmp_path / "nowhere")).num_examples
    np.savez(tmp_path / "both.npz", x=np.ones([3, 1]))
    with pytest.raises(DataError, match="type data=npz"):
        _ = Npy(str(tmp_path), features="both.npz").num_examples
