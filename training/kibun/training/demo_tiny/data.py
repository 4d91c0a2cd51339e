"""From a manifest to training batches: audio in memory, a few utterances of each of several speakers per batch."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.audio.reading import load_audio
from kibun.training.audio.rooms import Augment
from kibun.training.corpora.manifest import Item
from kibun.training.demo_tiny.pairs import draw_change, make_pair

Example = tuple[np.ndarray, Item]  # (N,) int16


class Corpus(Dataset[Example]):
    """The utterances of one split, decoded once and kept as int16 (32 kB a second)."""

    def __init__(self, items: Sequence[Item], min_seconds: float = 1.0) -> None:
        pairs = [(as_int16(load_audio(item.path)), item) for item in items]
        self.examples = [pair for pair in pairs if len(pair[0]) >= min_seconds * SAMPLE_RATE_HZ]
        self.by_speaker: dict[str, list[int]] = defaultdict(list)
        for index, (_audio, item) in enumerate(self.examples):
            self.by_speaker[item.speaker].append(index)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def as_int16(audio: np.ndarray) -> np.ndarray:
    """(N,) float in ±1 -> (N,) int16; what was decoded from 16 bits comes out as it was."""
    return np.clip(np.round(audio * 32768.0), -32768, 32767).astype(np.int16)


class SpeakerBatches(Sampler[list[int]]):
    """Batches of ``per_speaker`` utterances of each of ``speakers`` speakers, next to each other; without end.

    Within a speaker the batch contrasts manner; between speakers it contrasts traits; and the conversation head gets
    a short conversation of each.
    """

    def __init__(self, corpus: Corpus, speakers: int, per_speaker: int, seed: int) -> None:
        self.pools = [pool for pool in corpus.by_speaker.values() if len(pool) >= per_speaker]
        if len(self.pools) < speakers:
            raise ValueError(
                f"{len(self.pools)} speakers have {per_speaker} utterances or more, a batch needs {speakers}: "
                "render more speakers or lower the number per batch"
            )
        self.speakers, self.per_speaker = speakers, per_speaker
        self.rng = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            chosen = self.rng.choice(len(self.pools), self.speakers, replace=False)
            picks = [self.rng.choice(self.pools[index], self.per_speaker, replace=False) for index in chosen]
            yield [int(index) for pick in picks for index in pick]


@dataclasses.dataclass
class CropCollator:
    """Cuts every utterance of a batch to one random length and augments them together.

    One length for all means that no padding is needed, and that duration says nothing. Many get up to half a second
    of silence before and after, as a voice activity detector leaves it; so does an utterance that is too short.

    With ``pair_every`` K, the first of every K utterances also comes changed (`kibun.training.demo_tiny.pairs`): same
    crop, same margins, same channel, room and noise.
    """

    augment: Augment | None
    seconds: tuple[float, float]
    rng: np.random.Generator
    margin_chance: float = 0.6
    margin_s: float = 0.5
    pair_every: int = 0

    def __call__(self, examples: list[Example]) -> dict[str, Tensor]:
        low, high = self.seconds
        # A multiple of 0.1 s: the Fourier transforms of the augmentation are fast for such sizes.
        size = int(self.rng.uniform(low, high) * 10) * (SAMPLE_RATE_HZ // 10)
        waveforms = np.zeros((len(examples), size), dtype=np.float32)
        every = self.pair_every or len(examples) + 1
        changed = np.zeros((-(-len(examples) // every) if self.pair_every else 0, size), dtype=np.float32)
        changes: list[float] = []
        for index, (audio, _item) in enumerate(examples):
            piece, at = self._crop(audio, size)
            if self.pair_every and index % every == 0:
                change = draw_change(self.rng)
                piece, other = make_pair(piece, change)
                changed[len(changes), at : at + len(other)] = other
                changes.append(change.arousal())
            waveforms[index, at : at + len(piece)] = piece
        batch = {
            "input_values": torch.from_numpy(waveforms),  # (B, N)
            "arousal": torch.tensor([item.arousal for _audio, item in examples]),  # (B,)
            "valence": torch.tensor([item.valence for _audio, item in examples]),  # (B,)
            "traits": torch.tensor([item.traits for _audio, item in examples]),  # (B, 5)
        }
        if self.pair_every:
            batch["changed"] = torch.from_numpy(changed)  # (P, N), of rows 0, K, 2 K ...
            batch["arousal_change"] = torch.tensor(changes)  # (P,)
        return batch if self.augment is None else _augmented(self.augment, batch, every)

    def _crop(self, audio: np.ndarray, size: int) -> tuple[np.ndarray, int]:
        """A random piece of (N,) int16, as float32 in ±1, and where it goes in a row of ``size`` samples."""
        margins = self.rng.uniform(0, self.margin_s, 2) * (self.rng.random() < self.margin_chance)
        before, after = (int(margin * SAMPLE_RATE_HZ) for margin in np.minimum(margins, self.seconds[0] / 4))
        room = size - before - after
        start = self.rng.integers(0, max(1, len(audio) - room + 1))
        piece = audio[start : start + room].astype(np.float32) / 32768.0
        return piece, before + int(self.rng.integers(0, room - len(piece) + 1))


def _augmented(augment: Augment, batch: dict[str, Tensor], every: int) -> dict[str, Tensor]:
    """``batch`` with rooms, channels and noise: the same for an utterance and its changed version."""
    rows = batch["input_values"]
    if "changed" not in batch:
        return batch | {"input_values": augment(rows)}
    paired = torch.arange(len(rows)) % every == 0
    new = torch.empty_like(rows)
    new[paired], changed = augment.alike(rows[paired], batch["changed"])
    if not paired.all():
        new[~paired] = augment(rows[~paired])
    return batch | {"input_values": new, "changed": changed}
