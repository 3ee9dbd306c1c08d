import sys

import pytest

from trainer import trust
from trainer.errors import ConfigError

CODE = ["os.system", "subprocess.run", "numpy.load", "builtins.eval", "tensorflow.io.write_file", "asyncio.create_subprocess_shell"]
CODE += [
    "distutils.spawn.spawn",
    "tf.io.gfile.rmtree",
    "logging.os.system",
    "losses.base.pathlib.Path.touch",
    "losses.base.functools.partial",
]
CODE += [
    "trainer.models.keras.utils.get_file",
    "trainer.data.files.Path.touch",
    "trainer.schedules.math.sqrt",
    "trainer.job.run",
    "trainer.cli.main",
]
CODE += [
    "keras.models.load_model",
    "keras.models.model_from_json",
    "keras.models.clone_model",
    "keras.saving.load_model",
    "keras.utils.get_file",
]
CODE += [
    "keras.layers.Lambda",
    "keras.layers.TorchModuleWrapper",
    "keras.layers.TFSMLayer",
    "keras.Model",
    "keras.Sequential",
    "keras.losses.deserialize",
]
CODE += [
    "keras.optimizers.deserialize",
    "keras.applications.imagenet_utils.decode_predictions",
    "os",
    "",
    ".x",
    "losses..mse.MSE",
    "losses.mse.MSE ",
    3,
    None,
]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's own in the current folder, which is not on the path; gives a function that fills it."""
    name = "package_of_" + tmp_path.name.replace("-", "_")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def fill(text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield fill
    sys.modules.pop(name, None)


@pytest.mark.fault
@pytest.mark.parametrize("target", CODE)
@pytest.mark.parametrize("kind", trust.KINDS)
def test_names_off_the_list_are_refused_unimported(kind, target):
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=rf"{kind}\._target_=.*(; (if|type) |: must be written out)"):
        trust.check_names({kind: {"_target_": target}}, ())
    with pytest.raises(ConfigError):
        trust.find(target, kind, ())
    assert set(sys.modules) == before


@pytest.mark.fault
@pytest.mark.parametrize(
    "config",
    [
        {"_target_": "losses.mse.MSE"},
        {"trainer": {"_target_": "losses.mse.MSE"}},
        {"model": {"_target_": "trainer.models.mlp", "activation": {"_target_": "keras.layers.ReLU"}}},
        {"model": {"_target_": "trainer.models.mlp", "layers": [{"a": [{"_target_": "os.system"}]}]}},
        {"loss": {"_target_": "losses.mse.MSE", "_args_": [1]}},
        {"loss": {"_target_": "losses.mse.MSE", "_partial_": True}},
    ],
)
def test_a_target_stands_at_the_top_of_a_group_and_nowhere_else(config):
    with pytest.raises(ConfigError, match="nowhere else"):
        trust.check_names(config, ("os",))


def test_shipped_names_pass():
    names = {"model": "trainer.models.mlp", "data": "trainer.data.bundled.Digits", "loss": "losses.mse.MSE"}
    names |= {"optimizer": "keras.optimizers.Adam", "schedule": "trainer.schedules.constant"}
    trust.check_names({kind: {"_target_": target} for kind, target in names.items()}, ())
    assert {kind: trust.find(target, kind, ()).__name__ for kind, target in names.items()} == {
        "model": "mlp",
        "data": "Digits",
        "loss": "MSE",
        "optimizer": "Adam",
        "schedule": "constant",
    }
    assert trust.find("keras.applications.MobileNetV2", "model", ()).__name__ == "MobileNetV2"


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("loss", "losses.base.LossError"),
        ("loss", "losses.base.Callable"),
        ("model", "trainer.models.keras"),
        ("optimizer", "keras.optimizers.Nope"),
        ("schedule", "trainer.schedules.keras"),
        ("data", "trainer.data.bundled.Source"),
    ],
)
def test_shipped_names_of_another_kind_are_refused(kind, target):
    if target.endswith("Source"):  # abstract, but of the kind: there is nothing in it to call
        assert trust.find(target, kind, ()).__name__ == "Source"
        return
    with pytest.raises(ConfigError, match=f"{kind}._target_={target}"):
        trust.find(target, kind, ())


def test_a_package_of_ones_own_is_found_in_the_current_folder(package):
    name = package(
        "import keras\nimport trainer.data.base\nfrom losses.base import Loss\n"
        "class Mine(Loss): pass\n"
        "class Net(keras.Model): pass\n"
        "class Adam2(keras.optimizers.Adam): pass\n"
        "class Rows(trainer.data.base.Source): pass\n"
        "def f(*_): return 1\n"
    )
    found = {"loss": "Mine", "model": "Net", "optimizer": "Adam2", "data": "Rows", "schedule": "f"}
    for kind, attribute in found.items():
        trust.check_names({kind: {"_target_": f"{name}.{attribute}"}}, [name])
        assert trust.find(f"{name}.{attribute}", kind, [name]).__name__ == attribute
    assert trust.find(f"{name}.f", "loss", [name])(0, 0) == 1
    assert trust.find(f"{name}.f", "model", [name])
    for kind, attribute in [
        ("loss", "Net"),
        ("optimizer", "Mine"),
        ("data", "f"),
        ("schedule", "Mine"),
        ("model", "Mine"),
        ("loss", "Missing"),
    ]:
        with pytest.raises(ConfigError, match=f"{kind}._target_={name}.{attribute}"):
            trust.find(f"{name}.{attribute}", kind, [name])


@pytest.mark.fault
@pytest.mark.parametrize("attribute", ["system", "run", "os.system", "Path", "bound", "number", "Path.touch"])
def test_what_a_trusted_package_has_imported_is_not_its_own(package, attribute):
    name = package(
        "import functools\nimport os\nfrom os import system\nfrom pathlib import Path\nfrom subprocess import run\n"
        "bound = functools.partial(system, 'touch canary')\nnumber = 3\n"
    )
    with pytest.raises(ConfigError):
        trust.find(f"{name}.{attribute}", "loss", [name])


def test_an_installed_package_is_not_hidden_by_the_current_folder(package, tmp_path, monkeypatch):
    name = package("raise RuntimeError('the wrong one')")
    installed = tmp_path / "site"
    installed.mkdir()
    (installed / f"{name}.py").write_text("def f(a, b): return 2\n")
    monkeypatch.syspath_prepend(str(installed))
    assert trust.find(f"{name}.f", "loss", [name])(0, 0) == 2
    assert str(tmp_path) not in sys.path


def test_an_error_in_a_package_of_ones_own_is_shown_with_its_place(package):
    name = package("\nimport math\n1 / 0\n")
    with pytest.raises(ConfigError, match=rf"{name} raised ZeroDivisionError: .*\({name}|{name}.py, line 3\)"):
        trust.find(f"{name}.f", "loss", [name])


def test_a_package_that_is_nowhere_is_named(package):
    package("")
    with pytest.raises(ConfigError, match=r"trust=\[nowhere_at_all\]: there is no such package"):
        trust.find("nowhere_at_all.f", "loss", ["nowhere_at_all"])


@pytest.mark.parametrize(
    "name", ["os", "os.path", "subprocess", "builtins", "keras", "tensorflow.io", "losses", "trainer", "a-b", "", "a..b", 3]
)
def test_only_packages_of_ones_own_can_be_trusted(name):
    with pytest.raises(ConfigError, match="trust="):
        trust.check_trusted([name])


def test_a_losses_package_of_the_current_folder_is_noticed(tmp_path, monkeypatch):
    trust.check_packages()
    monkeypatch.delitem(sys.modules, "losses", raising=False)
    (tmp_path / "losses.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"losses of this program is hidden: Python finds .*losses\.py"):
        trust.check_packages()
