"""Audio files are read as mono at 16 kHz."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from kibun.training.audio import reading as audio
from kibun.training.audio.reading import audio_seconds, load_audio, resample
from kibun.training.errors import ManifestError
from tests.support.training_audio import needs_torchaudio, tone


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_decodes_to_16_khz(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"a.{format}"
    soundfile.write(path, tone(1000, 44_100), 44_100)
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert abs(len(samples) - 8000) <= 1
    assert audio_seconds(path) == pytest.approx(0.5, abs=1e-3)
    middle = samples[2000:6000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(4000)))
    assert np.argmax(spectrum) * 4 == 1000
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, abs=0.01)


def test_sixteen_khz_comes_out_bit_for_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 4000).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    assert np.array_equal(load_audio(tmp_path / "a.wav") * 32768, samples)


def test_errors_name_the_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("hello")
    soundfile.write(tmp_path / "two.wav", np.zeros((100, 2)), 16_000)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    for read in (load_audio, audio_seconds):
        for name, message in (
            ("none.wav", "none.wav: "),
            ("text.wav", "cannot be read as audio"),
            ("two.wav", "two.wav: has 2 channels, must be mono"),
            ("empty.wav", "has no samples"),
        ):
            with pytest.raises(ManifestError, match=message):
                read(tmp_path / name)


@needs_torchaudio
@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_soxr_resamples_like_torchaudio(rate_hz: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (rate_hz // 2, rate_hz // 2 + 1):
        original = np.stack([tone(hz, rate_hz, 1.0)[:size] for hz in (300, 1234)])
        by_torchaudio = resample(original, rate_hz, 16_000)
        monkeypatch.setattr(audio, "ensure_importable", lambda: "absent")
        by_soxr = resample(original, rate_hz, 16_000)
        monkeypatch.undo()
        assert not np.array_equal(by_torchaudio, by_soxr)  # so both were used
        assert by_torchaudio.shape == by_soxr.shape == (2, -(-size * 16_000 // rate_hz))
        assert np.abs(by_torchaudio - by_soxr)[:, 400:-400].max() < 0.01


def test_a_batch_is_resampled_like_its_rows() -> None:
    rows = np.stack([tone(hz, 22_050) for hz in (200, 400, 3000)])
    batch = resample(rows, 22_050, 16_000)
    assert np.allclose(batch, [resample(row, 22_050, 16_000) for row in rows], atol=1e-6)


def test_an_odd_rate_can_be_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1000, 22_051), 22_051)
    assert len(load_audio(tmp_path / "a.wav")) == 8000


WITHOUT_TORCHAUDIO = """
import sys
sys.modules['torchaudio'] = None
from pathlib import Path
from kibun.training.audio.reading import load_audio
from kibun.training.audio.augment import Augment, AugmentOptions
import torch
samples = load_audio(Path(sys.argv[1]))
assert samples.shape == (8000,), samples.shape
still = Augment(AugmentOptions(speeds=(1.0,)))
assert still(torch.from_numpy(samples), key=(0, 1)).shape == (8000,)
try:
    Augment()
except RuntimeError as error:
    print(error)
"""


def test_without_torchaudio_only_speed_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1000, 44_100), 44_100)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCHAUDIO, tmp_path / "a.wav"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "changing the speed needs torchaudio (absent here): pip install 'kibun[train]'" in done.stdout


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    for format in ("wav", "flac", "mp3"):
        path = tmp_path / f"a.{format}"
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
        assert audio_seconds(path, decode=True) == pytest.approx(1.0, abs=0.1)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ManifestError, match=r"is cut off|cannot be read as audio"):
            audio_seconds(path, decode=True)
    with pytest.raises(ManifestError, match="is cut off: "):
        audio_seconds(tmp_path / "a.wav")
    with pytest.raises(ManifestError, match="is cut off: "):
        load_audio(tmp_path / "a.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16_000, subtype="FLOAT")
    with pytest.raises(ManifestError, match="no finite numbers"):
        load_audio(tmp_path / "nan.wav")
