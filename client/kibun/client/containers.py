"""What the header of a recording says about its samples: where they begin, and how many bytes of them there are to be.

libsndfile takes a file that was cut off for a short one, and one whose length was never written (its writer was killed,
or wrote into a pipe) for an empty one. With what is found here the first is told, and the second read to its end.
"""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Literal

# A header that has not come to its samples after this many chunks is no header.
_MOST_CHUNKS = 1000
# What lies behind the samples is taken for more of them only where it is longer than this.
MOST_JUNK = 32_768
# How it begins where it is something else: a further chunk of the file, or a tag that another program put there.
_NO_SAMPLES = re.compile(rb"[A-Za-z0-9_ ]{4}|ID3|TAG")
# Lengths that writers into pipes put where they do not know better: 0, or about as much as 31 or 32 bits hold (SoX
# writes 0x7F000000 into AIFF).
_PLACEHOLDERS_32 = (
    range(1),
    range(0x7F000000, 0x7F000100),
    range(0x7FFFF000, 0x80000200),
    range(0xFFFFF000, 0x100000000),
)
# WAV's format tag and bits per sample -> libsndfile's name; others need a whole file to be decoded.
_WAV_SUBTYPES = {
    (1, 8): "PCM_U8",
    (1, 16): "PCM_16",
    (1, 24): "PCM_24",
    (1, 32): "PCM_32",
    (3, 32): "FLOAT",
    (3, 64): "DOUBLE",
    (6, 8): "ALAW",
    (7, 8): "ULAW",
}
_AU_SUBTYPES = {
    1: "ULAW",
    2: "PCM_S8",
    3: "PCM_16",
    4: "PCM_24",
    5: "PCM_32",
    6: "FLOAT",
    7: "DOUBLE",
    27: "ALAW",
}
_WAV_EXTENSIBLE = 0xFFFE
_W64_CHUNK = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the part of their ids that all chunks share

ByteOrder = Literal["little", "big"]
Read = Callable[[int], bytes]


@dataclass(frozen=True)
class SampleFormat:
    """Samples that can be decoded piece by piece, as they arrive."""

    sample_rate_hz: int
    channels: int
    # libsndfile's name, e.g. "PCM_16".
    subtype: str
    bytes_per_frame: int
    byte_order: ByteOrder = "little"


@dataclass(frozen=True)
class Header:
    """Where the samples are. `size`: their bytes as the header has it, None where its writer did not know."""

    start: int
    size: int | None
    # Where the size is written, its width in bytes and order, and what it counts besides the samples.
    size_at: int = 0
    size_width: int = 4
    byte_order: ByteOrder = "little"
    size_includes: int = 0
    # None: a codec that needs a whole file, or one that is not told here.
    format: SampleFormat | None = None

    def size_field(self, size: int) -> bytes:
        """The bytes that say that there are `size` bytes of samples."""
        largest = (1 << (8 * self.size_width)) - 1
        return min(size + self.size_includes, largest).to_bytes(self.size_width, self.byte_order)


class HeaderError(ValueError):
    """A header that ends before its samples begin, or says nothing about them; the text says what is wrong."""


def read_header(read: Read) -> Header | None:
    """Reads up to the first sample, forward only. None: not a container that is known here.

    `read(n)` gives the next n bytes, fewer only at the end. Raises HeaderError.
    """
    reader = _Reader(read)
    magic = reader.take(4)
    if magic in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        reader.take(4)
        return _wav(reader, "big" if magic == b"RIFX" else "little") if reader.take(4) == b"WAVE" else None
    if magic == b"FORM":
        reader.take(4)
        return _aiff(reader) if reader.take(4) in (b"AIFF", b"AIFC") else None
    if magic == b".snd":
        return _au(reader)
    if magic == b"caff":
        reader.take(4)
        return _caf(reader)
    if magic == b"riff":
        reader.take(36)
        return _w64(reader)
    if magic == b"NIST":
        return _nist(reader)
    return None


def is_empty(file: BinaryIO, header: Header, file_size: int) -> bool:
    """Whether a size of 0 is true: nothing, or nothing but further chunks, follows."""
    position = header.start
    while position + 8 <= file_size:
        file.seek(position)
        name, size = file.read(4), int.from_bytes(file.read(4), header.byte_order)
        if not re.fullmatch(rb"[A-Za-z0-9_ ]{4}", name):
            return False
        position += 8 + size + size % 2
    return position in (file_size, file_size + 1)


def goes_on(rest: bytes) -> bool:
    """Whether samples go on behind the last one that the header counts, as of a recorder that was killed; `rest`: at
    least the next MOST_JUNK + 1 bytes, fewer only at the end.
    """
    is_other = _NO_SAMPLES.match(rest) or _NO_SAMPLES.match(rest, 1)  # chunks begin at even places
    return len(rest) > MOST_JUNK and not is_other and any(rest)


class Patched:
    """A file in which some bytes read differently: as much of a file object as libsndfile asks for."""

    def __init__(self, file: BinaryIO, at: int, patch: bytes) -> None:
        self._file = file
        self._at = at
        self._patch = patch

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def read(self, count: int = -1) -> bytes:
        """As of a file; the patch lies over what is there."""
        start = self._file.tell()
        data = bytearray(self._file.read(count))
        first, last = max(self._at, start), min(self._at + len(self._patch), start + len(data))
        if first < last:
            data[first - start : last - start] = self._patch[first - self._at : last - self._at]
        return bytes(data)


def lacks_end_of_ogg(file: BinaryIO, file_size: int) -> bool:
    """Whether an Ogg stream breaks off: its last page does not say that it is the last, or is not whole."""
    file.seek(max(file_size - 2 * 65_536, 0))  # a page is at most this long
    tail = file.read()
    start = tail.rfind(b"OggS")
    page = tail[max(start, 0) :]
    if start < 0 or len(page) < 27:
        return start >= 0
    lengths = page[27 : 27 + page[26]]
    return not page[5] & 4 or len(page) < 27 + page[26] + sum(lengths)


class _Reader:
    """Counts what was read, and refuses an end in the middle."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self.position = 0

    def take(self, count: int) -> bytes:
        data = self._read(count)
        self.position += len(data)
        if len(data) < count:
            raise HeaderError(f"ends within its header, after {self.position} bytes")
        return data

    def number(self, width: int, byte_order: ByteOrder) -> int:
        return int.from_bytes(self.take(width), byte_order)

    def skip(self, count: int) -> None:
        while count > 0:
            count -= len(self.take(min(count, 65_536)))


def _known(size: int, width: int = 4) -> int | None:
    if width == 8:
        return None if size == 0 or size >= 1 << 62 else size
    return None if any(size in placeholder for placeholder in _PLACEHOLDERS_32) else size


def _wav(reader: _Reader, order: ByteOrder) -> Header:
    wide: tuple[int, int] | None = None  # where RF64 writes the size, and the size
    found: SampleFormat | None = None
    for _ in range(_MOST_CHUNKS):
        name = reader.take(4)
        size_at, size = reader.position, reader.number(4, order)
        if name == b"data":
            if wide is not None and size == 0xFFFFFFFF:
                return Header(reader.position, _known(wide[1], 8), wide[0], 8, order, format=found)
            return Header(reader.position, _known(size), size_at, 4, order, format=found)
        if name == b"ds64" and size >= 24:
            reader.skip(8)
            wide = (reader.position, reader.number(8, order))
            reader.skip(size - 16 + size % 2)
        elif name == b"fmt " and 16 <= size < 65_536:
            found = _wav_format(reader.take(size), order)
            reader.skip(size % 2)
        else:
            reader.skip(size + size % 2)
    raise HeaderError("has no samples in its first chunks")


def _wav_format(chunk: bytes, order: ByteOrder) -> SampleFormat | None:
    tag, channels, rate_hz, _bytes_per_second, bytes_per_frame, bits = struct.unpack(
        (">" if order == "big" else "<") + "HHIIHH", chunk[:16]
    )
    if tag == _WAV_EXTENSIBLE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], order)
    bits = bytes_per_frame * 8 // channels if channels else bits  # 20 bits lie in 24
    subtype = _WAV_SUBTYPES.get((tag, bits))
    return None if subtype is None else SampleFormat(rate_hz, channels, subtype, bytes_per_frame, order)


def _aiff(reader: _Reader) -> Header:
    for _ in range(_MOST_CHUNKS):
        name = reader.take(4)
        size_at, size = reader.position, reader.number(4, "big")
        if name == b"SSND":
            reader.take(8)
            known = _known(size)
            return Header(reader.position, None if known is None else max(known - 8, 0), size_at, 4, "big", 8)
        reader.skip(size + size % 2)
    raise HeaderError("has no samples in its first chunks")


def _au(reader: _Reader) -> Header:
    start = reader.number(4, "big")
    size_at, size = reader.position, reader.number(4, "big")
    encoding, rate_hz, channels = (reader.number(4, "big") for _ in range(3))
    reader.skip(start - reader.position)
    subtype = _AU_SUBTYPES.get(encoding)
    found = None
    if subtype is not None:
        width = {"ULAW": 1, "ALAW": 1, "PCM_S8": 1, "PCM_16": 2, "PCM_24": 3, "DOUBLE": 8}.get(subtype, 4)
        found = SampleFormat(rate_hz, channels, subtype, width * channels, "big")
    return Header(start, _known(size), size_at, 4, "big", format=found)


def _caf(reader: _Reader) -> Header:
    for _ in range(_MOST_CHUNKS):
        name = reader.take(4)
        size_at, size = reader.position, reader.number(8, "big")
        if name == b"data":
            reader.take(4)
            known = _known(size, 8)
            return Header(reader.position, None if known is None else max(known - 4, 0), size_at, 8, "big", 4)
        reader.skip(size)
    raise HeaderError("has no samples in its first chunks")


def _w64(reader: _Reader) -> Header:
    for _ in range(_MOST_CHUNKS):
        name = reader.take(16)
        size_at, size = reader.position, reader.number(8, "little")
        if name[:4] == b"data" and name[4:] == _W64_CHUNK:
            known = _known(size, 8)
            return Header(reader.position, None if known is None else max(known - 24, 0), size_at, 8, "little", 24)
        reader.skip(-(-size // 8) * 8 - 24)
    raise HeaderError("has no samples in its first chunks")


def _nist(reader: _Reader) -> Header | None:
    reader.take(4)
    start = reader.take(8).strip()
    if not start.isdigit():
        return None
    text = reader.take(int(start) - reader.position)
    fields = {}
    for name in ("sample_count", "sample_n_bytes", "channel_count"):
        match = re.search(rb"\b%s -i (\d+)" % name.encode(), text)
        fields[name] = int(match[1]) if match else 1 if name == "channel_count" else 0
    size = fields["sample_count"] * fields["sample_n_bytes"] * fields["channel_count"]
    return Header(int(start), size, size_width=0) if size else None
