"""A microphone as a source of chunks, captured at the device's own rate: the server resamples."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

from kibun.client.commands.failure import CommandError, UsageError
from kibun.client.mono import MAX_RATE_HZ, MIN_RATE_HZ

# Audio that may wait for the network; beyond it the oldest is dropped, and counted.
_QUEUE_S = 10.0


class Microphone:
    """An async context manager and iterator of int16 chunks (bytes, mono). `device`: number, part of a name, or ""."""

    def __init__(self, device: str, chunk_ms: int) -> None:
        self._sounddevice = _import_sounddevice()
        self.index, self.name, rate_hz = _find_input(self._sounddevice, device)
        self.sample_rate_hz = min(rate_hz, MAX_RATE_HZ)
        if self.sample_rate_hz < MIN_RATE_HZ:
            raise UsageError(f"{self.name} records at {rate_hz} Hz; the service takes {MIN_RATE_HZ} to {MAX_RATE_HZ}")
        self._chunk_samples = self.sample_rate_hz * chunk_ms // 1000
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=max(round(_QUEUE_S * 1000 / chunk_ms), 1))
        self._stream: Any = None
        self.dropped_chunks = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()

        def on_audio(data: Any, frames: int, time: Any, status: Any) -> None:
            # Runs in PortAudio's thread.
            loop.call_soon_threadsafe(self._offer, bytes(data))

        try:
            self._stream = self._sounddevice.RawInputStream(
                device=self.index,
                samplerate=self.sample_rate_hz,
                blocksize=self._chunk_samples,
                channels=1,
                dtype="int16",
                callback=on_audio,
            )
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            raise CommandError(f"cannot record from {self.name}: {error}: is it in use, or not permitted?") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.stop()
            self._stream.close()

    def stop(self) -> None:
        """Ends the iteration after what was recorded so far."""
        self._offer(None)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Chunks as they are recorded, until `stop`."""
        while (chunk := await self._chunks.get()) is not None:
            yield chunk

    def _offer(self, chunk: bytes | None) -> None:
        if self._chunks.full():
            self._chunks.get_nowait()
            self.dropped_chunks += 1
        self._chunks.put_nowait(chunk)


def input_devices(sounddevice: Any) -> list[tuple[int, str, int]]:
    """(number, name, default rate in Hz) of every device that records."""
    return [
        (index, str(device["name"]), int(device["default_samplerate"]))
        for index, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]


def _find_input(sounddevice: Any, wanted: str) -> tuple[int, str, int]:
    devices = input_devices(sounddevice)
    if not devices:
        raise CommandError(
            "no microphone was found: plug one in, or check the system's permissions; see `kibun doctor`"
        )
    if not wanted:
        default = sounddevice.default.device[0]
        return next((device for device in devices if device[0] == default), devices[0])
    if wanted.isdigit():
        matches = [device for device in devices if device[0] == int(wanted)]
    else:
        matches = [device for device in devices if wanted.lower() in device[1].lower()]
    if len(matches) == 1:
        return matches[0]
    listing = "\n".join(f"  mic:{index}  {name} ({rate_hz} Hz)" for index, name, rate_hz in devices)
    problem = "no microphone" if not matches else f"{len(matches)} microphones"
    raise UsageError(f"{problem} match{'es' if not matches else ''} mic:{wanted}; there are:\n{listing}")


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except OSError as error:  # the package is there, the library below it is not
        raise CommandError(f"{error}: install PortAudio, e.g. `apt-get install libportaudio2`") from error
    return sounddevice
