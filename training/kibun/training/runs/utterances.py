"""From items to training batches: the same utterances, pieces and noise at a step, however often a run was interrupted.

The order of all batches of a run is fixed by its seed, and everything random about an utterance by (seed, epoch,
utterance). So a run that is killed and resumed, or spread over processes, gets the same input as an undisturbed one.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kibun.models.bundle import KibunModel
from kibun.models.frames import Frames
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.audio.augment import ROOMS, Augment, AugmentOptions
from kibun.training.audio.reading import load_audio
from kibun.training.corpora.manifest import Item
from kibun.training.runs.trunk_cache import Sound, TrunkCache, padded

Key = tuple[int, int]  # (epoch, index of the utterance)
Augmentation = Callable[[Tensor, tuple[int, ...]], Tensor]  # (N,), key -> (M,)
MEGABATCH = 50  # batches that are sorted by length together


@dataclasses.dataclass(frozen=True)
class Example:
    """One utterance for training: its labels, the traits it is conditioned on (5,), and its input.

    audio: (N,) float32; or else frames: (T, H) float32, the frozen trunk's output.
    """

    item: Item
    condition: NDArray[np.float32]
    audio: Tensor | None = None
    frames: Tensor | None = None


class Utterances:
    """The utterances of a split. Audio stays in memory as int16 once read (115 MB an hour).

    After `use_cache`, examples have the frames of a frozen trunk in place of audio, and `encode` reads them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        condition: NDArray[np.float32],
        *,
        min_samples: int,
        seed: int = 0,
        crop_seconds: float | None = None,
        augmentation: Augmentation | None = None,
        condition_at: Callable[[int, int], NDArray[np.float32]] | None = None,
    ) -> None:
        """condition: (N, 5) traits. condition_at: those of an epoch and an utterance (5,), in training."""
        self.items = list(items)
        self.condition = condition
        self.min_samples = min_samples
        self.seed = seed
        self.crop_samples = None if crop_seconds is None else round(crop_seconds * SAMPLE_RATE_HZ)
        self.augmentation = augmentation
        self.condition_at = condition_at
        self._cache: dict[int, NDArray[np.int16]] = {}
        self._sounds: list[Sound] | None = None
        self._frames: TrunkCache | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: Key) -> Example:
        epoch, index = key
        condition = self.condition[index] if self.condition_at is None else self.condition_at(epoch, index)
        if self._frames is not None:
            return Example(self.items[index], condition, frames=self._frames.read(self.sounds()[index]))
        audio = torch.from_numpy(self.read(index))  # (N,)
        if self.crop_samples is not None and len(audio) > self.crop_samples:
            rng = np.random.default_rng((1, self.seed, epoch, index))
            start = int(rng.integers(0, len(audio) - self.crop_samples + 1))
            audio = audio[start : start + self.crop_samples]
        if self.augmentation is not None:
            audio = self.augmentation(audio, (self.seed, epoch, index))
        return Example(self.items[index], condition, audio=self._long_enough(audio))

    def read(self, index: int) -> NDArray[np.float32]:
        """(N,) float32 audio of an utterance as it is, long enough for the model."""
        if index not in self._cache:
            self._cache[index] = self._stored(index)
        return self._padded(self._cache[index])

    def sounds(self) -> list[Sound]:
        """The cache key of each utterance; the first call reads all audio and leaves none of it in memory."""
        if self._sounds is None:
            self._sounds = [Sound.of(self._stored(index), self.min_samples) for index in range(len(self))]
        return self._sounds

    def to_cache(self) -> list[tuple[Sound, Callable[[], Tensor]]]:
        """The arguments of `trunk_cache.fill`; audio read for it does not stay in memory."""
        return [
            (sound, lambda index=index: torch.from_numpy(self._padded(self._stored(index))))  # type: ignore[misc]
            for index, sound in enumerate(self.sounds())
        ]

    def use_cache(self, cache: TrunkCache) -> None:
        """From now on take frames from this cache, which has those of all utterances."""
        self._frames = cache
        self._cache.clear()

    def encode(self, kibun: KibunModel, rows: Sequence[int]) -> Frames:
        """Frames (B, T, H) of some utterances as they are, on the model's device: cached ones, else computed."""
        if self._frames is not None:
            return padded([self._frames.read(self.sounds()[row]).to(kibun.device) for row in rows])
        return kibun.encode([torch.from_numpy(self.read(row)).to(kibun.device) for row in rows])

    def sizes(self) -> NDArray[np.int64]:
        """(N,) samples of each utterance: from the manifest where it has them, else read."""
        return np.array(
            [
                round(item.seconds * SAMPLE_RATE_HZ) if item.seconds else len(self.read(index))
                for index, item in enumerate(self.items)
            ]
        )

    def _stored(self, index: int) -> NDArray[np.int16]:
        # Two bytes a sample: full scale is 32768, so what was recorded with 16 bits comes back bit for bit.
        audio = np.round(load_audio(self.items[index].path) * 32768.0)
        return np.clip(audio, -32768, 32767).astype(np.int16)

    def _padded(self, stored: NDArray[np.int16]) -> NDArray[np.float32]:
        audio = stored.astype(np.float32) / 32768.0
        return np.pad(audio, (0, max(0, self.min_samples - len(audio))))

    def _long_enough(self, audio: Tensor) -> Tensor:
        return torch.nn.functional.pad(audio, (0, max(0, self.min_samples - len(audio))))


class BucketBatches:
    """All micro-batches of a run, epoch after epoch, of utterances of similar length; what is left over is dropped.

    Each epoch is shuffled, cut into megabatches, each of these sorted by length and cut into batches, and the batches
    shuffled.
    """

    def __init__(self, sizes: NDArray[np.int64], batch_size: int, *, epochs: int, seed: int, per_step: int) -> None:
        """per_step: micro-batches of one optimizer step over all processes; each epoch is a whole number of steps."""
        self.sizes, self.batch_size, self.epochs, self.seed = sizes, batch_size, epochs, seed
        self.per_step = per_step
        self.steps_per_epoch = len(sizes) // batch_size // per_step
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(sizes)} training utterances do not fill one batch of {batch_size * per_step}:"
                " lower training.batch, or add utterances"
            )
        self._epoch = functools.lru_cache(maxsize=1)(self._draw_epoch)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch * self.per_step

    def __iter__(self) -> Iterator[list[Key]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> list[Key]:
        epoch, at = divmod(index, self.steps_per_epoch * self.per_step)
        return [(epoch, int(row)) for row in self._epoch(epoch)[at]]

    def _draw_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng((2, self.seed, epoch))
        order = rng.permutation(len(self.sizes))[: self.steps_per_epoch * self.per_step * self.batch_size]
        mega = self.batch_size * MEGABATCH
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), mega):
            some = order[start : start + mega]
            some = some[np.argsort(self.sizes[some], kind="stable")]
            batches += list(some.reshape(-1, self.batch_size))
        return [batches[index] for index in rng.permutation(len(batches))]


class ConversationBatches:
    """All micro-batches of a run, epoch after epoch, each of utterances of one conversation profile.

    An epoch has as many of a profile as its utterances fill. Each is a random part of them: half of them as large as it
    may be, half of random size, as a service has heard few utterances at first. What is left over is dropped.
    """

    def __init__(
        self, profiles: Sequence[Sequence[int]], largest: int, *, epochs: int, seed: int, per_step: int
    ) -> None:
        """profiles: rows of each. largest: most utterances of a micro-batch. per_step: as of `BucketBatches`."""
        self.profiles, self.largest, self.epochs, self.seed, self.per_step = profiles, largest, epochs, seed, per_step
        self._owners = [at for at, rows in enumerate(profiles) for _ in range(-(-len(rows) // largest))]
        self.steps_per_epoch = len(self._owners) // per_step
        if not self.steps_per_epoch:
            raise ValueError(
                f"{len(self._owners)} parts of training conversations do not fill a step of {per_step}: lower"
                " training.batch / training.micro_batch or training.conversation_utterances, or add conversations"
            )
        self._epoch = functools.lru_cache(maxsize=1)(self._draw_epoch)

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch * self.per_step

    def __getitem__(self, index: int) -> list[Key]:
        epoch, at = divmod(index, self.steps_per_epoch * self.per_step)
        return [(epoch, row) for row in self._epoch(epoch)[at]]

    def _draw_epoch(self, epoch: int) -> list[list[int]]:
        rng = np.random.default_rng((4, self.seed, epoch))
        parts = []
        for owner in rng.permutation(self._owners):
            rows = self.profiles[owner]
            most = min(len(rows), self.largest)
            size = most if rng.random() < 0.5 else int(rng.integers(1, most + 1))
            parts.append([int(row) for row in rng.permutation(rows)[:size]])
        return parts


def collate(examples: Sequence[Example], dimension: str | None, *, traits: bool) -> dict[str, Any]:
    """The arguments of `TaskModel.forward`. dimension, traits: the labels that go with them."""
    batch: dict[str, Any] = {
        "input_values": [example.audio for example in examples if example.audio is not None],  # B x (N_i,), or none
        "frames": [example.frames for example in examples if example.frames is not None],  # none, or B x (T_i, H)
        "texts": [example.item.text for example in examples],
        "condition": torch.from_numpy(np.stack([example.condition for example in examples])),  # (B, 5)
    }
    if dimension is not None:
        batch["emotion"] = torch.tensor([getattr(example.item, dimension) for example in examples])  # (B,)
    if traits:
        batch["traits"] = torch.tensor([example.item.traits for example in examples])  # (B, 5)
    return batch


def make_augmentation(name: str) -> Augmentation | None:
    """The augmentation of `training.augment`; None for "none"."""
    if name == "none":
        return None
    augment = Augment(ROOMS if name == "rooms" else AugmentOptions())
    return lambda audio, key: augment(audio, key=key)
