"""The streaming analysis service: audio in, emotion and personality out."""

from importlib.metadata import version

__version__ = version("kibun")
