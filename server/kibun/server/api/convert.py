"""Messages of `kibun.v1` to domain values and back. With `service`, all that knows the contract."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kibun.models.types import SAMPLE_RATE_HZ, TRAITS, Traits
from kibun.server.audio.decoder import AudioError, AudioFormat, Encoding
from kibun.server.audio.endpointing import EndpointingError, EndpointingOptions, EndReason
from kibun.server.conversation.state import Conversation
from kibun.server.errors import Failure, Kind, invalid
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import capability, estimates, events
from kibun.v1 import speech_analysis_pb2 as pb

NANOS_PER_SAMPLE = 62_500  # 1 / 16 kHz: every position is an exact Duration
ENCODINGS: Mapping[pb.AudioEncoding, Encoding] = {
    pb.AUDIO_ENCODING_LINEAR16: "linear16",
    pb.AUDIO_ENCODING_FLOAT32: "float32",
    pb.AUDIO_ENCODING_MULAW: "mulaw",
    pb.AUDIO_ENCODING_ALAW: "alaw",
}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_MAX_OFFSET_S = 7 * 24 * 3600.0
MIN_TTL_S, MAX_TTL_S = 1.0, 24 * 3600.0
_INTERIM_RANGE_S = (0.2, 60.0)

_END_REASONS = {
    EndReason.SILENCE: pb.END_REASON_SILENCE,
    EndReason.MAX_DURATION: pb.END_REASON_MAX_DURATION,
    EndReason.CLIENT_END_OF_TURN: pb.END_REASON_CLIENT_END_OF_TURN,
    EndReason.HALF_CLOSE: pb.END_REASON_HALF_CLOSE,
}
_SOURCES = {
    "given": pb.PERSONALITY_SOURCE_GIVEN,
    "utterance": pb.PERSONALITY_SOURCE_UTTERANCE,
    "average": pb.PERSONALITY_SOURCE_UTTERANCE_AVERAGE,
    "conversation": pb.PERSONALITY_SOURCE_CONVERSATION,
}
_SPEECH = {
    "activity_begin": pb.SpeechEvent.TYPE_SPEECH_ACTIVITY_BEGIN,
    "activity_end": pb.SpeechEvent.TYPE_SPEECH_ACTIVITY_END,
    "turn_start": pb.SpeechEvent.TYPE_START_OF_TURN,
    "turn_end": pb.SpeechEvent.TYPE_END_OF_TURN,
    "no_speech_timeout": pb.SpeechEvent.TYPE_NO_SPEECH_TIMEOUT,
}
# EndpointingConfig's durations and the options that they set.
_ENDPOINTING_MS = {
    "min_speech_duration": "min_speech_ms",
    "utterance_end_silence": "utterance_end_silence_ms",
    "max_utterance_duration": "max_utterance_ms",
    "end_of_turn_silence": "end_of_turn_silence_ms",
    "speech_start_timeout": "speech_start_timeout_ms",
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a server fills in where a config is silent. `models`: the default first."""

    models: tuple[ModelInfo, ...]
    endpointing: EndpointingOptions
    ttl_s: float
    new_id: Callable[[str], str]  # "turn" → "turn-3f…"
    max_ttl_s: float = MAX_TTL_S  # that a client may ask for


# ---- in


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
        require_existing=config.require_existing_conversation,
        given_traits=given,
        start_offset=round(start_offset * SAMPLE_RATE_HZ),
        resumes=config.resume_turn,
        resumes_after=end_reason(config.resume_after, "resume_after"),
        ttl_s=ttl_s,
        ttl_asked=config.HasField("conversation_ttl"),
        warnings=warnings,
    )


def end_reason(value: int, field: str) -> EndReason | None:
    """None when unset."""
    reasons: dict[int, EndReason] = {number: reason for reason, number in _END_REASONS.items()}
    if value and value not in reasons:
        allowed = ", ".join(pb.EndReason.Name(number) for number in reasons)
        raise invalid("UNKNOWN_END_REASON", field, f"{field} must be one of {allowed}; got {value}")
    return reasons.get(value)


def identifier(value: str, field: str) -> str:
    """The id, "" when unset."""
    if value and not _ID.match(value):
        message = "must be 1 to 64 letters, digits, '_', '.' or '-', beginning with a letter or digit"
        raise invalid("INVALID_ID", field, f"{field} {message}")
    return value


def model_named(name: str, models: tuple[ModelInfo, ...]) -> ModelInfo:
    """The model of that name, the default for ""."""
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
    """`max_samples`: the longest utterance that the model takes."""
    values = {name: getattr(default, name) for name in default.__dataclass_fields__}
    longest_ms = max_samples * 1000 // SAMPLE_RATE_HZ if max_samples else default.max_utterance_ms
    values["max_utterance_ms"] = min(default.max_utterance_ms, longest_ms)
    if config.HasField("vad_aggressiveness"):
        values["vad_aggressiveness"] = config.vad_aggressiveness
    for field, option in _ENDPOINTING_MS.items():
        if config.HasField(field):
            name = f"endpointing_config.{field}"
            values[option] = round(1000 * seconds(getattr(config, field), name, (0.0, 3600.0)))
    if max_samples and values["max_utterance_ms"] > longest_ms:
        field = "endpointing_config.max_utterance_duration"
        raise invalid("INVALID_ENDPOINTING", field, f"{field}: this model takes at most {longest_ms / 1000:g} s")
    try:
        return EndpointingOptions(**values)
    except EndpointingError as error:
        names = {option: field for field, option in _ENDPOINTING_MS.items()}
        field = f"endpointing_config.{names.get(error.field, error.field)}"
        raise invalid("INVALID_ENDPOINTING", field, f"{field}: {error} (milliseconds)") from error


def seconds(value: Duration, field: str, allowed: tuple[float, float]) -> float:
    low, high = allowed
    normal = 0 <= value.nanos < 1_000_000_000
    result = value.seconds + value.nanos / 1e9
    if not normal or not low <= result <= high:
        raise invalid("INVALID_DURATION", field, f"{field} must be {low:g} to {high:g} s")
    return result


def traits(value: pb.BigFiveTraits) -> Traits:
    """All five, each 1..7."""
    o, c, e, a, n = (getattr(value, name) for name in TRAITS)
    for name, score in zip(TRAITS, (o, c, e, a, n), strict=True):
        if not 1.0 <= score <= 7.0:  # also refuses NaN
            field = f"given_personality.{name}"
            raise invalid("TRAITS_OUT_OF_RANGE", field, f"{field} must be 1 to 7 (TIPI scale); all five are required")
    return o, c, e, a, n


# ---- out


def duration(samples: int) -> Duration:
    whole, rest = divmod(samples, SAMPLE_RATE_HZ)
    return Duration(seconds=whole, nanos=rest * NANOS_PER_SAMPLE)


def duration_of(value_s: float) -> Duration:
    return duration(round(value_s * SAMPLE_RATE_HZ))


def effective_config(
    config: pb.StreamingAnalyzeConfig, options: events.StreamOptions, started: events.StreamStarted
) -> pb.StreamingAnalyzeConfig:
    """The config as the server understood it: nothing is left to guess."""
    full = pb.StreamingAnalyzeConfig()
    full.CopyFrom(config)
    full.audio_config.audio_channel_count = 1
    full.conversation_id = options.conversation_id
    full.participant_id = options.participant_id
    full.turn_id = options.turn_id
    full.model = options.model
    full.features.disable_emotion = not options.emotion
    full.features.disable_personality = not options.personality
    full.features.SetInParent()
    if started.given_traits is not None:
        full.given_personality.CopyFrom(big_five(started.given_traits))
    full.endpointing_config.CopyFrom(endpointing_config(options.endpointing))
    full.audio_start_offset.CopyFrom(duration(options.start_offset))
    full.conversation_ttl.CopyFrom(duration_of(started.ttl_s))
    return full


def endpointing_config(options: EndpointingOptions) -> pb.EndpointingConfig:
    config = pb.EndpointingConfig(vad_aggressiveness=options.vad_aggressiveness)
    for field, option in _ENDPOINTING_MS.items():
        value = getattr(options, option)
        if value is not None:
            getattr(config, field).CopyFrom(duration(value * SAMPLE_RATE_HZ // 1000))
    return config


def response(
    reply: events.Reply, sequence_number: int, stream: Callable[[events.StreamStarted], pb.StreamStarted]
) -> pb.StreamingAnalyzeResponse:
    """One message; `stream` fills in what only the service knows of `StreamStarted`."""
    message = pb.StreamingAnalyzeResponse(
        sequence_number=sequence_number,
        audio_received=duration(reply.received),
        audio_processed=duration(reply.processed),
    )
    match reply.event:
        case events.StreamStarted() as event:
            message.stream_started.CopyFrom(stream(event))
        case events.SpeechEvent() as event:
            message.speech_event.CopyFrom(
                pb.SpeechEvent(type=_SPEECH[event.type], offset=duration(event.position), turn_id=event.turn_id)
            )
        case events.UtteranceResult() as event:
            message.utterance_result.CopyFrom(utterance(event))
        case events.PersonalityUpdate() as event:
            message.personality_update.CopyFrom(
                pb.PersonalityUpdate(
                    participant_id=event.participant_id,
                    personality=personality(event.personality),
                    revision=event.revision,
                )
            )
        case events.TurnResult() as event:
            message.turn_result.CopyFrom(turn(event))
        case events.StreamWarning() as event:
            message.stream_warning.CopyFrom(warning(event))
        case events.StreamProgress() as event:
            message.stream_progress.settled_offset.CopyFrom(duration(event.settled))
        case events.StreamEnded() as event:
            message.stream_ended.CopyFrom(ended(event))
    return message


def warning(event: events.StreamWarning) -> pb.StreamWarning:
    return pb.StreamWarning(reason=event.reason, message=event.message, metadata=event.metadata)


def utterance(event: events.UtteranceResult) -> pb.UtteranceResult:
    return pb.UtteranceResult(
        utterance_id=event.utterance_id,
        turn_id=event.turn_id,
        is_final=event.is_final,
        start_offset=duration(event.start),
        end_offset=duration(event.end),
        analyzed_duration=duration(event.analyzed),
        emotion=emotion(event.emotion),
        personality=personality(event.personality),
        condition=personality(event.condition),
        end_reason=_END_REASONS[event.reason] if event.reason else pb.END_REASON_UNSPECIFIED,
    )


def turn(event: events.TurnResult) -> pb.TurnResult:
    return pb.TurnResult(
        turn_id=event.turn_id,
        start_offset=duration(event.start),
        end_offset=duration(event.end),
        utterance_count=event.utterance_count,
        speech_duration=duration(event.speech),
        emotion=emotion(event.emotion),
        personality=personality(event.personality),
        end_reason=_END_REASONS[event.reason],
    )


def ended(event: events.StreamEnded) -> pb.StreamEnded:
    return pb.StreamEnded(
        reason=event.reason,
        audio_received=duration(event.received),
        speech_duration=duration(event.speech),
        conversation=conversation(event.conversation, event.model),
        non_speech_duration=duration(event.non_speech),
        dropped_duration=duration(event.dropped),
    )


def emotion(value: events.Emotion | None) -> pb.EmotionEstimate | None:
    return pb.EmotionEstimate(valence=value.valence, arousal=value.arousal) if value else None


def personality(value: events.Personality | None) -> pb.PersonalityEstimate | None:
    if value is None:
        return None
    return pb.PersonalityEstimate(
        traits=big_five(value.traits),
        source=_SOURCES[value.source],
        utterance_count=value.utterance_count,
        speech_duration=duration(value.speech),
        expected_error=big_five(value.expected_error) if value.expected_error else None,
    )


def big_five(value: Traits) -> pb.BigFiveTraits:
    return pb.BigFiveTraits(**dict(zip(TRAITS, value, strict=True)))


def conversation(value: Conversation, model: ModelInfo | None) -> pb.Conversation:
    """`model`: the one the conversation runs on, None when it is not loaded any more."""
    state = pb.Conversation.STATE_COMPLETED if value.completed else pb.Conversation.STATE_ACTIVE
    return pb.Conversation(
        conversation_id=value.conversation_id,
        state=state,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        expire_time=timestamp(value.expire_time),
        participants=[
            pb.Participant(
                participant_id=p.participant_id,
                personality=personality(estimates.of_participant(model, p) or estimates.given(p)),
                mean_emotion=emotion(estimates.mean_emotion(p.records)),
                last_emotion=emotion(estimates.mean_emotion([r for r in p.records if r.emotion][-1:])),
                turn_count=len(p.finished_turns),
                utterance_count=len(p.records),
                speech_duration=duration(p.speech),
                given_personality=big_five(p.given_traits) if p.given_traits else None,
            )
            for p in value.participants.values()
        ],
        model=value.model,
    )


def timestamp(epoch_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(epoch_s * 1e6) * 1000)
    return stamp
