"""What the service says of itself."""

from dataclasses import replace

from kibun.server.api.responses import service_info
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.inference.backend import ModelInfo
from kibun.server.session.events import Limits

MODEL = ModelInfo("m", "1", 4, precision="bfloat16: 1.9 times as fast here", checksum="ab" * 32)


def fingerprint(model: ModelInfo = MODEL, vad: str = "silero", **endpointing: int) -> str:
    info = service_info(
        [model], EndpointingOptions(**endpointing), Limits(), vad=vad, max_streams=1, active_streams=0, now=0.0
    )
    return info.models[0].fingerprint


def test_a_models_fingerprint_changes_with_all_that_its_estimates_depend_on() -> None:
    different = [
        fingerprint(),
        fingerprint(replace(MODEL, checksum="cd" * 32)),
        fingerprint(replace(MODEL, version="2")),
        fingerprint(replace(MODEL, precision="float32, as asked for")),
        fingerprint(vad="webrtc"),
        fingerprint(utterance_end_silence_ms=400),
    ]
    assert len(set(different)) == len(different)
    assert all(different)


def test_and_with_nothing_else() -> None:
    assert fingerprint(replace(MODEL, precision="bfloat16: 2.3 times as fast here")) == fingerprint()
    assert fingerprint(replace(MODEL, precision="float32: too small", license="MIT")) == fingerprint(
        replace(MODEL, precision="float32, as asked for")
    )
