"""Emotion relative to how a participant has sounded so far.

Absolute values move with voice, microphone and room, which stay the same while a participant speaks. What stays the
same is in the mean of the earlier utterances too, and drops out of the difference.
"""

from dataclasses import dataclass, field

from kibun.client.estimates import Emotion


@dataclass(frozen=True)
class RelativeEmotion:
    """An utterance's valence and arousal minus the mean of the participant's earlier ones: 0 is as usual.

    On the scale's units, so from -4 to 4, seldom beyond -2 to 2.
    """

    valence: float
    arousal: float
    # Earlier utterances behind the mean: with few of them it moves much itself.
    utterance_count: int


@dataclass
class SpeakerBaseline:
    """Remembers the mean emotion of each participant. Causal: an utterance counts from the next one on.

        baseline = SpeakerBaseline()
        async for event in stream:
            if isinstance(event, UtteranceResult) and event.is_final and event.emotion is not None:
                relative = baseline.add("customer", event.emotion)

    Add finals only, each once; interims are compared. Not for several threads at once.
    """

    # Earlier utterances needed before there is anything to compare with.
    min_utterances: int = 3
    _sums: dict[str, tuple[int, float, float]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.min_utterances < 1:
            raise ValueError(f"min_utterances is {self.min_utterances}, it has to be 1 or more")

    def add(self, participant_id: str, emotion: Emotion) -> RelativeEmotion | None:
        """The emotion of a participant's next utterance, relative to the earlier ones; None while these are too few."""
        count, valence, arousal = self._sums.get(participant_id, (0, 0.0, 0.0))
        relative = self.compare(participant_id, emotion)
        self._sums[participant_id] = (count + 1, valence + emotion.valence, arousal + emotion.arousal)
        return relative

    def compare(self, participant_id: str, emotion: Emotion) -> RelativeEmotion | None:
        """As `add`, of an emotion that does not count from then on: that of an interim."""
        count, valence, arousal = self._sums.get(participant_id, (0, 0.0, 0.0))
        if count < self.min_utterances:
            return None
        return RelativeEmotion(emotion.valence - valence / count, emotion.arousal - arousal / count, count)
