"""Recordings as real writers make them, cut, damaged and unfinished: what is read, and what is said."""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kibun.client import (
    AsyncClient,
    AudioFile,
    AudioFileError,
    Client,
    InvalidRequestError,
    UtteranceResult,
    WrongTypeError,
)
from kibun.client.server_process import ServerProcess
from tests.support import ROOT, present

RATE_HZ = 16_000
SECONDS = 4.0
DIALOGUE = ROOT / "client" / "kibun" / "client" / "demo" / "dialogue.flac"


def speech() -> np.ndarray:
    samples, _ = soundfile.read(DIALOGUE, dtype="int16", frames=round(SECONDS * RATE_HZ))
    return np.asarray(samples)


def written(kind: str, subtype: str, samples: np.ndarray | None = None, rate_hz: int = RATE_HZ) -> bytes:
    buffer = io.BytesIO()
    if samples is None:
        samples = speech() / 32768 if subtype in ("FLOAT", "DOUBLE") else speech()
    soundfile.write(buffer, samples, rate_hz, format=kind, subtype=subtype)
    return buffer.getvalue()


def seconds(audio: AudioFile) -> float:
    return sum(len(chunk) for chunk in audio.chunks()) / audio.sample_rate_hz


# -- kinds


@pytest.mark.parametrize(
    ("kind", "subtype", "encoding"),
    [
        ("WAV", "PCM_U8", "linear16"),
        ("WAV", "PCM_16", "linear16"),
        ("WAV", "PCM_24", "float32"),
        ("WAV", "PCM_32", "float32"),
        ("WAV", "FLOAT", "float32"),
        ("WAV", "DOUBLE", "float32"),
        ("WAV", "ULAW", "linear16"),
        ("WAV", "ALAW", "linear16"),
        ("WAV", "IMA_ADPCM", "float32"),
        ("WAV", "MS_ADPCM", "float32"),
        ("WAV", "GSM610", "float32"),
        ("WAV", "G721_32", "float32"),
        ("WAVEX", "PCM_16", "linear16"),
        ("W64", "PCM_16", "linear16"),
        ("W64", "GSM610", "float32"),
        ("RF64", "PCM_16", "linear16"),
        ("AIFF", "PCM_24", "float32"),
        ("AIFF", "ULAW", "linear16"),
        ("AU", "PCM_16", "linear16"),
        ("CAF", "PCM_16", "linear16"),
        ("CAF", "ALAC_16", "float32"),
        ("FLAC", "PCM_16", "linear16"),
        ("OGG", "VORBIS", "float32"),
        ("OGG", "OPUS", "float32"),
        ("MP3", "MPEG_LAYER_III", "float32"),
        ("NIST", "PCM_16", "linear16"),
    ],
)
def test_every_kind_is_read_whole(tmp_path: Path, kind: str, subtype: str, encoding: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(written(kind, subtype))
    audio = AudioFile(path)
    assert (audio.sample_rate_hz, audio.channels, audio.encoding) == (RATE_HZ, 1, encoding)
    # Blocks of ADPCM and frames of MP3 are filled up.
    assert SECONDS <= seconds(audio) <= SECONDS + 0.1
    assert audio.incomplete == ""
    whole = np.concatenate(list(audio.chunks()))
    part = np.concatenate(list(audio.chunks(start_s=1.0, end_s=2.5)))
    assert len(part) == 1.5 * RATE_HZ
    if encoding == "linear16":
        np.testing.assert_array_equal(part, whole[RATE_HZ : round(2.5 * RATE_HZ)])


@pytest.mark.parametrize(
    ("rate_hz", "sent_hz"), [(8000, 8000), (11025, 11025), (48000, 48000), (88200, 48000), (192000, 48000)]
)
def test_any_rate_from_8_khz_is_sent(tmp_path: Path, rate_hz: int, sent_hz: int) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32) / 2
    path = tmp_path / "x.wav"
    path.write_bytes(written("WAV", "FLOAT", tone, rate_hz))
    audio = AudioFile(path)
    assert audio.sample_rate_hz == sent_hz
    sent = np.concatenate(list(audio.chunks()))
    assert len(sent) == sent_hz, "a second stays a second"
    spectrum = np.abs(np.fft.rfft(sent))
    assert np.argmax(spectrum) == 440, "and the tone is the same tone"


def test_a_rate_below_8_khz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(written("WAV", "PCM_16", rate_hz=6000))
    with pytest.raises(AudioFileError, match="6000 Hz, too low for the service") as caught:
        AudioFile(path)
    assert caught.value.reason == "SAMPLE_RATE_UNSUPPORTED"


# -- lengths that are not true


def header_of(wav: bytes | bytearray) -> int:
    return wav.index(b"data") + 8


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF - 36])
@pytest.mark.parametrize("subtype", ["PCM_16", "MS_ADPCM"])
def test_a_wav_whose_length_was_never_written_is_read_to_its_end(tmp_path: Path, size: int, subtype: str) -> None:
    wav = bytearray(written("WAV", subtype))
    start = header_of(wav)
    wav[4:8] = wav[start - 4 : start] = struct.pack("<I", size)
    (tmp_path / "x.wav").write_bytes(wav)
    audio = AudioFile(tmp_path / "x.wav")
    assert SECONDS <= present(audio.duration_s) <= SECONDS + 0.1
    assert seconds(audio) == present(audio.duration_s)


@pytest.mark.parametrize(
    ("kind", "name", "width", "order"),
    [("CAF", b"data", 8, "big"), ("AU", b".snd", 0, ""), ("AIFF", b"SSND", 4, "big")],
)
def test_other_containers_without_a_length_too(tmp_path: Path, kind: str, name: bytes, width: int, order: str) -> None:
    data = bytearray(written(kind, "PCM_16"))
    if kind == "AU":
        data[8:12] = b"\xff" * 4
    else:
        at = data.index(name) + 4
        data[at : at + width] = b"\xff" * width if kind == "CAF" else bytes(width)
    (tmp_path / "x").write_bytes(data)
    assert seconds(AudioFile(tmp_path / "x")) == SECONDS


@pytest.mark.parametrize("size", [1, 2, 1000, 64_000])
def test_a_length_that_falls_short_of_the_samples_is_none(tmp_path: Path, size: int) -> None:
    wav = bytearray(written("WAV", "PCM_16"))
    start = header_of(wav)
    wav[start - 4 : start] = struct.pack("<I", size)
    (tmp_path / "x.wav").write_bytes(wav)
    np.testing.assert_array_equal(np.concatenate(list(AudioFile(tmp_path / "x.wav").chunks())), speech())


@pytest.mark.parametrize(
    "behind",
    [
        np.random.default_rng(7).bytes(5000),
        bytes(100_000),
        b"ID3\3" + bytes(range(256)) * 200,
        b"LIST" + struct.pack("<I", 60_000) + b"\x80" * 60_000,
    ],
    ids=["garbage", "zeros", "tag", "chunk"],
)
def test_what_lies_behind_the_samples_is_none_of_them(tmp_path: Path, behind: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(written("WAV", "PCM_16") + behind)
    assert seconds(AudioFile(tmp_path / "x.wav")) == SECONDS


def test_a_length_of_0_that_is_true_is_no_audio(tmp_path: Path) -> None:
    wav = written("WAV", "PCM_16", np.zeros(0, np.int16))
    for content in (wav, wav + b"LIST" + struct.pack("<I", 4) + b"INFO"):
        (tmp_path / "x.wav").write_bytes(content)
        with pytest.raises(AudioFileError, match="holds no audio") as caught:
            AudioFile(tmp_path / "x.wav")
        assert caught.value.reason == "NO_AUDIO"


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST"])
def test_half_a_file_is_read_and_told(tmp_path: Path, kind: str) -> None:
    data = written(kind, "PCM_16")
    path = tmp_path / "x"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioFileError, match=r"is cut off: 2\.[01] of 4\.0 s are missing; copy it again") as caught:
        AudioFile(path)
    assert caught.value.reason == "FILE_INCOMPLETE"
    audio = AudioFile(path, allow_incomplete=True)
    assert audio.incomplete.startswith("is cut off: 2.")
    assert seconds(audio) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")])
def test_half_of_a_compressed_file_is_told_too(tmp_path: Path, kind: str, subtype: str) -> None:
    data = written(kind, subtype)
    path = tmp_path / "x"
    path.write_bytes(data[: len(data) // 2])
    audio = AudioFile(path, allow_incomplete=True)
    assert 0.5 < seconds(audio) < 2.5
    assert audio.incomplete.startswith(("is cut off", "is damaged: from"))
    with pytest.raises(AudioFileError, match="copy it again"):
        seconds(AudioFile(path))


@pytest.mark.parametrize("missing", [1, 100])
@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_whose_last_page_is_not_whole_is_told(tmp_path: Path, subtype: str, missing: int) -> None:
    (tmp_path / "x.ogg").write_bytes(written("OGG", subtype)[:-missing])
    assert AudioFile(tmp_path / "x.ogg", allow_incomplete=True).incomplete.startswith("is cut off: its last page")


def test_behind_damage_it_goes_on_at_the_right_time(tmp_path: Path) -> None:
    data = bytearray(written("FLAC", "PCM_16"))
    middle = len(data) // 2
    data[middle : middle + 500] = np.random.default_rng(7).bytes(500)
    (tmp_path / "x.flac").write_bytes(data)
    audio = AudioFile(tmp_path / "x.flac", allow_incomplete=True)
    read = np.concatenate(list(audio.chunks()))
    assert len(read) == SECONDS * RATE_HZ
    np.testing.assert_array_equal(read[-RATE_HZ:], speech()[-RATE_HZ:])
    assert audio.incomplete.startswith("is damaged: from")


def test_chunks_before_and_after_the_samples_do_not_matter(tmp_path: Path) -> None:
    wav = written("WAV", "PCM_16")
    junk = b"JUNK" + struct.pack("<I", 999) + bytes(1000)
    info = b"LIST" + struct.pack("<I", 4) + b"INFO"
    (tmp_path / "x.wav").write_bytes(wav[:12] + junk + wav[12:] + info)
    np.testing.assert_array_equal(np.concatenate(list(AudioFile(tmp_path / "x.wav").chunks())), speech())


# -- what cannot be read


@pytest.mark.parametrize(
    ("content", "reason", "text"),
    [
        (b"", "NO_AUDIO", "is empty (0 bytes)"),
        (b"this is text\n" * 9, "FORMAT_UNKNOWN", "is not audio that can be read here"),
        (bytes(5000), "FORMAT_UNKNOWN", "is not audio that can be read here"),
        (b"RIFF\0\0\0\0WAVE", "FILE_DAMAGED", "is damaged: it ends within its header, after 12 bytes"),
        (b"\0\0\0\x20ftypM4A " + bytes(500), "FORMAT_UNSUPPORTED", "is MP4 (m4a, mp4, mov), which is not read here"),
        (b"\xff\xfb<!DOCTYPE html>" * 9, "FORMAT_UNKNOWN", "is not audio that can be read here"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "FORMAT_UNSUPPORTED", "is Matroska or WebM, which is not read here"),
        (b"\x30\x26\xb2\x75" + bytes(500), "FORMAT_UNSUPPORTED", "is Windows Media (wma, asf), which is not read"),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, content: bytes, reason: str, text: str) -> None:
    path = tmp_path / "with space.wav"
    path.write_bytes(content)
    with pytest.raises(AudioFileError) as caught:
        AudioFile(path)
    assert caught.value.reason == reason
    assert text in caught.value.problem
    assert str(path) not in caught.value.problem.replace(f"'{path}'", "").replace(f"'{path.with_suffix('.flac')}'", "")
    if reason == "FORMAT_UNSUPPORTED":
        assert f"`ffmpeg -i '{path}' -vn '{path.with_suffix('.flac')}'`" in caught.value.problem


def test_a_codec_that_wav_may_hold_but_is_not_read_here(tmp_path: Path) -> None:
    wav = bytearray(written("WAV", "PCM_16"))
    wav[20:22] = struct.pack("<H", 0x45)  # G.726
    (tmp_path / "x.wav").write_bytes(wav)
    with pytest.raises(AudioFileError, match=r"a WAV file of a kind that is not read here.*: convert it, `ffmpeg"):
        AudioFile(tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("sample", "reason", "text"),
    [
        (float("nan"), "NON_FINITE_AUDIO", "holds NaN or infinity near 2.0 s: write it again"),
        (float("-inf"), "NON_FINITE_AUDIO", "holds NaN or infinity near 2.0 s: write it again"),
        (-32768.0, "AUDIO_OUT_OF_RANGE", "holds a sample of magnitude 32768 near 2.0 s, where floats lie within ±1"),
    ],
)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_that_are_no_audio_are_named(
    tmp_path: Path, subtype: str, sample: float, reason: str, text: str
) -> None:
    samples = speech() / 32768
    samples[2 * RATE_HZ] = sample
    (tmp_path / "x.wav").write_bytes(written("WAV", subtype, samples))
    with pytest.raises(AudioFileError) as caught:
        seconds(AudioFile(tmp_path / "x.wav"))
    assert caught.value.reason == reason
    assert text in caught.value.problem


def test_places_where_no_file_is(tmp_path: Path) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "broken.wav").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.wav")
    wrong = {
        tmp_path / "none.wav": "does not exist",
        tmp_path: "is a folder",
        tmp_path / "loop.wav": "is a link that leads back to itself",
        tmp_path / "broken.wav": "is a link to nowhere, which does not exist",
        tmp_path / "fifo.wav": "is not a file but a pipe",
        tmp_path / ("x" * 300): "cannot be opened (File name too long)",
        tmp_path / "raw.pcm": "holds raw samples",
    }
    (tmp_path / "raw.pcm").write_bytes(bytes(64_000))
    for path, text in wrong.items():
        with pytest.raises(AudioFileError) as caught:
            AudioFile(path)
        assert text in caught.value.problem
    unreadable = tmp_path / "x.wav"
    unreadable.write_bytes(written("WAV", "PCM_16"))
    unreadable.chmod(0)
    with suppress(PermissionError), unreadable.open("rb"):
        pytest.skip("this user may read every file")
    with pytest.raises(AudioFileError, match="may not be read: its permissions forbid it"):
        AudioFile(unreadable)


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.wav"))
    path.write_bytes(written("WAV", "PCM_16"))
    assert seconds(AudioFile(path)) == SECONDS
    path.write_bytes(b"")
    with pytest.raises(AudioFileError, match=r"\\xff\\xe9.wav is empty"):
        AudioFile(path)


# -- channels


def test_channels_that_differ_are_noticed(tmp_path: Path) -> None:
    one = speech().astype(np.float32) / 32768
    turns = np.column_stack([np.where(np.arange(len(one)) < len(one) / 2, one, 0), one[::-1]])
    cases = {
        "same": (np.column_stack([one, 0.3 * one]), False, []),
        "differ": (turns, True, []),
        "opposite": (np.column_stack([one, -one]), True, []),
        "silent": (np.column_stack([one, 0 * one]), False, [2]),
        "offset": (np.column_stack([one, one + 0.1]), False, []),
    }
    for name, (samples, differ, silent) in cases.items():
        for kind, subtype in (("WAV", "FLOAT"), ("OGG", "VORBIS")):
            (tmp_path / name).write_bytes(written(kind, subtype, samples))
            audio = AudioFile(tmp_path / name)
            seconds(audio)
            assert (audio.comparison.differ, audio.comparison.silent) == (differ, silent), (name, kind)
    (tmp_path / "x").write_bytes(written("WAV", "PCM_16", turns))
    second = np.concatenate(list(AudioFile(tmp_path / "x", channel=2).chunks()))
    np.testing.assert_allclose(second, one[::-1] * 32768, atol=1)
    with pytest.raises(AudioFileError, match=r"has 2 channel\(s\), none numbered 3"):
        AudioFile(tmp_path / "x", channel=3)


# -- as a turn's audio


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        with ServerProcess("stub", ["--loader", "tests.support.stub_model:load"]) as server:
            yield server.target


async def test_a_turn_takes_rate_and_encoding_from_the_recording(target: str, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(written("WAV", "PCM_24", np.repeat(speech(), 3), 48_000))
    async with AsyncClient(target) as client:
        async with client.conversation().turn(audio=AudioFile(path)) as turn:
            events = [event async for event in turn]
        assert turn.config.sample_rate_hz == 48_000
        assert turn.config.encoding == "float32"
        assert any(isinstance(event, UtteranceResult) for event in events)
        assert events[-1].audio_received_s == pytest.approx(SECONDS, abs=0.01)
        with pytest.raises(InvalidRequestError, match="sample_rate_hz is the recording's own"):
            client.conversation().turn(audio=AudioFile(path), sample_rate_hz=16_000)
        async with client.conversation().turn() as turn:
            with pytest.raises(InvalidRequestError, match=r"turn\(audio=AudioFile\(path\)\)"):
                turn.feed(AudioFile(path))  # type: ignore[arg-type]
        turn = client.conversation().turn(audio=AudioFile(path))
        await turn.open()
        async with turn:  # which opens it as well, and does not feed it twice
            assert (await turn.result()).end_s == pytest.approx(SECONDS, abs=0.01)


def test_what_is_no_recording_is_named(tmp_path: Path) -> None:
    client: Any = Client("127.0.0.1:1")
    for value in ("speech.wav", Path("speech.wav"), b"", True):
        with pytest.raises(WrongTypeError, match=r"audio must be a kibun\.client\.AudioFile") as caught:
            client.conversation().turn(audio=value)
        assert caught.value.field == "audio"
    path = tmp_path / "x.wav"
    path.write_bytes(written("WAV", "PCM_16"))
    audio: Any = AudioFile
    wrong_values: dict[str, Any] = {"path": 1, "channel": "1", "allow_incomplete": "no"}
    for field, wrong_value in wrong_values.items():
        with pytest.raises(WrongTypeError) as wrong:
            audio(**{"path": path, field: wrong_value})
        assert wrong.value.field == field
    with pytest.raises(WrongTypeError, match="chunk_ms must be a whole number"):
        next(audio(path).chunks("100"))


def test_and_without_asyncio(target: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ogg"
    path.write_bytes(written("OGG", "OPUS"))
    with Client(target) as client:
        with client.conversation().turn(audio=AudioFile(path)) as turn:
            assert any(isinstance(event, UtteranceResult) for event in turn)
        data = bytearray(written("FLAC", "PCM_16"))
        (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
        with (
            pytest.raises(AudioFileError, match="cannot be read; copy it again"),
            client.conversation().turn(audio=AudioFile(tmp_path / "cut.flac")) as turn,
        ):
            list(turn)
