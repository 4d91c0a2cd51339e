"""The frames of a frozen trunk, computed once and cached on disk: they are most of an epoch's forward.

    ROOT/TRUNK/AUDIO.float32      (T, H) little-endian, nothing else in the file

TRUNK is a digest of everything that turns audio into frames: the trunk's weights and geometry, the normalisation, the
stored precision. AUDIO is one of the samples. So no entry can be stale: other weights and other audio have other
names.

An entry is written to a temporary file, flushed to the disk and renamed: a kill leaves it whole or absent. Its size is
known from the audio's length and checked before use. Any number of runs may read and fill one folder at once.
"""

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kibun.models.building.checksum import trunk_checksum
from kibun.models.bundle import KibunModel
from kibun.models.encoder_settings import frame_count
from kibun.models.files import written_atomically
from kibun.models.frames import Frames
from kibun.models.hubert import architecture
from kibun.training.progress import Progress
from kibun.training.runs.config import ConfigError, RunConfig

FORMAT = 1  # of an entry, and of what the digests are made of
AUTO = "trunk-cache"  # folder beside the run's: runs of one experiment, or of one model, share it
PART_LIFE_S = 3600.0  # a file that has been unfinished for longer was left by a kill
SPARE = 1.1  # of what the entries need; checkpoints and bundle also need space


@dataclasses.dataclass(frozen=True)
class Sound:
    """The key of an entry: a digest of an utterance's samples, and how many of them the model is given."""

    digest: str
    samples: int

    @classmethod
    def of(cls, stored: "np.typing.NDArray[np.int16]", min_samples: int) -> "Sound":
        """stored: (N,) as read; shorter utterances are padded to `min_samples`, which the trunk's geometry gives."""
        digest = hashlib.sha256(np.ascontiguousarray(stored, "<i2").data).hexdigest()[:32]
        return cls(digest, max(len(stored), min_samples))


class TrunkCache:
    """The frames of one trunk; `read` and `write` entries."""

    def __init__(self, root: Path, kibun: KibunModel, dtype: str = "float32") -> None:
        """root: the folder of all caches. dtype: "float32", or "float16" in half the space, rounded to 11 bits."""
        self._hubert = kibun.config.hubert_config
        self._dtype = np.dtype(dtype).newbyteorder("<")
        identity = {
            "format": FORMAT,
            "weights": trunk_checksum(kibun),
            "geometry": architecture(self._hubert),
            "layers": kibun.config.trunk_layers,
            "normalised": kibun.config.do_normalize,
            "dtype": dtype,
        }
        self.folder = root / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def file(self, sound: Sound) -> Path:
        """Where the frames of this sound are, or would be."""
        return self.folder / f"{sound.digest}.{self._dtype.name}"

    def size(self, sound: Sound) -> int:
        """Bytes of its entry."""
        return frame_count(self._hubert, sound.samples) * int(self._hubert.hidden_size) * self._dtype.itemsize

    def has(self, sound: Sound) -> bool:
        """Whether its entry is there, whole."""
        try:
            return self.file(sound).stat().st_size == self.size(sound)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def read(self, sound: Sound) -> Tensor:
        """(T, H) float32. Raises ConfigError where the entry is gone or cut short."""
        try:
            values = np.fromfile(self.file(sound), self._dtype)
        except OSError as error:
            raise ConfigError(f"{self.file(sound)}: cannot be read ({error.strerror}); start the run again") from error
        if values.nbytes != self.size(sound):
            raise ConfigError(f"{self.file(sound)}: is cut short; remove it and start the run again")
        return torch.from_numpy(values.astype(np.float32, copy=False).reshape(-1, self._hubert.hidden_size))

    def write(self, sound: Sound, frames: Tensor) -> None:
        """frames (T, H). Raises ConfigError for frames that are not finite, or too large for the stored precision."""
        with np.errstate(over="ignore"):
            values = frames.detach().float().cpu().numpy().astype(self._dtype)
        if not np.isfinite(values).all():
            raise ConfigError(
                f"the trunk's frames do not fit into {self._dtype.name}: set training.trunk_cache_dtype = 'float32',"
                " and if they are that already, the weights or the audio hold NaN or infinity"
            )
        with written_atomically(self.file(sound), fsync=True) as draft:
            draft.write_bytes(values.tobytes())


def fill(
    cache: TrunkCache,
    kibun: KibunModel,
    sounds: Sequence[tuple[Sound, Callable[[], Tensor]]],
    *,
    share: tuple[int, int] = (0, 1),
    ready: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> None:
    """Compute what is missing, each utterance alone, in float32 on the model's device.

    Args:
        sounds: utterances, each with a function that returns its waveform (N,).
        share: (k, n): this process is number k of n that fill together.
        ready: called when the missing entries are known, before any is written: a barrier of the processes.
        progress: shows how much disk the entries take, and how far they are.

    Raises:
        ConfigError: there is too little space on the disk, or no folder can be made; nothing was written.
    """
    missing = list({sound: wave for sound, wave in sounds if not cache.has(sound)}.items())
    progress = progress or Progress(shown=False)
    _check_disk(cache, {sound for sound, _ in sounds}, {sound for sound, _ in missing}, progress.line)
    ready()
    if not (mine := missing[share[0] :: share[1]]):
        return
    with progress.stage("frames of the trunk", len(mine)) as stage:
        for sound, wave in mine:
            # Not in inference mode: the very call that training would make, so that the bits are the same.
            frames = kibun.encode([wave().to(kibun.device)])
            try:
                cache.write(sound, frames.hidden[0])
            except OSError as error:
                raise ConfigError(f"{cache.folder}: {error.strerror}; {_FIX}") from error
            stage.advance()


def padded(rows: Sequence[Tensor]) -> Frames:
    """B tensors (T_i, H) as a batch."""
    return Frames(torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), tuple(len(row) for row in rows))


def cache_root(config: RunConfig, run: Path) -> Path:
    """The folder of a run's cache: that of `training.trunk_cache`, or with "auto" one beside the run's."""
    wanted = config.training.trunk_cache
    return run.resolve().parent / AUTO if wanted == "auto" else Path(wanted)


def cache_off_reason(config: RunConfig) -> str | None:
    """Why a run does not cache the frames of its trunk; None where it does."""
    training = config.training
    if training.trunk_cache == "off":
        return "training.trunk_cache is 'off'"
    if config.model.freeze == "none":
        return f"model.freeze is {config.model.freeze!r}: the trunk learns, so its frames change at every step"
    if training.augment != "none":
        return f"training.augment is {training.augment!r}: every epoch gets other audio"
    if training.crop_seconds is not None:
        return "training.crop_seconds is set: every epoch gets other pieces of the utterances"
    return None


_FIX = (
    'free space, name a folder on another disk (training.trunk_cache = "/disk/folder"), store half as much'
    " (training.trunk_cache_dtype = 'float16'), or compute the frames every epoch (training.trunk_cache = 'off')"
)


def _check_disk(cache: TrunkCache, wanted: set[Sound], missing: set[Sound], report: Callable[[str], None]) -> None:
    """Report the space that the cache will take. Raises ConfigError where the disk has less."""
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"training.trunk_cache: {cache.folder} cannot be made ({error.strerror}); {_FIX}") from error
    for left in cache.folder.glob("*.part"):
        try:
            if time.time() - left.stat().st_mtime > PART_LIFE_S:
                left.unlink()
        except FileNotFoundError:
            pass  # another run was faster
    whole, needed = sum(map(cache.size, wanted)), sum(map(cache.size, missing))
    free = shutil.disk_usage(cache.folder).free
    report(
        f"frames of the frozen trunk: {len(wanted):,} utterances, {_gigabytes(whole)} in {cache.folder};"
        f" {_gigabytes(needed)} to be computed, {_gigabytes(free)} free"
    )
    if needed * SPARE > free:
        raise ConfigError(
            f"{cache.folder}: the frames of {len(missing):,} utterances need {_gigabytes(needed * SPARE)}, the disk has"
            f" {_gigabytes(free)}; {_FIX}"
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
