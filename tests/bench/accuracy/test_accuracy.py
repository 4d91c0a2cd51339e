"""How detection is scored, and what the commands about accuracy print."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from typer.testing import CliRunner

from kibun.bench.accuracy.conditioning import compare
from kibun.bench.accuracy.detection import DetectionScore
from kibun.bench.accuracy.voices import SpeakerPhrases, add_noise, lay_out, phrases_of, rms
from kibun.bench.commands import bench_app
from kibun.bench.support import speech_like
from kibun.bench.support.speech_like import FloatArray, Layout
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.server.audio.endpointing import EndpointingOptions
from kibun.server.audio.vad import WebRtcVad
from kibun.training.evaluation.metrics import ccc

VOICE = SpeakerPhrases("a voice", tuple(speech_like.speech_like(0.6 + 0.2 * n, seed=n) for n in range(3)))
SCENE = lay_out(VOICE, 10.0, np.random.default_rng(0))


class OracleVad:
    """A detector that knows where speech is, and calls this share of its frames the other way round."""

    frame_samples = 320

    def __init__(self, scene: Layout, wrong: float = 0.0) -> None:
        speech = np.zeros(len(scene.audio) + self.frame_samples, bool)
        for start, end in scene.speech:
            speech[start:end] = True
        frames = len(speech) // self.frame_samples
        true = np.array([part.any() for part in np.split(speech[: frames * self.frame_samples], frames)])
        self._speech: npt.NDArray[np.bool_] = true ^ (np.random.default_rng(0).random(frames) < wrong)
        self._at = 0

    def decide(self, frames: FloatArray) -> list[bool]:
        self._at += len(frames)
        return [bool(speech) for speech in self._speech[self._at - len(frames) : self._at]]

    def reset(self) -> None:
        """It has learned nothing that it could forget."""


def score(wrong: float) -> dict[str, float | None]:
    made = DetectionScore()
    made.add_frames(SCENE, OracleVad(SCENE, wrong))
    made.add_utterances(SCENE, WebRtcVad(2), EndpointingOptions())
    return made.summary()


def test_a_detector_that_is_always_right_scores_so() -> None:
    found = score(wrong=0.0)
    assert found["phrases"] == len(SCENE.speech)
    assert found["miss_percent"] == 0
    for name in ("lost_percent", "missed_phrases", "split", "false_utterances"):
        assert found[name] == 0, name
    share_of_edges = 100 * len(SCENE.speech) * 2 * OracleVad.frame_samples / len(SCENE.audio)
    assert found["false_alarm_percent"] is not None
    assert found["false_alarm_percent"] <= 2 * share_of_edges, "frames in which speech begins or ends"


def test_wrong_frames_are_counted() -> None:
    found = score(wrong=0.25)
    assert found["miss_percent"] == pytest.approx(25, abs=8)
    assert found["frame_error_percent"] == pytest.approx(25, abs=8)


def test_phrases_are_found_where_they_were_laid_out() -> None:
    assert np.abs(np.array(phrases_of(SCENE.audio)) - np.array(SCENE.speech)).max() <= 160, "10 ms"


def test_noise_lies_so_far_below_the_speech() -> None:
    noisy = add_noise(SCENE, "white", 20.0, np.random.default_rng(1), [])
    speech = np.concatenate([SCENE.audio[start:end] for start, end in SCENE.speech])
    assert 20 * np.log10(rms(speech) / rms(noisy.audio - SCENE.audio)) == pytest.approx(20.0, abs=0.01)
    assert noisy.speech == SCENE.speech


def write(path: Path, audio: npt.NDArray[np.float32]) -> Path:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, audio, SAMPLE_RATE_HZ, subtype="PCM_16")
    return path


def test_arousal_by_cue_and_pooled(tmp_path: Path) -> None:
    recordings = [write(tmp_path / name / "a.wav", 4 * SCENE.audio) for name in ("ann", "bob")]
    done = CliRunner().invoke(bench_app, ["arousal", str(recordings[0]), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert [row["cue"] for row in rows] == ["pitch", "rate", "tilt", "all"]
    assert all(len(row["arousal"]) == 5 and row["pieces_that_rise"] <= row["pieces"] for row in rows)
    done = CliRunner().invoke(bench_app, ["arousal-pooled", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["recordings"] == 2
    assert figures["untouched_spread"] == 0, "both say the same"
    assert all(0 <= value <= 1 for value in (figures["auc_pooled"], *figures["auc_by_speaker"].values()))


def test_wrong_declarations_are_counted() -> None:
    done = CliRunner().invoke(bench_app, ["declarations", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["false_alarms"] == sum(found["false_alarms_by_path"].values()) == 0
    assert found["noticed"]["linear16"]["mulaw"] == {"noticed": 1, "named": 1}
    assert found["recordings"] == 4
    rates = found["sample_rate"]
    assert rates["good_streams"] == sum(row["streams"] for row in rates["good"].values()) == 31
    assert rates["false_alarms"] == 0
    assert rates["noticed"]["48000 as 16000"]["noticed"] == 1


def test_declarations_of_no_recording_are_refused(tmp_path: Path) -> None:
    done = CliRunner().invoke(bench_app, ["declarations", str(tmp_path)])
    assert done.exit_code == 2
    assert "no recording" in done.stderr


def speakers_manifest(folder: Path, *labels: Mapping[str, object]) -> Path:
    """Three speakers who say something with each of the labels twice."""
    lines = []
    for speaker in range(3):
        for number, label in enumerate((*labels, *labels)):
            audio = speech_like.speech_like(0.5, seed=10 * speaker + number)
            soundfile.write(folder / f"{speaker}-{number}.wav", audio, SAMPLE_RATE_HZ)
            name = f"s{speaker}"
            lines.append(json.dumps({"path": f"{speaker}-{number}.wav", "speaker": name, "dialogue": name, **label}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "manifest.jsonl"


@pytest.mark.parametrize(
    ("labels", "judged"),
    [
        (({"emotion": "angry", "arousal": 4.0}, {"emotion": "sad"}, {"emotion": "happy"}), "AUC"),
        (({"valence": 2.0, "arousal": 4.0}, {"valence": 4.0, "arousal": 2.5}, {"emotion": "happy"}), "CCC"),
    ],
)
def test_conditioning_compares_heard_with_constant_traits(
    labels: Sequence[Mapping[str, object]], judged: str, tmp_path: Path
) -> None:
    arguments = ["conditioning", str(speakers_manifest(tmp_path, *labels)), "--json", "--conversation", "4"]
    result = CliRunner().invoke(bench_app, [*arguments, "--per-speaker", "5"])
    payload = json.loads(result.stdout)
    assert result.exit_code == (1 if payload["costs"] else 0)
    assert (payload["clips"], payload["speakers"]) == (15, 3)
    assert set(payload["dimensions"]) == {"valence", "arousal"}
    for found in payload["dimensions"].values():
        assert found["measure"] == judged
        assert found["constant"]["gain"] == 0
        low, high = found["heard"]["interval"]
        assert low <= found["heard"]["value"] - found["constant"]["value"] + 1e-4
        assert high >= found["heard"]["value"] - found["constant"]["value"] - 1e-4


def test_conditioning_needs_labels_and_speakers(tmp_path: Path) -> None:
    manifest = speakers_manifest(tmp_path, {"emotion": "surprised"})
    bare = CliRunner().invoke(bench_app, ["conditioning", str(manifest)])
    assert bare.exit_code == 2
    assert "has neither categories of emotion" in bare.stderr
    lines = manifest.read_text(encoding="utf-8").splitlines()
    manifest.write_text("\n".join(line for line in lines if '"s0"' in line) + "\n", encoding="utf-8")
    alone = CliRunner().invoke(bench_app, ["conditioning", str(manifest)])
    assert alone.exit_code == 2
    assert "fewer than two speakers" in alone.stderr


def test_a_condition_that_is_worse_for_every_speaker_costs() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    speakers = [f"s{n % 10}" for n in range(200)]

    def concordance(values: npt.NDArray[np.float64], rows: npt.NDArray[np.intp]) -> float:
        return ccc(values[rows], truth[rows])

    good = truth + 0.3 * rng.normal(size=200)
    estimates = {"constant": good, "heard": truth + 1.5 * rng.normal(size=200), "first": good + 1e-9}
    found = compare(estimates, speakers, concordance, 0, 300)
    assert found["heard"].interval[1] < 0
    assert found["heard"].gain == pytest.approx(found["heard"].value - found["constant"].value, abs=1e-4)
    assert found["first"].interval == (0.0, 0.0)
