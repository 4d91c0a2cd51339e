"""Recordings into rows, tables, annotations and figures: what `kibun analyze` is made of, and the same from Python.

from kibun.client.recordings import analyze_files
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kibun.client.recordings.frame import AnalysisProgress as AnalysisProgress
    from kibun.client.recordings.frame import analyze_files as analyze_files

__all__ = ("AnalysisProgress", "analyze_files")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kibun.client.recordings' has no attribute {name!r}")
    from kibun.client.recordings import frame

    return getattr(frame, name)
