"""Audio of corpora: decoded and resampled with and without torchaudio, and perturbed repeatably."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from kibun.models._torchaudio import ensure_importable
from kibun.training.audio import reading as audio
from kibun.training.audio.augment import Augment, AugmentOptions, change_speed
from kibun.training.audio.reading import audio_seconds, load_audio, resample
from kibun.training.errors import ManifestError

needs_torchaudio = pytest.mark.skipif(
    ensure_importable() not in ("ok", "without-extension"), reason="torchaudio is not installed, or does not import"
)
STILL = AugmentOptions(speeds=(1.0,), noise_chance=0.0, mask_count=0)


def tone(hz: float, rate_hz: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


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


# ---- perturbation --------------------------------------------------------------------------------------------------


@needs_torchaudio
def test_the_key_alone_decides() -> None:
    waveform = torch.from_numpy(tone(300, 16_000))
    options = AugmentOptions(noise_chance=1.0)
    perturb = Augment(options)
    first = [perturb(waveform, key=(7, epoch, index)) for epoch in range(2) for index in range(3)]
    torch.manual_seed(99)
    again = Augment(options)
    keys = [(7, epoch, index) for epoch in range(2) for index in range(3)]
    for key, before in reversed(list(zip(keys, first, strict=True))):
        assert torch.equal(again(waveform, key=key), before)
    state = torch.get_rng_state()
    different = [perturb(waveform, key=key) for key in ((7, 0, 0), (8, 0, 0), (7, 1, 0), (7, 0, 1), (7, 0))]
    assert torch.equal(torch.get_rng_state(), state)
    for one in range(5):
        for other in range(one):
            assert not torch.equal(different[one], different[other])
    assert torch.equal(waveform, torch.from_numpy(tone(300, 16_000)))


@needs_torchaudio
@pytest.mark.parametrize("speed", [0.9, 0.95, 1.0, 1.1, 1.15, 1.25])
def test_speed_moves_pitch_and_length_by_exactly_its_factor(speed: float) -> None:
    perturb = Augment(AugmentOptions(speeds=(speed,), noise_chance=0.0, mask_count=0))
    size = 16_001
    waveform = torch.from_numpy(tone(1000, 16_000, 2.0)[:size])
    faster = perturb(waveform, key=(0,))
    assert faster.shape == (-(-size * 100 // round(speed * 100)),)
    # The phase of the tone stays in step over the whole length: sampling is exact, not nearly so.
    expected = 0.5 * torch.sin(2 * torch.pi * 1000 * speed * torch.arange(len(faster), dtype=torch.float64) / 16_000)
    assert (faster - expected)[200:-200].abs().max() < 0.01


@needs_torchaudio
def test_noise_has_the_given_ratio_and_tilt() -> None:
    waveform = torch.from_numpy(tone(500, 16_000, 1.0))
    for snr_db, tilt in ((0.0, 0.0), (20.0, 1.0)):
        options = AugmentOptions(
            (1.0,), noise_chance=1.0, noise_snr_db=(snr_db, snr_db), noise_tilt=(tilt, tilt), mask_count=0
        )
        noise = Augment(options)(waveform, key=(1, 2)) - waveform
        measured = 10 * torch.log10(waveform.square().sum() / noise.square().sum())
        assert float(measured) == pytest.approx(snr_db, abs=0.01)
        power = torch.fft.rfft(noise).abs().square()  # 1 Hz a bin
        falls_db = 10 * torch.log10(power[900:1100].mean() / power[3600:4400].mean())  # two octaves
        assert float(falls_db) == pytest.approx(12.04 * tilt, abs=1.5)
    silence = Augment(AugmentOptions(noise_chance=1.0))(torch.zeros(4000), key=(1,))
    assert not silence.isnan().any()


def test_masks_silence_short_stretches_and_gain_is_gain() -> None:
    waveform = torch.ones(16_000)
    options = AugmentOptions((1.0,), noise_chance=0.0, mask_count=3, mask_s=0.05)
    gaps = [int((Augment(options)(waveform, key=(index,)) == 0).sum()) for index in range(60)]
    assert 0 in gaps
    assert 800 < max(gaps) <= 3 * 801
    short = Augment(AugmentOptions((1.0,), noise_chance=0.0, mask_count=1, mask_s=1.0, mask_share=0.5))
    assert all(short(torch.ones(100), key=(index,)).sum() >= 49 for index in range(20))
    loud = Augment(AugmentOptions((1.0,), noise_chance=0.0, mask_count=0, gain_db=(-6.0206, -6.0206)))
    assert torch.allclose(loud(waveform, key=(1,)), waveform / 2, atol=1e-4)
    assert torch.equal(Augment(STILL)(waveform, key=(3,)), waveform)


@needs_torchaudio
def test_speeds_and_noise_occur_with_their_probabilities() -> None:
    waveform = torch.from_numpy(tone(500, 16_000, 0.1))
    perturb = Augment(AugmentOptions(speeds=(0.9, 1.0), noise_chance=0.25, mask_count=0))
    made = [perturb(waveform, key=(0, index)) for index in range(400)]
    slower = change_speed(waveform, 0.9)
    assert sum(len(one) > 1600 for one in made) / 400 == pytest.approx(0.5, abs=0.08)
    clean = [one for one in made if torch.equal(one, waveform if len(one) == 1600 else slower)]
    assert len(clean) / 400 == pytest.approx(0.75, abs=0.07)


def test_wrong_options_are_refused() -> None:
    for changes in (
        {"speeds": (0.905,)},
        {"speeds": (3.0,)},
        {"speeds": ()},
        {"noise_snr_db": (20.0, 10.0)},
        {"noise_chance": 1.5},
        {"mask_count": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(changes))):
            AugmentOptions(**changes)
