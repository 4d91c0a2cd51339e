"""A recording as the audio of a turn: its own sample rate, one channel, in pieces."""

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kibun.client.checks import check_value
from kibun.client.containers import (
    MOST_JUNK,
    Header,
    HeaderError,
    Patched,
    goes_on,
    is_empty,
    lacks_end_of_ogg,
    read_header,
)
from kibun.client.errors import AudioFileError, ErrorDetails, KibunError
from kibun.client.mono import MIN_RATE_HZ, ChannelComparison, Mono, Samples, unusable
from kibun.client.options import Encoding
from kibun.client.pcm import CHUNK_MS
from kibun.client.standard_streams import printable

# Formats that 16-bit samples hold without loss; all others are sent as 32-bit floats.
_SIXTEEN_BITS_ARE_ENOUGH = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")
# A file with a name like this has no header that says what its samples are.
_RAW_SUFFIXES = (".raw", ".pcm", ".sln", ".s16", ".sw", ".ul", ".al", ".ulaw", ".alaw", ".g711")
# Some programs count a few bytes too many, and lossy codecs end within a frame.
_SLACK_BYTES = 1024
_SLACK_S = 0.15
# Behind damage, audio is looked for in this many steps of a chunk, then in ever larger ones.
_SMALL_STEPS = 20

READABLE = "WAV, FLAC, Ogg, MP3, AIFF, AU, CAF and others"
# What libsndfile does not read: position and bytes by which it is known, and its name.
_FOREIGN = (
    (4, b"ftyp", "MP4 (m4a, mp4, mov)"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"\x30\x26\xb2\x75", "Windows Media (wma, asf)"),
    (0, b"#!AMR", "AMR"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"ADIF", "AAC"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "TTA"),
    (0, b"DSD ", "DSD"),
    (0, b"FRM8", "DSD"),
    (8, b"AVI ", "AVI"),
    (0, b"FLV", "Flash video"),
    (0, b".RMF", "RealMedia"),
    (0, b"\x00\x00\x01\xba", "MPEG video"),
    (28, b"Speex", "Speex in Ogg"),
    (29, b"FLAC", "FLAC in Ogg"),
    (28, b"\x80theora", "Theora video in Ogg"),
)
# Parts of libsndfile's texts on a file that is nothing it knows; the last is of its MP3 decoder.
_NOT_KNOWN = ("not recognised", "samplerate", "not a regular file")


class AudioFile:
    """A recording, to be given to a turn, which then takes rate and encoding from it and is fed with it:

        async with client.conversation().turn(audio=AudioFile("speech.flac")) as turn:
            async for event in turn:
                ...

    Reads what libsndfile does (WAV, FLAC, Ogg, MP3 and many more); needs `pip install 'kibun[cli]'`. `channel`: the one
    to take, from 1; None: the mean of all. What is recorded above 48 kHz is resampled to 48 kHz.

    Raises AudioFileError for a file that is missing, cannot be read, holds no audio or less than its header says, and
    while it is read, for samples that are no audio (NaN, ±32768 as floats). With `allow_incomplete`, what is there is
    taken of a file that was cut off or damaged, and `incomplete` says what is not.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, channel: int | None = None, allow_incomplete: bool = False
    ) -> None:
        if not isinstance(path, str):  # which may hold surrogates: a name that is not UTF-8
            check_value("path", path, str | os.PathLike)
        check_value("channel", channel, int | None)
        check_value("allow_incomplete", allow_incomplete, bool)
        self.path: Path = Path(path)
        self.channel = channel
        self._allow_incomplete = allow_incomplete
        self._patch: tuple[int, bytes] | None = None
        # What is missing, "" if nothing is; damage within the file is found when `chunks` comes to it.
        self.incomplete: str = ""
        header = self._look()
        with closing(self._open()) as file:
            self._recorded_rate_hz = int(file.samplerate)
            self.channels: int = int(file.channels)
            # In the file as it is there; None where only reading it to its end tells.
            self._frames = int(file.frames) if 0 <= file.frames < 1 << 60 else None
            self._check(file)
            sixteen = file.subtype in _SIXTEEN_BITS_ARE_ENOUGH and (self.channels == 1 or channel is not None)
        # As sent, as is the encoding.
        self.sample_rate_hz: int = Mono(self._recorded_rate_hz, self.channels, channel).sample_rate_hz
        resampled = self.sample_rate_hz != self._recorded_rate_hz
        self.encoding: Encoding = "linear16" if sixteen and not resampled else "float32"
        self.duration_s: float | None = None if self._frames is None else self._frames / self._recorded_rate_hz
        # Of what `chunks` has read so far.
        self.comparison: ChannelComparison = ChannelComparison(self.channels)
        self._check_length(header)

    @property
    def name(self) -> str:
        """For people."""
        return shown(self.path)

    def chunks(self, chunk_ms: int = CHUNK_MS, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Samples]:
        """The samples of [start, end) in pieces of shape (n,), int16 or float32. Raises AudioFileError."""
        check_value("chunk_ms", chunk_ms, int)
        size = max(self._recorded_rate_hz * chunk_ms // 1000, 1)
        mono = Mono(self._recorded_rate_hz, self.channels, self.channel)
        first = round(start_s * self._recorded_rate_hz)
        last = None if end_s is None or end_s == float("inf") else round(end_s * self._recorded_rate_hz)
        for block in self._blocks(first, last, size):
            if self.channels > 1 and self.channel is None:
                self.comparison.add(block)
            yield mono.convert(block)
        if len(rest := mono.finish()):
            yield rest

    # -- looking at the file

    def _look(self) -> Header | None:
        """What the header says of the length; a length that is not true is put right for libsndfile."""
        try:
            status = self.path.stat()
            if stat.S_ISDIR(status.st_mode):
                raise self._error("is a folder: name a file in it, or use `kibun analyze`", "NOT_A_FILE")
            if not stat.S_ISREG(status.st_mode):
                raise self._error("is not a file but a pipe or a device", "NOT_A_FILE")
            if status.st_size == 0:
                raise self._error("is empty (0 bytes)", "NO_AUDIO")
            with self.path.open("rb") as file:
                header = read_header(file.read)
                self._read_length(header, file, status.st_size)
        except HeaderError as error:
            raise self._error(f"is damaged: it {error}; copy it again", "FILE_DAMAGED") from error
        except (OSError, ValueError) as error:
            raise self._error(*_why_not_opened(self.path, error)) from error
        return header

    def _read_length(self, header: Header | None, file: BinaryIO, file_size: int) -> None:
        if header is None:
            file.seek(0)
            if file.read(4) == b"OggS" and lacks_end_of_ogg(file, file_size):
                self.incomplete = "is cut off: its last page is missing, and maybe more"
            return
        available = max(file_size - header.start, 0)
        if header.size is None:
            untrue = not is_empty(file, header, file_size)
        else:
            file.seek(header.start + header.size)
            untrue = header.size > available or goes_on(file.read(MOST_JUNK + 1))
        if untrue and available and header.size_width:
            self._patch = (header.size_at, header.size_field(available))

    def _check_length(self, header: Header | None) -> None:
        available = self.path.stat().st_size - header.start if header else 0
        if header is not None and header.size is not None and header.size > available + _SLACK_BYTES:
            # What is missing in bytes, in seconds.
            left = max(available, 0) / header.size
            if self.duration_s and left:
                whole_s = self.duration_s / left
                self.incomplete = f"is cut off: {whole_s - self.duration_s:.1f} of {whole_s:.1f} s are missing"
            else:
                self.incomplete = "is cut off after its header"
        if self._frames == 0:
            raise self._error(f"{self.incomplete or 'holds no audio: its length is 0'}", "NO_AUDIO")
        if self.incomplete and not self._allow_incomplete:
            raise self._error(f"{self.incomplete}; copy it again, or allow_incomplete=True", "FILE_INCOMPLETE")

    def _check(self, file: Any) -> None:
        rate_hz, channel = self._recorded_rate_hz, self.channel
        if rate_hz < MIN_RATE_HZ:
            raise self._error(
                f"has a sample rate of {rate_hz} Hz, too low for the service, which takes {MIN_RATE_HZ} or more: "
                "record it at 16000",
                "SAMPLE_RATE_UNSUPPORTED",
            )
        if channel is not None and not 1 <= channel <= self.channels:
            raise self._error(
                f"has {self.channels} channel(s), none numbered {channel}: choose 1 to {self.channels}", "NO_CHANNEL"
            )

    def _open(self) -> Any:
        """A `soundfile.SoundFile`, to be closed by the caller. Raises AudioFileError."""
        if self.path.suffix.lower() in _RAW_SUFFIXES:
            raise self._error(
                "holds raw samples without a header that says what they are: "
                f"`kibun stream - --rate HZ --encoding linear16 < {quoted(self.path)}`",
                "FORMAT_UNKNOWN",
            )
        soundfile = import_soundfile()
        try:
            if self._patch is None:
                # As bytes, because a name need not be UTF-8.
                return _forward_only(os.fsencode(self.path) if os.name == "posix" else str(self.path))
            return _forward_only(Patched(self.path.open("rb"), *self._patch))
        except (soundfile.LibsndfileError, TypeError) as error:
            raise self._error(*_why_not_audio(self.path, str(error))) from error
        except OSError as error:
            raise self._error(*_why_not_opened(self.path, error)) from error

    # -- reading it

    def _blocks(self, first: int, last: int | None, size: int) -> Iterator[Samples]:
        """Frames [first, last) in blocks of shape (n, channels); what cannot be decoded is replaced by silence."""
        dtype = "int16" if self.encoding == "linear16" else "float32"
        damage = _Damage()
        position = first
        file = self._open()
        try:
            self._skip(file, first, size, dtype)
            while last is None or position < last:
                block = self._read(file, size if last is None else min(size, last - position), dtype)
                if block is not None and len(block):
                    if fault := unusable(block, position / self._recorded_rate_hz):
                        raise self._error(*fault)
                    position += len(block)
                    yield block
                    continue
                if block is not None and self._is_at_end(position):
                    break
                damage.note(position)
                file.close()
                gap, file = self._find_next(position, last, size, dtype)
                damage.lost += gap
                position += gap
                if file.closed:
                    break
                for start in range(0, gap, size):
                    yield np.zeros((min(size, gap - start), self.channels), dtype)
        finally:
            file.close()
        if damage.at is not None:
            self._report(damage.at, damage.lost)

    def _read(self, file: Any, count: int, dtype: str) -> Samples | None:
        """Up to `count` frames, none at the end; None where they cannot be decoded."""
        try:
            block: Samples = file.read(count, dtype=dtype, always_2d=True)
        except import_soundfile().LibsndfileError:
            return None
        return block

    def _skip(self, file: Any, count: int, size: int, dtype: str) -> None:
        """Moves to frame `count`: by seeking where the format can, else by reading up to it."""
        if not count:
            return
        with suppress(import_soundfile().LibsndfileError):
            file.seek(count)
            return
        while count > 0 and (block := self._read(file, min(size, count), dtype)) is not None and len(block):
            count -= len(block)

    def _is_at_end(self, position: int) -> bool:
        return self._frames is None or self._frames - position <= _SLACK_S * self._recorded_rate_hz

    def _find_next(self, position: int, last: int | None, size: int, dtype: str) -> tuple[int, Any]:
        """Goes on behind damage: how many frames are lost, and the file opened there; closed if nothing follows."""
        file = self._open()
        end = max(self._frames or position, position) if last is None else last
        gap = 0
        while position + gap + size <= end:
            with suppress(import_soundfile().LibsndfileError):
                file.seek(position + gap)
                block = self._read(file, size, dtype)
                if block is not None and len(block):
                    file.seek(position + gap)
                    return gap, file
                if block is not None:
                    break  # no damage: there is no more
            file.close()
            file = self._open()
            gap = gap + size if gap < _SMALL_STEPS * size else 2 * gap
        file.close()
        return end - position, file

    def _report(self, damaged_at: int, lost: int) -> None:
        at_s, lost_s = damaged_at / self._recorded_rate_hz, lost / self._recorded_rate_hz
        if self.duration_s is None:
            self.incomplete = f"is damaged: what follows {at_s:.1f} s cannot be read"
        elif lost:
            self.incomplete = (
                f"is damaged: from {at_s:.1f} s on, {lost_s:.1f} of {self.duration_s:.1f} s cannot be read"
            )
        else:
            self.incomplete = f"is damaged at {at_s:.1f} s"
        if not self._allow_incomplete:
            raise self._error(f"{self.incomplete}; copy it again, or allow_incomplete=True", "FILE_INCOMPLETE")

    def _error(self, problem: str, reason: str) -> AudioFileError:
        return AudioFileError(shown(self.path), problem, ErrorDetails(reason=reason))


def import_soundfile() -> Any:
    """The package soundfile, which the base install does not have."""
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading audio files needs: pip install 'kibun[cli]'", name=error.name) from None
    except OSError as error:  # the package is there, the library below it is not
        raise KibunError(
            f"soundfile cannot load libsndfile ({error}): install it, e.g. `apt-get install libsndfile1`",
            ErrorDetails(reason="LIBSNDFILE_MISSING"),
        ) from error
    return soundfile


def shown(path: str | os.PathLike[str]) -> str:
    """A path for people: what is no text, and characters that are no print, as escapes."""
    return printable(as_text(path))


def as_text(path: str | os.PathLike[str]) -> str:
    """A path as text that can be written anywhere: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as a shell takes it."""
    text = shown(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def foreign_format(head: bytes) -> str:
    """Name of a format that is not read here, of a file that begins with `head` (64 bytes); "" if it is none."""
    return next((name for at, magic, name in _FOREIGN if head[at : at + len(magic)] == magic), "")


def conversion(path: str | os.PathLike[str]) -> str:
    """The command that makes a file that can be read of one that ffmpeg reads."""
    source = Path(path)
    target = source.with_name(f"{source.stem}{'-new' if source.suffix == '.flac' else ''}.flac")
    return f"`ffmpeg -i {quoted(source)} -vn {quoted(target)}`"


def _why_not_audio(path: Path, reason: str) -> tuple[str, str]:
    """What is wrong with a file that libsndfile refused, with the reason's name."""
    with path.open("rb") as file:
        head = file.read(64)
    detail = reason.split(": ", 1)[-1].strip(" .:")
    if name := foreign_format(head):
        return f"is {name}, which is not read here: convert it, {conversion(path)}", "FORMAT_UNSUPPORTED"
    if head[:4] in (b"RIFF", b"RIFX", b"RF64"):
        why = "" if "Internal error" in detail else f" ({detail})"
        return (
            f"is damaged, or a WAV file of a kind that is not read here{why}: convert it, {conversion(path)}",
            "FORMAT_UNSUPPORTED",
        )
    if any(words in reason for words in _NOT_KNOWN):
        return (
            f"is not audio that can be read here ({READABLE}): if it is audio, convert it, {conversion(path)}",
            "FORMAT_UNKNOWN",
        )
    return f"is damaged and cannot be read ({detail}): copy it again", "FILE_DAMAGED"


def _why_not_opened(path: Path, error: Exception) -> tuple[str, str]:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if path.is_symlink():
            return f"is a link to {shown(path.readlink())}, which does not exist", "NO_SUCH_FILE"
        return "does not exist", "NO_SUCH_FILE"
    if isinstance(error, PermissionError):
        return "may not be read: its permissions forbid it", "NOT_PERMITTED"
    if getattr(error, "errno", None) == errno.ELOOP:
        return "is a link that leads back to itself", "NO_SUCH_FILE"
    return f"cannot be opened ({getattr(error, 'strerror', None) or error})", "FILE_UNREADABLE"


@dataclass
class _Damage:
    """Where a file could not be decoded for the first time, and how many frames are lost in all."""

    at: int | None = None
    lost: int = 0

    def note(self, position: int) -> None:
        self.at = position if self.at is None else self.at


def _forward_only(source: "bytes | str | Patched") -> Any:
    """An open `SoundFile` that does not seek after each read: some formats cannot, others not to every place."""

    class Forward(import_soundfile().SoundFile):  # type: ignore[misc]
        def seekable(self) -> bool:
            return False

        def close(self) -> None:
            super().close()
            if isinstance(source, Patched):
                source.close()

    try:
        return Forward(source)
    except BaseException:
        if isinstance(source, Patched):
            source.close()
        raise
