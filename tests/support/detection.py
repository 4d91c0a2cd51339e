"""What tests of voice activity detection and of the segmenter share."""

from kibun.server.audio.endpointing import SegmenterEvent, SpeechSegment


def moved(events: list[SegmenterEvent], shift: int = 0) -> list[tuple[object, ...]]:
    """Events as comparable tuples, moved by `shift` samples."""
    return [
        (e.start + shift, e.end + shift, e.audio.tobytes(), e.speech_samples, e.reason)
        if isinstance(e, SpeechSegment)
        else (type(e), e.position + shift)
        for e in events
    ]
