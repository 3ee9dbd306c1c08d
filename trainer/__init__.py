"""Trains Keras models with losses whose gradient can be chosen."""

__version__ = "0.1.0"
