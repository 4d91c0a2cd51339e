"""Audio files are read as mono at 16 kHz."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from kibun.training.audio.reading import audio_seconds, load_audio, resample
from kibun.training.errors import ManifestError
from tests.support.training_audio import tone


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


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_stays_in_step_when_resampled(rate_hz: int) -> None:
    for size in (rate_hz // 2, rate_hz // 2 + 1):
        rows = np.stack([tone(hz, rate_hz, 1.0)[:size] for hz in (300, 1234)])
        resampled = resample(rows, rate_hz, 16_000)
        assert resampled.shape == (2, -(-size * 16_000 // rate_hz))
        expected = np.stack([tone(hz, 16_000, 1.0)[: resampled.shape[1]] for hz in (300, 1234)])
        assert np.abs(resampled - expected)[:, 400:-400].max() < 0.001


def test_a_batch_is_resampled_like_its_rows() -> None:
    rows = np.stack([tone(hz, 22_050) for hz in (200, 400, 3000)])
    batch = resample(rows, 22_050, 16_000)
    assert np.allclose(batch, [resample(row, 22_050, 16_000) for row in rows], atol=1e-6)


def test_an_odd_rate_can_be_resampled(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1000, 22_051), 22_051)
    assert len(load_audio(tmp_path / "a.wav")) == 8000


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
