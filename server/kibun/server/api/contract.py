"""The contract's limits, and its names for what the server's own types name otherwise."""

from __future__ import annotations

from collections.abc import Mapping

from kibun.server.audio.decoder import Encoding
from kibun.server.audio.endpointing import EndReason
from kibun.v1 import speech_analysis_pb2 as pb

MAX_AUDIO_CONTENT_BYTES = 256 * 1024  # of one message of a stream
MAX_ANALYZE_BYTES = 4 * 1024 * 1024  # of one recording; every admitted call may hold one in memory
MAX_RESUME_FINALS = 1024
MAX_RESUME_FINAL_COUNT = 2**30
MAX_REQUEST_BYTES = 512 * 1024  # of any message, its audio not counted; 1,024 finals with long ids have 400 kB
MIN_TTL_S, MAX_TTL_S = 1.0, 24 * 3600.0

ENCODINGS: Mapping[pb.AudioEncoding, Encoding] = {
    pb.AUDIO_ENCODING_LINEAR16: "linear16",
    pb.AUDIO_ENCODING_FLOAT32: "float32",
    pb.AUDIO_ENCODING_MULAW: "mulaw",
    pb.AUDIO_ENCODING_ALAW: "alaw",
}
END_REASONS = {
    EndReason.SILENCE: pb.END_REASON_SILENCE,
    EndReason.MAX_DURATION: pb.END_REASON_MAX_DURATION,
    EndReason.CLIENT_END_OF_TURN: pb.END_REASON_CLIENT_END_OF_TURN,
    EndReason.HALF_CLOSE: pb.END_REASON_HALF_CLOSE,
}
# Durations of EndpointingConfig: fields of EndpointingOptions.
ENDPOINTING_MS = {
    "min_speech_duration": "min_speech_ms",
    "utterance_end_silence": "utterance_end_silence_ms",
    "max_utterance_duration": "max_utterance_ms",
    "end_of_turn_silence": "end_of_turn_silence_ms",
    "speech_start_timeout": "speech_start_timeout_ms",
}
