"""Two logical CPUs for every test: replicas need them, and TensorFlow divides the CPU only before it starts."""

import gc

import pytest
import tensorflow as tf

from losses import modes
from losses.proof import evaluation, second

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True, scope="module")
def _nothing_kept():
    """What a module has traced is let go: the garbage collector would look through all of it, ever more slowly."""
    yield
    for function in (modes._function, evaluation._function, second._function):
        function.cache_clear()
    gc.collect()
    gc.freeze()
