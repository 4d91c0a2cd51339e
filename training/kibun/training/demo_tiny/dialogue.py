"""The demo's dialogue: two generated speakers, one of whom gets excited while the other stays calm."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import soundfile

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.demo_tiny.corpus import render_utterance
from kibun.training.demo_tiny.espeak import Espeak
from kibun.training.demo_tiny.speakers import Cues, Speaker


@dataclasses.dataclass(frozen=True)
class Line:
    """One turn: participant, text, and latent arousal and valence (z-scores)."""

    participant: str
    text: str
    arousal: float
    valence: float


STORY = (
    Line("mira", "Hi Jonas. I am on my way home from the library.", -0.2, 0.0),
    Line("jonas", "Good evening. You sound a little tired today.", -0.9, 0.0),
    Line("mira", "I was. Until I opened the letter that came this morning.", 0.6, 0.4),
    Line("jonas", "A letter. Who still writes letters these days?", -0.7, 0.2),
    Line("mira", "The music school! They want me to play in the opening concert!", 1.7, 1.2),
    Line("jonas", "That is nice to hear. Which piece will you play?", -0.6, 0.6),
    Line("mira", "The big one! The one I have practised for three whole years!", 2.1, 1.2),
    Line("jonas", "Breathe, Mira. When is the concert?", -1.0, 0.2),
    Line("mira", "This Saturday! In four days! And my violin has a broken string!", 2.2, -1.0),
    Line("jonas", "My neighbour repairs violins. I will call him after dinner.", -0.9, 0.4),
    Line("mira", "Really? You would do that for me? That is wonderful!", 1.5, 1.6),
    Line("jonas", "I have known him for years. He owes me a favour.", -0.8, 0.4),
    Line("mira", "Then I can practise tomorrow, before work, and on Thursday evening!", 1.3, 1.0),
    Line("jonas", "Of course. Eat something, and then play it once, slowly.", -1.0, 0.4),
    Line("mira", "You are right. Once, slowly. Thank you, Jonas.", -0.5, 0.8),
    Line("jonas", "Good night, Mira. I will sit in the first row.", -0.8, 0.6),
)

_PLAIN = Speaker(
    name="",
    split="test",
    gender="male",
    language="en-gb",
    variant="m8",
    klatt=0,
    formant_scale=1.0,
    pitch_hz=108.0,
    pitch_range_semitones=9.0,
    words_per_minute=155.0,
    tilt_db_per_octave=-1.2,
    filter_db=(0.0,) * 8,
    formants=((1.0, 1.0, 1.0),) * 5,
    effort_band_hz=(150.0, 5000.0),
    breath=2.0,
    traits=(0.0, 1.0, -0.8, 0.8, -1.0),
)
# Voice variants of the test split: no model has been trained on either of them.
SPEAKERS = {
    "jonas": dataclasses.replace(_PLAIN, name="jonas"),
    "mira": dataclasses.replace(
        _PLAIN,
        name="mira",
        gender="female",
        language="en-us",
        variant="steph2",
        formant_scale=1.12,
        pitch_hz=195.0,
        words_per_minute=165.0,
        traits=(0.6, -0.2, 1.2, 0.4, 0.6),
    ),
}


def render_dialogue(folder: Path, seed: int = 0) -> Path:
    """Write ``dialogue.flac`` (16 kHz mono) and ``dialogue.json`` (its turns); returns the audio's path.

    Each turn is {"turn_id", "participant_id", "start_s", "end_s", "text", "arousal", "valence"}; the last two are the
    generator's labels on 1..5. Raises EspeakError when espeak-ng is missing.
    """
    rng = np.random.default_rng(seed)
    turns: list[dict[str, object]] = []
    pieces: list[np.ndarray] = [np.zeros(int(0.3 * SAMPLE_RATE_HZ), np.float32)]
    with Espeak() as espeak:
        for number, line in enumerate(STORY, 1):
            cues = _cues(line)
            audio, _settings = render_utterance(espeak, SPEAKERS[line.participant], cues, line.text.split(), rng, "")
            # Excited is also louder, though a model that normalises its input cannot know.
            audio = _trimmed(audio) * (0.23 + 0.05 * line.arousal)
            start = sum(map(len, pieces))
            turns.append(
                {
                    "turn_id": f"t{number:02d}",
                    "participant_id": line.participant,
                    "start_s": round(start / SAMPLE_RATE_HZ, 3),
                    "end_s": round((start + len(audio)) / SAMPLE_RATE_HZ, 3),
                    "text": line.text,
                    "arousal": cues.arousal(),
                    "valence": cues.valence(),
                }
            )
            pieces += [audio, np.zeros(int(rng.uniform(0.35, 0.7) * SAMPLE_RATE_HZ), np.float32)]
    whole = np.concatenate(pieces)
    # A soft hiss instead of digital silence between the turns, as a microphone would have it (-76 dB full scale).
    whole += rng.normal(0, 1.5e-4, len(whole)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        folder / "dialogue.flac", np.clip(whole, -1, 1), SAMPLE_RATE_HZ, subtype="PCM_16", compression_level=1.0
    )
    lines = ",\n".join("  " + json.dumps(turn, ensure_ascii=False) for turn in turns)
    (folder / "dialogue.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return folder / "dialogue.flac"


def _cues(line: Line) -> Cues:
    """All cues at one height: nothing contradicts anything in a demonstration."""
    a, v = line.arousal, line.valence
    return Cues(effort=a, pitch=a, range=a, rate=0.7 * a, pauses=a, smile=v, harshness=-v)


def _trimmed(audio: np.ndarray) -> np.ndarray:
    """Without the silence around it (below 1 % of the peak), with 20 ms left on either side."""
    loud = np.flatnonzero(np.abs(audio) > 0.01 * np.abs(audio).max())
    margin = SAMPLE_RATE_HZ // 50
    return audio[max(0, loud[0] - margin) : loud[-1] + margin]
