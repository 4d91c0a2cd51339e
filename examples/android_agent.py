"""A robot that reacts to how its user speaks: a small dialogue manager on kibun's SDK.

    kibun serve --model demo-tiny --vad webrtc &     # the demo's voices are generated, and Silero misses parts of them
    python examples/android_agent.py --server 127.0.0.1:50051

plays a recorded dialogue (by default the one that comes with kibun) as if it were happening, and prints what the
robot's face and voice should do, one JSON object per line:

- `expression`, at once, from the emotion of the user's utterance: valence and arousal, -1..1, for the face;
- `speaking_style`, slowly, from the user's apparent traits: how much and how the robot speaks;
- `own_speech`: the robot talked, and nothing of it was sent.

What belongs to the robot stays with the robot: kibun estimates, this file decides. Which behaviours carry a
character (amount of speech, backchannels, fillers, switching pause) is from Yamamoto et al. (APSIPA 2018; Interspeech
2020; Advanced Robotics 38(4), 2024), that a face should answer emotion from Advanced Robotics 33(20), 2019. The
directions and sizes in `STYLE_RULES` are suggestions to tune, not findings.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kibun.client import (
    AsyncClient,
    AsyncConversation,
    AsyncTurn,
    AudioFile,
    AudioFileError,
    Emotion,
    Encoding,
    Features,
    KibunError,
    PersonalityEstimate,
    StreamStarted,
    Traits,
    UtteranceResult,
)

Samples = NDArray[np.int16] | NDArray[np.float32]

CHUNK_S = 0.1
# The room still carries the robot's voice for a moment after it has stopped.
OWN_SPEECH_TAIL_S = 0.3

# At most two faces per second while the user speaks, and one for the whole utterance.
MIN_EXPRESSION_INTERVAL_S = 0.5

# A character shows slowly: nothing changes before the user has said this much …
MIN_UTTERANCES = 3
MIN_SPEECH_S = 5.0
# … and then by small steps, one per turn.
MAX_STEP = 0.25


@dataclass(frozen=True)
class StyleRule:
    """A behaviour of the robot: neutral + swing * (weighted mean of the user's traits, each -1..1)."""

    neutral: float
    swing: float
    weights: dict[str, float]

    def target(self, traits: Traits) -> float:
        """Where the behaviour should go, within neutral ± swing."""
        centred = {name: 2 * getattr(traits.normalized(), name) - 1 for name in self.weights}
        total = sum(abs(weight) for weight in self.weights.values())
        mean = float(sum(self.weights[name] * centred[name] for name in centred)) / total
        return self.neutral + self.swing * mean


STYLE_RULES = {
    # Words per turn, as a factor.
    "utterance_amount": StyleRule(1.0, 0.3, {"extraversion": 1.0}),
    # "mm-hm" per minute of the user's speech, as a factor.
    "backchannel_rate": StyleRule(1.0, 0.3, {"extraversion": 1.0, "agreeableness": 1.0}),
    # "well", "er", as a factor.
    "filler_rate": StyleRule(1.0, 0.3, {"neuroticism": 1.0}),
    # Silence before the robot takes its turn.
    "switching_pause_ms": StyleRule(600.0, 200.0, {"extraversion": -1.0, "neuroticism": 0.5}),
}


@dataclass(frozen=True)
class Turn:
    """A turn of the dialogue: seconds within the recording."""

    turn_id: str
    participant_id: str
    start_s: float
    end_s: float


class Ears:
    """The robot's one microphone, which picks up all speakers: the recording, with the robot's own voice cut out."""

    def __init__(self, recording: AudioFile, own_turns: Sequence[Turn]) -> None:
        self.rate_hz = recording.sample_rate_hz
        self.encoding: Encoding = recording.encoding
        self._samples = np.concatenate(list(recording.chunks()))
        self._own = [(turn.start_s, turn.end_s + OWN_SPEECH_TAIL_S) for turn in own_turns]

    def hear(self, start_s: float, end_s: float) -> Samples:
        """Samples of [start, end). Where the robot speaks there is silence, so that times stay what they are."""
        heard = self._samples[round(start_s * self.rate_hz) : round(end_s * self.rate_hz)].copy()
        times = start_s + np.arange(len(heard)) / self.rate_hz
        for own_start_s, own_end_s in self._own:
            heard[(times >= own_start_s) & (times < own_end_s)] = 0
        return heard


@dataclass
class Behaviour:
    """Turns estimates into commands, and remembers what the robot does now."""

    style: dict[str, float] = field(default_factory=lambda: {name: rule.neutral for name, rule in STYLE_RULES.items()})
    _last_expression_s: float = -np.inf

    def expression(self, time_s: float, emotion: Emotion, *, is_final: bool) -> dict[str, object] | None:
        """A face for this emotion; None when the last one is too recent."""
        if not is_final and time_s - self._last_expression_s < MIN_EXPRESSION_INTERVAL_S:
            return None
        self._last_expression_s = time_s
        scaled = emotion.normalized()
        return {"valence": round(scaled.valence, 3), "arousal": round(scaled.arousal, 3), "is_final": is_final}

    def speaking_style(self, personality: PersonalityEstimate) -> dict[str, object] | None:
        """The next small step towards the user's character; None while there is too little evidence."""
        if personality.utterance_count < MIN_UTTERANCES or personality.speech_s < MIN_SPEECH_S:
            return None
        for name, rule in STYLE_RULES.items():
            step = MAX_STEP * rule.swing
            change = rule.target(personality.traits) - self.style[name]
            self.style[name] += min(max(change, -step), step)
        evidence = {"utterance_count": personality.utterance_count, "speech_s": round(personality.speech_s, 2)}
        return {**{name: round(value, 3) for name, value in self.style.items()}, "heard": evidence}


class Agent:
    """The dialogue manager: knows whose turn it is, listens to the user's, and commands the robot."""

    def __init__(self, conversation: AsyncConversation, ears: Ears, speed: float) -> None:
        self._conversation = conversation
        self._ears = ears
        self._speed = speed
        self._behaviour = Behaviour()
        self._start = asyncio.get_running_loop().time()

    async def take_part(self, turns: Sequence[Turn], robot: str) -> None:
        """Goes through the dialogue as it happens."""
        for turn in turns:
            await self._wait_until(turn.start_s)
            if turn.participant_id == robot:
                # Here a real robot would speak. Its microphone picks that up, but no stream is open.
                command(turn.start_s, "own_speech", turn_id=turn.turn_id, seconds=round(turn.end_s - turn.start_s, 3))
            else:
                await self._listen(turn)

    async def _listen(self, turn: Turn) -> None:
        """One turn of the user, as one stream of the conversation."""
        async with self._conversation.turn(
            turn.turn_id,
            turn.participant_id,
            sample_rate_hz=self._ears.rate_hz,
            encoding=self._ears.encoding,
            features=Features(interim_results=True),
            audio_start_offset_s=turn.start_s,
        ) as stream:
            stream.feed(self._microphone(turn))
            await self._react(stream)
            result = await stream.result()
        if result.personality is not None:
            style = self._behaviour.speaking_style(result.personality)
            if style is not None:
                command(turn.end_s, "speaking_style", **style)

    async def _microphone(self, turn: Turn) -> AsyncIterator[Samples]:
        time_s = turn.start_s
        while time_s < turn.end_s:
            next_s = min(time_s + CHUNK_S, turn.end_s)
            await self._wait_until(next_s)
            yield self._ears.hear(time_s, next_s)
            time_s = next_s

    async def _react(self, stream: AsyncTurn) -> None:
        async for event in stream:
            match event:
                case StreamStarted(synthetic_model=True, prior_utterance_count=0):
                    command(0.0, "notice", text="synthetic model: tells you nothing about real people")
                case UtteranceResult(emotion=Emotion() as emotion):
                    face = self._behaviour.expression(event.end_s, emotion, is_final=event.is_final)
                    if face is not None:
                        command(event.end_s, "expression", turn_id=event.turn_id, **face)

    async def _wait_until(self, time_s: float) -> None:
        if self._speed > 0:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(max(self._start + time_s / self._speed - now, 0.0))


def command(time_s: float, name: str, **values: object) -> None:
    """Prints a command for the robot; `t` is the time in the dialogue, in seconds."""
    print(json.dumps({"t": round(time_s, 3), "command": name, **values}), flush=True)


async def run(
    server: str, conversation_id: str | None, recording: AudioFile, turns: Sequence[Turn], robot: str, speed: float
) -> None:
    """Plays the dialogue to an agent; the robot is the participant `robot`."""
    ears = Ears(recording, [turn for turn in turns if turn.participant_id == robot])
    async with AsyncClient(server) as client:
        await client.wait_until_ready()
        conversation = client.conversation(conversation_id)
        await Agent(conversation, ears, speed).take_part(turns, robot)
        state = await conversation.get()
        heard = [participant.participant_id for participant in state.participants]
        command(turns[-1].end_s, "goodbye", heard=heard)
        await conversation.delete()


def read_turns(path: Path) -> list[Turn]:
    """Turns from a JSON list of objects with turn_id, participant_id, start_s and end_s."""
    names = ("turn_id", "participant_id", "start_s", "end_s")
    turns = [Turn(*(entry[name] for name in names)) for entry in json.loads(path.read_text(encoding="utf-8"))]
    return sorted(turns, key=lambda turn: turn.start_s)


def main() -> None:
    """Reads the command line."""
    demo = Path(str(files("kibun.client") / "demo"))
    parser = argparse.ArgumentParser(description="A robot that reacts to how its user speaks.")
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT")
    parser.add_argument("--conversation", metavar="ID", help="for others to watch; default: a new one")
    parser.add_argument("--audio", type=Path, default=demo / "dialogue.flac", help="what the robot's microphone hears")
    parser.add_argument("--turns", type=Path, default=demo / "dialogue.json", help="who speaks when")
    parser.add_argument("--robot", help="the participant that is the robot; default: who speaks second")
    parser.add_argument("--speed", type=float, default=1.0, help="1: as spoken; 0: without waiting")
    arguments = parser.parse_args()
    turns = read_turns(arguments.turns)
    speakers = list(dict.fromkeys(turn.participant_id for turn in turns))
    robot = arguments.robot or speakers[min(1, len(speakers) - 1)]
    if robot not in speakers or len(speakers) < 2:
        parser.error(f"--robot must be one of at least two speakers: {', '.join(speakers)}")
    try:
        recording = AudioFile(arguments.audio)
    except AudioFileError as error:
        parser.error(str(error))
    try:
        asyncio.run(run(arguments.server, arguments.conversation, recording, turns, robot, arguments.speed))
    except KibunError as error:
        sys.exit(f"{error.reason}: {error.message}")


if __name__ == "__main__":
    main()
