"""Audio that can be read only once, from its start: standard input, named pipes, what a shell's <(…) gives."""

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kibun.client.audio_file import AudioFile, foreign_format, import_soundfile, shown
from kibun.client.commands.failure import UsageError
from kibun.client.containers import Header, HeaderError, SampleFormat, read_header
from kibun.client.errors import AudioFileError, ErrorDetails
from kibun.client.mono import MIN_RATE_HZ, ChannelComparison, Mono, Samples, unusable
from kibun.client.options import BYTES_PER_SAMPLE, Encoding
from kibun.client.pcm import CHUNK_MS

STANDARD_INPUT = Path("-")
_SUBTYPES = {"linear16": "PCM_16", "float32": "FLOAT", "mulaw": "ULAW", "alaw": "ALAW"}
# How formats begin that are read to their end before they are decoded.
_WHOLE = (b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b"caff", b"NIST", b"ID3", b".snd")
_MP3_FRAMES = (b"\xfb", b"\xfa", b"\xf3", b"\xf2", b"\xe3", b"\xe2")
_LONGEST_HEADER = 1 << 20
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class RawSamples:
    """What samples without a header are; little-endian."""

    sample_rate_hz: int
    encoding: Encoding = "linear16"
    channels: int = 1

    def format(self) -> SampleFormat:
        width = BYTES_PER_SAMPLE[self.encoding]
        return SampleFormat(self.sample_rate_hz, self.channels, _SUBTYPES[self.encoding], width * self.channels)


class PipedAudio:
    """Audio from a pipe, as it arrives: WAV and AU (also of unknown length), or raw samples.

    Other formats are read to their end first, as their decoders want to seek. Blocks until the header is there. Raises
    AudioFileError, UsageError.
    """

    def __init__(self, path: Path, raw: RawSamples | None = None, channel: int | None = None) -> None:
        self.path = path
        self.channel = channel
        self.incomplete = ""
        try:
            self._file = 0 if path == STANDARD_INPUT else os.open(path, os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(error) from error
        if os.isatty(self._file):
            raise UsageError(
                "standard input is the terminal: send audio into it, e.g. `arecord -f S16_LE -r 16000 -t wav | kibun "
                "stream -`"
            )
        self._head = b""
        self._whole: AudioFile | None = None
        self._left: int | None = None
        header = self._read_header()
        if raw is not None:
            if header is not None:
                raise UsageError(
                    f"{self.name} begins with a header, which says itself what the samples are: leave out --rate, "
                    "--encoding and --channels"
                )
            found: SampleFormat | None = raw.format()
        else:
            found = header.format if header else None
            if header is not None and found is not None:
                self._left = header.size
                self._head = self._head[header.start :]
        self._declared = self._left
        if found is None:
            self._whole = self._spool()
            self._recorded_rate_hz, self.channels = self._whole.sample_rate_hz, self._whole.channels
            self.sample_rate_hz = self._whole.sample_rate_hz
            self.encoding: Encoding = self._whole.encoding
            self.comparison = self._whole.comparison
            return
        self._format = found
        self._recorded_rate_hz, self.channels = found.sample_rate_hz, found.channels
        self._check()
        self.sample_rate_hz = Mono(self._recorded_rate_hz, self.channels, channel).sample_rate_hz
        sixteen = found.subtype in ("PCM_16", "PCM_U8", "PCM_S8", "ULAW", "ALAW") and (
            self.channels == 1 or channel is not None
        )
        resampled = self.sample_rate_hz != self._recorded_rate_hz
        self.encoding = "linear16" if sixteen and not resampled else "float32"
        self.comparison = ChannelComparison(self.channels)

    def chunks(self, chunk_ms: int = CHUNK_MS, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Samples]:
        """What arrives, in pieces of shape (n,) of at most `chunk_ms`, int16 or float32; all of it, and once."""
        if self._whole is not None:
            yield from self._whole.chunks(chunk_ms)
            self.incomplete = self._whole.incomplete
            return
        mono = Mono(self._recorded_rate_hz, self.channels, self.channel)
        for block in self._blocks(max(self._recorded_rate_hz * chunk_ms // 1000, 1)):
            if self.channels > 1 and self.channel is None:
                self.comparison.add(block)
            if len(converted := mono.convert(block)):
                yield converted
        if len(rest := mono.finish()):
            yield rest

    @property
    def name(self) -> str:
        """For people."""
        return "standard input" if self.path == STANDARD_INPUT else shown(self.path)

    # -- helpers

    def _blocks(self, most_frames: int) -> Iterator[Samples]:
        width = self._format.bytes_per_frame
        waiting, self._head = self._head, b""
        frames = 0
        while True:
            if self._left is not None:
                waiting = waiting[: self._left]
            whole = min(len(waiting) // width, most_frames) * width
            if whole:
                block = self._decode(waiting[:whole])
                if fault := unusable(block, frames / self._recorded_rate_hz):
                    raise self._error(*fault)
                frames += len(block)
                yield block
                waiting = waiting[whole:]
                if self._left is not None:
                    self._left -= whole
                continue
            if self._left is not None and self._left < width:
                return
            data = self._take(most_frames * width)
            if not data:
                break
            waiting += data
        if self._left and self._declared:
            rate = self._recorded_rate_hz * width
            self.incomplete = f"is cut off: {self._left / rate:.1f} of {self._declared / rate:.1f} s are missing"

    def _decode(self, data: bytes) -> Samples:
        block, _rate_hz = import_soundfile().read(
            io.BytesIO(data),
            dtype="int16" if self.encoding == "linear16" else "float32",
            always_2d=True,
            format="RAW",
            subtype=self._format.subtype,
            channels=self.channels,
            samplerate=self._recorded_rate_hz,
            endian=self._format.byte_order.upper(),
        )
        samples: Samples = np.asarray(block)
        return samples

    def _take(self, most: int) -> bytes:
        """What comes next, at least a byte of it; nothing at the end."""
        try:
            return os.read(self._file, most)
        except OSError as error:
            raise self._unreadable(error) from error

    def _read_header(self) -> Header | None:
        def read(count: int) -> bytes:
            data = b""
            while len(data) < count and len(self._head) < _LONGEST_HEADER:
                piece = self._take(count - len(data))
                if not piece:
                    break
                data += piece
                self._head += piece
            return data

        try:
            header = read_header(read)
            if header is None:
                read(64 - len(self._head))
            return header
        except HeaderError as error:
            if not self._head:
                raise self._error("gave no audio: it ended at once", "NO_AUDIO") from error
            if len(self._head) < 12:
                return None
            raise self._error(f"is damaged: it {error}", "FILE_DAMAGED") from error

    def _spool(self) -> AudioFile:
        """Reads a format that libsndfile wants as a file to its end."""
        head = self._head[:4]
        if name := foreign_format(self._head):
            raise self._error(
                f"is {name}, which is not read here: put `ffmpeg -i - -f wav -` before it", "FORMAT_UNSUPPORTED"
            )
        if not (head.startswith(_WHOLE) or (head[:1] == b"\xff" and head[1:2] in _MP3_FRAMES)):
            raise self._error(
                "has no header that says what the samples are: add --rate HZ (and --encoding, --channels), or let it "
                "send WAV, e.g. `ffmpeg … -f wav -`",
                "FORMAT_UNKNOWN",
            )
        self._folder = tempfile.TemporaryDirectory(prefix="kibun-")
        path = Path(self._folder.name, "audio")
        with path.open("wb") as copy:
            copy.write(self._head)
            while data := self._take(_COPY_BYTES):
                copy.write(data)
        try:
            return AudioFile(path, channel=self.channel, allow_incomplete=True)
        except AudioFileError as error:
            raise self._error(error.problem, error.reason) from error

    def _check(self) -> None:
        if self._recorded_rate_hz < MIN_RATE_HZ:
            raise self._error(
                f"has a sample rate of {self._recorded_rate_hz} Hz; the service takes {MIN_RATE_HZ} or more",
                "SAMPLE_RATE_UNSUPPORTED",
            )
        if self.channels < 1 or (self.channel is not None and self.channel > self.channels):
            raise self._error(f"has {self.channels} channel(s), none numbered {self.channel}", "NO_CHANNEL")

    def _unreadable(self, error: OSError) -> AudioFileError:
        return self._error(f"cannot be read: {error.strerror}", "FILE_UNREADABLE")

    def _error(self, problem: str, reason: str) -> AudioFileError:
        return AudioFileError(self.name, problem, ErrorDetails(reason=reason))


def is_pipe(path: Path) -> bool:
    """Whether a path names something that can be read only once, from its start."""
    if path == STANDARD_INPUT:
        return True
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
