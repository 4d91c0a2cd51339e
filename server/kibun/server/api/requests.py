"""Messages of `kibun.v1` to the session's requests and options, checked on the way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kibun.models.types import SAMPLE_RATE_HZ, TRAITS, Traits
from kibun.server.api.contract import (
    ENCODINGS,
    END_REASONS,
    ENDPOINTING_MS,
    MAX_ANALYZE_BYTES,
    MAX_AUDIO_CONTENT_BYTES,
    MAX_RESUME_FINAL_COUNT,
    MAX_RESUME_FINALS,
    MIN_TTL_S,
)
from kibun.server.api.messages import checked
from kibun.server.api.quota import Account
from kibun.server.audio.decoder import AudioError, AudioFormat
from kibun.server.audio.endpointing import EndpointingError, EndpointingOptions, EndReason
from kibun.server.conversation.state import NOTHING_TOLD, Told, UtteranceRecord
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import capability, events
from kibun.server.session.conversation_handle import MAX_GAP
from kibun.v1 import speech_analysis_pb2 as pb

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
NANOS = 1_000_000_000  # in a second
_MAX_OFFSET_S = 7 * 24 * 3600.0
_INTERIM_RANGE_S = (0.2, 60.0)
_TIMESTAMPS_S = (-62_135_596_800, 253_402_300_799)  # 0001-01-01 to 9999-12-31, as google.protobuf.Timestamp says


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a server fills in for unset fields of a config, and the longest TTL it allows."""

    models: tuple[ModelInfo, ...]  # the default first
    endpointing: EndpointingOptions
    ttl_s: float
    new_id: Callable[[str], str]  # "turn" → "turn-3f…"
    max_ttl_s: float


# ---- configs


def stream_options(config: pb.StreamingAnalyzeConfig, *, tenant: str, defaults: Defaults) -> events.StreamOptions:
    """Checks a config and fills in its defaults.

    Raises Failure INVALID_ARGUMENT naming the field and what is allowed, NOT_FOUND for a model not served here.
    """
    features = config.features
    interval = None
    if features.HasField("interim_interval"):
        field = "features.interim_interval"
        interval = round(seconds(features.interim_interval, field, _INTERIM_RANGE_S) * SAMPLE_RATE_HZ)
    start_offset = seconds(config.audio_start_offset, "audio_start_offset", (0.0, _MAX_OFFSET_S))
    check_timestamp(config.audio_start_time, "audio_start_time")
    ttl_s = defaults.ttl_s
    if config.HasField("conversation_ttl"):
        ttl_s = seconds(config.conversation_ttl, "conversation_ttl", (MIN_TTL_S, defaults.max_ttl_s))
    given = traits(config.given_personality) if config.HasField("given_personality") else None
    model = model_named(config.model, defaults.models)
    emotion, personality, warnings = capability.resolve_features(
        model,
        defaults.models,
        emotion=not features.disable_emotion,
        personality=not features.disable_personality,
        given=given,
    )
    return events.StreamOptions(
        tenant=tenant,
        conversation_id=identifier(config.conversation_id, "conversation_id") or defaults.new_id("conversation"),
        participant_id=identifier(config.participant_id, "participant_id") or "user",
        turn_id=identifier(config.turn_id, "turn_id") or defaults.new_id("turn"),
        model=model.name,
        audio=audio_format(config),
        endpointing=endpointing(config.endpointing_config, defaults.endpointing, model.max_samples),
        emotion=emotion,
        personality=personality,
        interims=features.interim_results,
        interim_interval=interval,
        voice_activity_events=features.enable_voice_activity_events,
        eager=not features.disable_eager_finals,
        counts_for_traits=not features.exclude_from_personality,
        require_existing=config.require_existing_conversation,
        given_traits=given,
        start_offset=round(start_offset * SAMPLE_RATE_HZ),
        resumes=config.resume_turn,
        resumes_after=end_reason(config.resume_after, "resume_after"),
        told=told(config, round(start_offset * SAMPLE_RATE_HZ)) if config.resume_turn else NOTHING_TOLD,
        ttl_s=ttl_s,
        ttl_asked=config.HasField("conversation_ttl"),
        warnings=warnings,
    )


def end_reason(value: int, field: str) -> EndReason | None:
    """Returns None when unset. Raises Failure INVALID_ARGUMENT."""
    reasons: dict[int, EndReason] = {number: reason for reason, number in END_REASONS.items()}
    if value and value not in reasons:
        allowed = ", ".join(pb.EndReason.Name(number) for number in reasons)
        raise invalid("UNKNOWN_END_REASON", field, f"{field} must be one of {allowed}; got {value}")
    return reasons.get(value)


def told(config: pb.StreamingAnalyzeConfig, start_offset: int) -> Told:
    """What the client has of the turn that it resumes at sample `start_offset`. Raises Failure INVALID_ARGUMENT."""
    count = config.resume_final_count if config.HasField("resume_final_count") else None
    if count is not None and not 0 <= count <= MAX_RESUME_FINAL_COUNT:
        text = f"resume_final_count must be 0 to {MAX_RESUME_FINAL_COUNT}"
        raise invalid("INVALID_RESUME", "resume_final_count", text)
    if len(config.resume_finals) > MAX_RESUME_FINALS:
        text = f"resume_finals may hold the latest {MAX_RESUME_FINALS} finals, not {len(config.resume_finals)}"
        raise invalid("INVALID_RESUME", "resume_finals", text)
    finals = list[UtteranceRecord]()
    for number, final in enumerate(config.resume_finals):
        field = f"resume_finals[{number}]"
        start, end, speech = (
            round(SAMPLE_RATE_HZ * seconds(getattr(final, name), f"{field}.{name}", (0.0, _MAX_OFFSET_S)))
            for name in ("start_offset", "end_offset", "analyzed_duration")
        )
        if not (finals[-1].end if finals else 0) <= start < end <= start_offset + MAX_GAP or speech > end - start:
            text = "finals must be in order, not overlap, end by audio_start_offset, and be analysed within their span"
            raise invalid("INVALID_RESUME", field, f"{field}: {text}")
        emotion = (final.emotion.valence, final.emotion.arousal) if final.HasField("emotion") else None
        if not all(1.0 <= value <= 5.0 for value in emotion or ()):  # also refuses NaN
            raise invalid("INVALID_RESUME", f"{field}.emotion", f"{field}.emotion must be 1 to 5 each")
        reason = end_reason(final.end_reason, f"{field}.end_reason") or EndReason.SILENCE
        turn_id, participant_id = config.turn_id, config.participant_id or "user"
        utterance_id = f"{participant_id}:{turn_id}:{start}"
        finals.append(
            UtteranceRecord(utterance_id, turn_id, start, end, speech, None, emotion, None, "average", reason)
        )
    return Told(tuple(finals), count)


def identifier(value: str, field: str) -> str:
    """Returns the id, "" when unset. Raises Failure INVALID_ARGUMENT."""
    if value and not _ID.match(value):
        message = "must be 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or digit"
        raise invalid("INVALID_ID", field, f"{field} {message}")
    return value


def model_named(name: str, models: tuple[ModelInfo, ...]) -> ModelInfo:
    """Returns the model of that name, the default for "". Raises Failure NOT_FOUND."""
    for model in models:
        if name in ("", model.name):
            return model
    served = ", ".join(m.name for m in models)
    raise Failure(Kind.NOT_FOUND, "UNKNOWN_MODEL", f"this server has no such model; it serves: {served}")


def audio_format(config: pb.StreamingAnalyzeConfig) -> AudioFormat:
    if not config.HasField("audio_config"):
        raise invalid(
            "AUDIO_CONFIG_REQUIRED", "audio_config", "audio_config is required: encoding and sample_rate_hertz"
        )
    audio = config.audio_config
    encoding = ENCODINGS.get(audio.encoding)
    if encoding is None:
        allowed = ", ".join(pb.AudioEncoding.Name(value) for value in ENCODINGS)
        message = f"encoding must be one of {allowed}; got {audio.encoding}"
        raise invalid("UNSUPPORTED_ENCODING", "audio_config.encoding", message)
    try:
        return AudioFormat(encoding, audio.sample_rate_hertz, audio.audio_channel_count or 1)
    except AudioError as error:
        raise invalid(error.reason, error.field, str(error)) from error


def endpointing(
    config: pb.EndpointingConfig, default: EndpointingOptions, max_samples: int | None
) -> EndpointingOptions:
    """Returns the options; `max_samples` is the longest utterance that the model takes. Raises Failure."""
    values = {name: getattr(default, name) for name in default.__dataclass_fields__}
    longest_ms = max_samples * 1000 // SAMPLE_RATE_HZ if max_samples else default.max_utterance_ms
    values["max_utterance_ms"] = min(default.max_utterance_ms, longest_ms)
    if config.HasField("vad_aggressiveness"):
        values["vad_aggressiveness"] = config.vad_aggressiveness
    for field, option in ENDPOINTING_MS.items():
        if config.HasField(field):
            name = f"endpointing_config.{field}"
            values[option] = round(1000 * seconds(getattr(config, field), name, (0.0, 3600.0)))
    if max_samples and values["max_utterance_ms"] > longest_ms:
        field = "endpointing_config.max_utterance_duration"
        raise invalid("INVALID_ENDPOINTING", field, f"{field}: this model takes at most {longest_ms / 1000:g} s")
    try:
        return EndpointingOptions(**values)
    except EndpointingError as error:
        names = {option: field for field, option in ENDPOINTING_MS.items()}
        field = f"endpointing_config.{names.get(error.field, error.field)}"
        raise invalid("INVALID_ENDPOINTING", field, f"{field}: {error} (milliseconds)") from error


def seconds(value: Duration, field: str, allowed: tuple[float, float]) -> float:
    low, high = allowed
    result = value.seconds + value.nanos / 1e9
    if not 0 <= value.nanos < NANOS or not low <= result <= high:
        raise invalid("INVALID_DURATION", field, f"{field} must be {low:g} to {high:g} s")
    return result


def check_timestamp(value: Timestamp, field: str) -> None:
    """Raises Failure INVALID_ARGUMENT for what is no time, or one that other languages cannot read."""
    low, high = _TIMESTAMPS_S
    if not low <= value.seconds <= high or not 0 <= value.nanos < NANOS:
        text = f"{field} must be a time from 0001-01-01 to 9999-12-31, with nanos of 0 to {NANOS - 1}"
        raise invalid("INVALID_TIMESTAMP", field, text)


def traits(value: pb.BigFiveTraits) -> Traits:
    """Returns all five, each 1..7. Raises Failure INVALID_ARGUMENT."""
    o, c, e, a, n = (getattr(value, name) for name in TRAITS)
    for name, score in zip(TRAITS, (o, c, e, a, n), strict=True):
        if not 1.0 <= score <= 7.0:  # also refuses NaN
            field = f"given_personality.{name}"
            raise invalid("TRAITS_OUT_OF_RANGE", field, f"{field} must be 1 to 7 (TIPI scale); all five are required")
    return o, c, e, a, n


# ---- requests


async def session_requests(
    requests: AsyncIterator[Any], options: events.StreamOptions, account: Account
) -> AsyncIterator[events.Request]:
    """Yields what follows the config of a stream, charged to the tenant's account.

    Raises Failure INVALID_ARGUMENT; a message that is over the tenant's limit becomes `events.Refused`.
    """
    async for message in requests:
        kind = checked(message).WhichOneof("streaming_request")
        payload = message.audio_content
        if failure := account.charge(audio_seconds(payload, options)):
            yield events.Refused(failure)
            return
        match kind:
            case "audio_content":
                if len(payload) > MAX_AUDIO_CONTENT_BYTES:
                    text = f"audio_content may hold {MAX_AUDIO_CONTENT_BYTES} bytes, not {len(payload)}; split it"
                    raise invalid("AUDIO_CONTENT_TOO_LARGE", "audio_content", text)
                yield events.Audio(payload)
            case "end_of_turn":
                field = "end_of_turn.next_turn_id"
                yield events.EndOfTurn(identifier(message.end_of_turn.next_turn_id, field))
            case "streaming_config":
                text = "streaming_config goes first and once; open another stream for another config"
                raise invalid("CONFIG_REPEATED", "streaming_config", text)
            case _:
                raise _empty_request()


async def recording_requests(payload: bytes) -> AsyncIterator[events.Request]:
    """Yields a whole recording in pieces, and lets other calls run in between."""
    for begin in range(0, len(payload), MAX_AUDIO_CONTENT_BYTES):
        yield events.Audio(payload[begin : begin + MAX_AUDIO_CONTENT_BYTES])
        await asyncio.sleep(0)


def audio_seconds(payload: bytes, options: events.StreamOptions) -> float:
    return len(payload) / (options.audio.sample_bytes * options.audio.sample_rate_hz)


def config_of(message: pb.StreamingAnalyzeRequest | None) -> pb.StreamingAnalyzeConfig:
    """Returns the config that the first message of a stream must hold. Raises Failure INVALID_ARGUMENT."""
    if message is None:
        raise invalid("EMPTY_STREAM", "streaming_request", "the stream was empty; send streaming_config first")
    kind = message.WhichOneof("streaming_request")
    if kind is None:
        raise _empty_request()
    if kind != "streaming_config":
        raise invalid("CONFIG_REQUIRED_FIRST", "streaming_request", f"send streaming_config before {kind}")
    return message.streaming_config


def to_keep(config: pb.StreamingAnalyzeConfig) -> pb.StreamingAnalyzeConfig:
    """Returns what a stream keeps of its config; a copy, as a protobuf's memory also holds what was cleared from it."""
    config.ClearField("resume_finals")
    kept = pb.StreamingAnalyzeConfig()
    kept.CopyFrom(config)
    return kept


def check_recording(request: pb.AnalyzeRequest) -> None:
    """Raises Failure INVALID_ARGUMENT for what `Analyze` does not take, beyond what `stream_options` checks."""
    if not request.HasField("config"):
        raise invalid("CONFIG_REQUIRED_FIRST", "config", "config is required")
    if not 0 < len(request.audio_content) <= MAX_ANALYZE_BYTES:
        text = f"audio_content must hold 1 to {MAX_ANALYZE_BYTES} bytes; stream longer audio"
        raise invalid("AUDIO_CONTENT_SIZE", "audio_content", text)
    if request.config.endpointing_config.HasField("end_of_turn_silence"):
        field = "endpointing_config.end_of_turn_silence"
        raise invalid("INVALID_ENDPOINTING", field, "Analyze takes one turn; stream audio of several")


def conversation_key(request: Any, tenant: str) -> tuple[str, str]:
    """Returns the key of the conversation that a request names. Raises Failure INVALID_ARGUMENT."""
    if not request.conversation_id:
        raise invalid("INVALID_ID", "conversation_id", "conversation_id is required")
    return tenant, identifier(request.conversation_id, "conversation_id")


def _empty_request() -> Failure:
    text = "set one of streaming_config, audio_content, end_of_turn"
    return invalid("EMPTY_REQUEST", "streaming_request", text)
