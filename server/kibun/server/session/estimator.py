"""Runs the model on the speech of one stream, and makes results of what it estimates."""

from __future__ import annotations

from dataclasses import dataclass

from kibun.models.types import Analysis, Utterance
from kibun.server.audio.endpointing import EndReason, SpeechSegment
from kibun.server.conversation.state import Participant, UtteranceRecord
from kibun.server.errors import RETRY_AFTER_S, Failure, Kind
from kibun.server.inference.backend import Analyzer, BackendError, Job, ModelInfo, Urgency
from kibun.server.session import estimates
from kibun.server.session.events import PersonalityUpdate, StreamOptions, TurnResult, UtteranceResult

FINAL_DEADLINE_S = 1.0
INTERIM_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Eager:
    """The job of an utterance that may have ended: samples [start, end) of the stream."""

    start: int
    end: int
    job: Job


class Estimator:
    """One stream's way to its model. `request_id` identifies the stream to the analyzer."""

    def __init__(self, request_id: str, options: StreamOptions, model: ModelInfo, analyzer: Analyzer) -> None:
        self._request_id = request_id
        self._options = options
        self._model = model
        self._analyzer = analyzer
        self._eager: _Eager | None = None

    @property
    def full(self) -> bool:
        """Whether the machine is needed for finals, so that nothing else should be asked for."""
        return self._analyzer.full

    @property
    def interim_stretch(self) -> float:
        """How many times further apart interims should be than on an idle server, >= 1."""
        return self._analyzer.stretch

    def can_analyze(self, segment: SpeechSegment) -> bool:
        """Whether the segment is long enough for the model."""
        return len(segment.audio) >= self._model.min_samples

    async def interim(self, segment: SpeechSegment, known: Participant) -> Analysis:
        """Analyses what was said so far with what is known of the participant. Raises as `final`, and Superseded."""
        return await self._submit(Job(self._model.name, self._utterance(segment, known)), "interim")

    async def eager(self, segment: SpeechSegment, known: Participant) -> Analysis:
        """Analyses an utterance that may have ended, so that `final` has the answer. Raises as `interim`."""
        job = Job(self._model.name, self._utterance(segment, known))
        self._eager = _Eager(segment.start, segment.end, job)
        return await self._submit(job, "eager")

    def forget_eager(self) -> bool:
        """Forgets what `eager` analyses: its speaker went on, or it failed. False: there is nothing to forget."""
        known, self._eager = self._eager is not None, None
        return known

    async def final(self, segment: SpeechSegment, known: Participant) -> tuple[Analysis, bool | None]:
        """Analyses a segment with what is known of the participant.

        Also whether that is the answer of `eager`, of the very same samples and knowledge; None if it had none of these
        samples. The analysis is the same either way.

        Raises Failure UNAVAILABLE if another server should do it, and BackendError.
        """
        job = Job(self._model.name, self._utterance(segment, known))
        eager, self._eager = self._eager, None
        tried = eager is not None and (eager.start, eager.end) == (segment.start, segment.end)
        if eager is not None and tried and _same_condition(eager.job.utterance, job.utterance):
            return await self._submit(eager.job, "final"), True
        return await self._submit(job, "final"), False if tried else None

    def _utterance(self, segment: SpeechSegment, known: Participant) -> Utterance:
        return Utterance(
            audio=segment.audio,
            history=estimates.history(self._model, known),
            given_traits=known.given_traits,
            emotion=self._options.emotion,
            personality=self._model.supports_personality,  # even if the client wants none: emotion is conditioned on it
        )

    async def _submit(self, job: Job, urgency: Urgency) -> Analysis:
        deadline_s = INTERIM_DEADLINE_S if urgency == "interim" else FINAL_DEADLINE_S
        try:
            return await self._analyzer.submit(job, stream_id=self._request_id, urgency=urgency, deadline_s=deadline_s)
        except BackendError as error:
            if error.reason == "UNAVAILABLE":
                message = "the server is stopping; resume the turn on another connection"
                raise Failure(Kind.UNAVAILABLE, "DRAINING", message, retry_after_s=RETRY_AFTER_S) from error
            if error.reason == "NO_WORKER":
                message = "this server cannot analyse for now; resume the turn on another connection"
                raise Failure(Kind.UNAVAILABLE, "NO_WORKER", message, retry_after_s=RETRY_AFTER_S) from error
            raise

    def utterance_result(
        self, segment: SpeechSegment, turn_id: str, analysis: Analysis | None, known: Participant, *, is_final: bool
    ) -> UtteranceResult:
        """The result of a segment. `analysis`: None if the segment was too short; `known`: what it rested on."""
        options, model, n = self._options, self._model, len(segment.audio)
        start = segment.start + options.start_offset
        return UtteranceResult(
            utterance_id=f"{options.participant_id}:{turn_id}:{start}",
            turn_id=turn_id,
            is_final=is_final,
            start=start,
            end=segment.end + options.start_offset,
            analyzed=n if analysis else 0,
            emotion=estimates.emotion(analysis) if analysis else None,
            personality=estimates.of_utterance(model, analysis, n) if analysis and options.personality else None,
            condition=estimates.condition(model, analysis, known, n) if analysis and options.emotion else None,
            reason=segment.reason if is_final else None,
        )

    def record_of(self, final: UtteranceResult, analysis: Analysis | None) -> UtteranceRecord:
        """What the conversation stores of a final."""
        assert final.reason is not None  # a final has one
        if not self._options.counts_for_traits:
            analysis = None  # no vector and no traits, as of what only the client remembers after a loss
        traits, source = estimates.conversation_traits(analysis) if analysis else (None, "average")
        return UtteranceRecord(
            utterance_id=final.utterance_id,
            turn_id=final.turn_id,
            start=final.start,
            end=final.end,
            speech=final.analyzed,
            vector=analysis.vector if analysis else None,
            emotion=(final.emotion.valence, final.emotion.arousal) if final.emotion else None,
            traits=traits,
            traits_source=source,
            reason=final.reason,
            bundle=self._model.bundle if analysis else "",
        )

    def personality_update(self, record: UtteranceRecord, participant: Participant) -> PersonalityUpdate | None:
        """The participant's traits after `record`; None if it changed none, or the client wants none."""
        personality = estimates.of_participant(self._model, participant)
        if not self._options.personality or record.traits is None or personality is None:
            return None
        return PersonalityUpdate(self._options.participant_id, personality, participant.revision)

    def turn_result(self, turn_id: str, reason: EndReason, position: int, participant: Participant) -> TurnResult:
        """All utterances of the turn taken together, including those of a stream that this one resumed.

        `position`: where the turn ended, in samples of this stream; the start and end of a turn without utterances.
        """
        turn = participant.turn(turn_id)
        position += self._options.start_offset
        return TurnResult(
            turn_id=turn_id,
            start=position if turn.start is None else turn.start,
            end=position if turn.end is None else turn.end,
            utterance_count=turn.totals.utterances,
            speech=turn.totals.speech,
            emotion=estimates.mean_emotion(turn.totals) if self._options.emotion else None,
            personality=estimates.of_participant(self._model, participant) if self._options.personality else None,
            reason=reason,
            missing=turn.totals.missing,
            missing_before=turn.missing_before,
        )


def _same_condition(one: Utterance, other: Utterance) -> bool:
    """Whether two utterances of the same audio and options rest on the same knowledge of their speaker, to the bit."""
    return one.given_traits == other.given_traits and one.history.tobytes() == other.history.tobytes()
