"""What the import of TensorFlow and Keras leaves behind, each in a process of its own: here they are imported already."""

import gc
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import trainer
from trainer.imports import lean


def run(code: str, *arguments: str) -> str:
    """The last line that the code prints."""
    folder = Path(trainer.__file__).parents[1]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True).stdout.splitlines()[-1]


def test_nothing_changes_where_tensorflow_is_imported_already():
    before = list(sys.meta_path)
    # Calls, not counts: what other tests have left frozen may die meanwhile.
    with mock.patch.object(gc, "freeze") as freeze, mock.patch.object(gc, "disable") as disable:
        with lean():
            assert gc.isenabled()
            assert sys.meta_path == before
        assert not freeze.called
        assert not disable.called


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "absent"),
    [
        ([], ["sklearn", "scipy.special", "statsmodels", "matplotlib"]),
        (["data=randhie", "loss=poisson_nll"], ["sklearn", "scipy.special", "statsmodels", "matplotlib"]),
    ],
)
def test_a_run_imports_nothing_that_it_does_not_need(tmp_path, overrides, absent):
    code = (
        "import sys\nfrom trainer.cli import main\n"
        "assert main([*sys.argv[1:], 'trainer.steps=1', 'trainer.compile=graph']) == 0\n"
        f"print([name for name in {absent} if name in sys.modules])"
    )
    assert run(code, f"hydra.run.dir={tmp_path / 'run'}", *overrides) == "[]"


@pytest.mark.slow
def test_what_is_deferred_is_there_when_it_is_used():
    code = (
        "import gc, sys\nfrom trainer.imports import lean\n"
        "first = sys.meta_path[0]\n"
        "with lean():\n    import keras\n    assert not gc.isenabled()\n"
        "assert gc.isenabled() and sys.meta_path[0] is first\n"
        "assert 'sklearn' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "import sklearn.base\n"  # a user's own import, before and beside Keras'
        "model = keras.wrappers.SKLearnRegressor(lambda X, y: keras.Sequential())\n"
        "assert isinstance(model, sklearn.base.RegressorMixin)\n"
        "from keras.visualization import plot_image_gallery\n"
        "import matplotlib.pyplot\n"
        "assert sys.modules['keras.src.visualization.plot_image_gallery'].plt is matplotlib.pyplot\n"
        "assert keras.visualization.plot_image_gallery is plot_image_gallery\n"
        "print('all there')"
    )
    assert run(code) == "all there"


@pytest.mark.slow
def test_a_failed_import_leaves_nothing_behind():
    code = (
        "import gc, sys\nfrom trainer.imports import lean\n"
        "before = list(sys.meta_path)\n"
        "try:\n    with lean():\n        import nothing_of_this_name\n"
        "except ImportError:\n    pass\n"
        "print(gc.isenabled(), sys.meta_path == before, gc.get_freeze_count())"
    )
    assert run(code) == "True True 0"
