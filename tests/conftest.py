"""Two logical CPUs for every test: replicas need them, and TensorFlow divides the CPU only before it starts."""

import tensorflow as tf

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
