"""The session's events and conversations to messages of `kibun.v1`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from kibun.models.types import EMOTIONS, SAMPLE_RATE_HZ, TRAITS, Traits
from kibun.server import __version__
from kibun.server.api.contract import ENCODINGS, END_REASONS, ENDPOINTING_MS, MAX_AUDIO_CONTENT_BYTES
from kibun.server.audio.decoder import MAX_SAMPLE_RATE_HZ, MIN_SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.conversation.state import Conversation, Participant
from kibun.server.inference.backend import ModelInfo
from kibun.server.session import capability, estimates, events
from kibun.v1 import speech_analysis_pb2 as pb

NANOS_PER_SAMPLE = 62_500  # 1 / 16 kHz: every position is an exact Duration
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


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What `StreamStarted` reports about a stream beyond the session's event."""

    request_id: str
    config: pb.StreamingAnalyzeConfig  # as the client sent it
    options: events.StreamOptions
    model: ModelInfo
    limits: events.Limits


def response(reply: events.Reply, stream: StreamFacts) -> pb.StreamingAnalyzeResponse:
    """Returns the message for one event of a stream."""
    message = pb.StreamingAnalyzeResponse(
        sequence_number=reply.number,
        audio_received=duration(reply.received),
        audio_processed=duration(reply.processed),
    )
    match reply.event:
        case events.StreamStarted() as event:
            message.stream_started.CopyFrom(stream_started(event, stream))
        case events.SpeechEvent() as event:
            message.speech_event.CopyFrom(
                pb.SpeechEvent(type=_SPEECH[event.type], offset=duration(event.position), turn_id=event.turn_id)
            )
        case events.UtteranceResult() as event:
            message.utterance_result.CopyFrom(utterance(event))
        case events.PersonalityUpdate() as event:
            message.personality_update.CopyFrom(personality_update(event))
        case events.TurnResult() as event:
            message.turn_result.CopyFrom(turn(event))
        case events.StreamWarning() as event:
            message.stream_warning.CopyFrom(warning(event))
        case events.StreamProgress() as event:
            message.stream_progress.settled_offset.CopyFrom(duration(event.settled))
        case events.StreamEnded() as event:
            message.stream_ended.CopyFrom(ended(event))
    return message


def stream_started(event: events.StreamStarted, stream: StreamFacts) -> pb.StreamStarted:
    options = stream.options
    return pb.StreamStarted(
        request_id=stream.request_id,
        conversation_id=options.conversation_id,
        participant_id=options.participant_id,
        turn_id=event.turn_id,
        model=options.model,
        conversation_created=event.created,
        prior_utterance_count=event.prior_utterances,
        effective_config=effective_config(stream.config, options, event),
        max_stream_duration=duration_of(stream.limits.max_stream_s),
        idle_timeout=duration_of(stream.limits.idle_timeout_s),
        max_audio_content_bytes=MAX_AUDIO_CONTENT_BYTES,
        synthetic_model=stream.model.synthetic,
    )


def effective_config(
    config: pb.StreamingAnalyzeConfig, options: events.StreamOptions, started: events.StreamStarted
) -> pb.StreamingAnalyzeConfig:
    """Returns the config with every default filled in, as the server understood it."""
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
    for field, option in ENDPOINTING_MS.items():
        value = getattr(options, option)
        if value is not None:
            getattr(config, field).CopyFrom(duration(value * SAMPLE_RATE_HZ // 1000))
    return config


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
        end_reason=END_REASONS[event.reason] if event.reason else pb.END_REASON_UNSPECIFIED,
        covers_speech_so_far=event.covers_speech_so_far,
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
        end_reason=END_REASONS[event.reason] if event.reason else pb.END_REASON_UNSPECIFIED,
        missing_before=duration(event.missing_before) if event.missing else None,
        missing_utterance_count=event.missing,
    )


def personality_update(event: events.PersonalityUpdate) -> pb.PersonalityUpdate:
    return pb.PersonalityUpdate(
        participant_id=event.participant_id, personality=personality(event.personality), revision=event.revision
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
    worth = value.evidence
    of_mean = worth.error_of_mean if worth else None
    return pb.PersonalityEstimate(
        traits=big_five(value.traits),
        source=_SOURCES[value.source],
        utterance_count=value.utterance_count,
        speech_duration=duration(value.speech),
        expected_error=big_five(worth.error) if worth else None,
        expected_error_of_mean=big_five(of_mean) if of_mean else None,
        condition_weight=big_five(value.weight) if value.weight else None,
    )


def big_five(value: Traits) -> pb.BigFiveTraits:
    return pb.BigFiveTraits(**dict(zip(TRAITS, value, strict=True)))


def conversation(value: Conversation, model: ModelInfo | None) -> pb.Conversation:
    """`model`: the one that the conversation was analysed with, None if it is no longer loaded."""
    state = pb.Conversation.STATE_COMPLETED if value.completed else pb.Conversation.STATE_ACTIVE
    return pb.Conversation(
        conversation_id=value.conversation_id,
        state=state,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        expire_time=timestamp(value.expire_time),
        participants=[participant(p, model) for p in value.participants.values()],
        model=value.model,
        synthetic_model=model is not None and model.synthetic,
    )


def participant(value: Participant, model: ModelInfo | None) -> pb.Participant:
    totals = value.totals
    return pb.Participant(
        participant_id=value.participant_id,
        personality=personality(estimates.last_known(model, value) or estimates.given(value)),
        mean_emotion=emotion(estimates.mean_emotion(totals)),
        last_emotion=emotion(estimates.last_emotion(value)),
        turn_count=value.turn_count,
        utterance_count=totals.utterances,
        speech_duration=duration(totals.speech),
        given_personality=big_five(value.given_traits) if value.given_traits else None,
        missing_utterance_count=totals.missing,
    )


def service_info(
    models: Sequence[ModelInfo],
    endpointing: EndpointingOptions,
    limits: events.Limits,
    *,
    vad: str,
    max_streams: int,
    active_streams: int,
    now: float,
) -> pb.GetServiceInfoResponse:
    """`models`: the default first; `now`: seconds since 1970, by this server's clock."""
    info = pb.GetServiceInfoResponse
    emotion_scales = [info.Scale(dimension=d, min=1, max=5, neutral=3) for d in EMOTIONS]
    trait_scales = [info.Scale(dimension=d, min=1, max=7, neutral=4) for d in TRAITS]
    return info(
        server_version=__version__,
        models=[
            info.Model(
                name=m.name,
                version=m.version,
                is_default=m is models[0],
                supports_emotion=m.supports_emotion,
                supports_personality=m.supports_personality,
                supports_conversation_personality=m.supports_conversation_personality,
                synthetic=m.synthetic,
                requires_given_personality=m.requires_given_traits,
                notice=capability.notice(m),
                license=m.license,
                untrained=not m.trained,
                fingerprint=_fingerprint(m, endpointing, vad),
            )
            for m in models
        ],
        scales=emotion_scales + trait_scales,
        audio_encodings=list(ENCODINGS),
        min_sample_rate_hertz=MIN_SAMPLE_RATE_HZ,
        max_sample_rate_hertz=MAX_SAMPLE_RATE_HZ,
        model_sample_rate_hertz=SAMPLE_RATE_HZ,
        max_audio_content_bytes=MAX_AUDIO_CONTENT_BYTES,
        max_stream_duration=duration_of(limits.max_stream_s),
        idle_timeout=duration_of(limits.idle_timeout_s),
        max_concurrent_streams=max_streams,
        active_stream_count=active_streams,
        default_endpointing_config=endpointing_config(endpointing),
        server_time=timestamp(now),
    )


def _fingerprint(model: ModelInfo, endpointing: EndpointingOptions, vad: str) -> str:
    precision = model.precision.partition(":")[0].partition(",")[0]  # without why, which has timings
    made_by = (__version__, model.name, model.version, model.bundle, precision, vad, asdict(endpointing))
    return hashlib.sha256(json.dumps(made_by).encode()).hexdigest()[:16]


def duration(samples: int) -> Duration:
    """Exact for any number of samples at 16 kHz."""
    whole, rest = divmod(samples, SAMPLE_RATE_HZ)
    return Duration(seconds=whole, nanos=rest * NANOS_PER_SAMPLE)


def duration_of(value_s: float) -> Duration:
    return duration(round(value_s * SAMPLE_RATE_HZ))


def timestamp(epoch_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(epoch_s * 1e6) * 1000)
    return stamp
