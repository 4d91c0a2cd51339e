"""Traits predicted by kibun's own heads from the feature vectors: the paper's settings 1, 2 and 3, and causal 3.

The heads are those of `kibun.models.personality`, on standardised vectors, rounded as a server stores them. Setting 2
is also given calibrated: one line per trait, fitted on dev. All estimates are limited to 1..7.
"""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kibun.models.personality import ConversationHead, PersonalityHead, round_to_stored
from kibun.models.types import TRAIT_SCALE, TRAITS
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.metrics import ccc
from kibun.training.experiments.labels.folds import LabelFold, Rows, split_dev
from kibun.training.experiments.labels.linear import Scaling
from kibun.training.fit import fit
from kibun.training.losses import trait_loss

SETTINGS = ("setting1", "setting2", "setting2_calibrated", "setting3", "causal3")
INNER, HEADS, DROPOUT = 64, 4, 0.1
PROFILES_PER_BATCH, STEPS_PER_EPOCH, EPOCHS, PATIENCE = 16, 15, 30, 8
LONGEST = 64  # utterances of a profile in one training step
UTTERANCE_RATE, CONVERSATION_RATE, WEIGHT_DECAY = 1e-2, 2e-3, 0.01
_CELLS_AT_ONCE = 10_000_000

Floats = NDArray[np.float64]


class VectorPersonality(nn.Module):
    """Utterance head and conversation head on vectors of D features, with the scaling of their train."""

    def __init__(self, array: NDArray[np.float32], scaling: Scaling) -> None:
        super().__init__()
        centre = sum(TRAIT_SCALE) / 2
        size = array.shape[1]
        self.array, self.scaling = array, scaling
        self.utterance = PersonalityHead(size, centre=centre)
        self.conversation = ConversationHead(size, inner=INNER, heads=HEADS, dropout=DROPOUT, centre=centre)
        # slope and offset of each trait
        self.line = (np.ones(len(TRAITS)), np.zeros(len(TRAITS)))

    def vectors(self, rows: Rows) -> Tensor:
        """(n,) row numbers -> (n, D)."""
        return round_to_stored(torch.tensor(self.scaling(self.array[rows]), dtype=torch.float32))

    @torch.no_grad()
    def predict(self, profile: Rows) -> dict[str, Floats]:
        """(K, 5) traits by setting, of the K utterances of a speaker-conversation in the order spoken."""
        vectors = self.vectors(profile)
        each = self.utterance(vectors).clamp(*TRAIT_SCALE)
        whole = np.broadcast_to(each.mean(dim=0).numpy(), each.shape)  # (K, 5)
        slope, offset = self.line
        found = {
            "setting1": each.numpy(),
            "setting2": whole,
            "setting2_calibrated": slope * whole + offset,
            "setting3": np.broadcast_to(self.conversation(vectors[None])[0].numpy(), each.shape),
            "causal3": self._causal(vectors).numpy(),
        }
        return {name: np.clip(traits, *TRAIT_SCALE).astype(np.float64) for name, traits in found.items()}

    def _causal(self, vectors: Tensor) -> Tensor:
        """As `ConversationHead.causal`, in parts, since a conversation may be long: (K, D) -> (K, 5)."""
        count, size = vectors.shape
        so_far = torch.ones(count, count, dtype=torch.bool).tril()
        parts = torch.split(so_far, max(1, _CELLS_AT_ONCE // (count * max(size, count))))
        return torch.cat([self.conversation(vectors.expand(len(part), -1, -1), part) for part in parts])


def fit_trait_heads(array: NDArray[np.float32], items: Sequence[Item], rows: Rows, seed: int) -> VectorPersonality:
    """Train both heads on these rows, a fifth of whose dialogues choose the epoch and fit the line of setting 2."""
    torch.manual_seed(seed)
    model = VectorPersonality(array, Scaling.of(array, rows))
    rng = np.random.default_rng(seed)
    fitted, dev = (profiles_of(items, part) for part in split_dev(items, rows))
    truth = torch.tensor([items[profile[0]].traits for profile in fitted])  # (P, 5)

    def batch() -> NDArray[np.int64]:
        return rng.choice(len(fitted), min(PROFILES_PER_BATCH, len(fitted)), replace=False)

    def data(chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, K, D) vectors, (B, K) mask, (B, 5) truth."""
        parts = [_part(fitted[index], rng, LONGEST) for index in chosen]
        vectors = nn.utils.rnn.pad_sequence([model.vectors(part) for part in parts], batch_first=True)
        mask = torch.arange(vectors.shape[1]) < torch.tensor([[len(part)] for part in parts])
        return vectors, mask, truth[torch.from_numpy(chosen)]

    def of_utterances(chosen: NDArray[np.int64]) -> Tensor:
        vectors, mask, target = data(chosen)
        return trait_loss(model.utterance(vectors[mask]), target[:, None].expand(-1, mask.shape[1], -1)[mask])

    def of_conversations(chosen: NDArray[np.int64]) -> Tensor:
        vectors, mask, target = data(chosen)
        return trait_loss(model.conversation(vectors, mask), target)

    for head, rate, loss, score in (
        (model.utterance, UTTERANCE_RATE, of_utterances, _utterance_score),
        (model.conversation, CONVERSATION_RATE, of_conversations, _conversation_score),
    ):
        fit(
            head,
            torch.optim.AdamW(head.parameters(), rate, weight_decay=WEIGHT_DECAY),
            ((batch() for _ in range(STEPS_PER_EPOCH)) for _ in range(EPOCHS)),
            loss,
            functools.partial(score, model, items, dev),
            steps=EPOCHS * STEPS_PER_EPOCH + 1,
            patience=PATIENCE,
        )
    model.line = _line(model, items, dev)
    return model


def profiles_of(items: Sequence[Item], rows: Rows) -> list[Rows]:
    """The rows of each speaker-conversation, in their order."""
    members: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        members.setdefault(items[row].conversation, []).append(int(row))
    return [np.array(some) for some in members.values()]


class CrossFitted:
    """Predicted traits of a fold: of test by heads trained on train, of each part of train by heads trained on the
    other parts, so that the traits that emotion is trained with have the errors of those it is tested with."""

    def __init__(self, array: NDArray[np.float32], items: Sequence[Item]) -> None:
        self.array, self.items = array, items
        self._models: dict[tuple[bytes, int], VectorPersonality] = {}

    def traits(self, fold: LabelFold, seed: int) -> dict[str, Floats]:
        """(N, 5) by setting; rows outside the fold are the middle of the scale."""
        shape = (len(self.items), len(TRAITS))
        found = {name: np.full(shape, sum(TRAIT_SCALE) / 2) for name in SETTINGS}
        beside = np.setdiff1d(fold.dev, fold.train)
        for rows, wanted in ((fold.train, np.concatenate([fold.test, beside])), *fold.without_parts()):
            model = self._model(rows, seed)
            for profile in profiles_of(self.items, wanted):
                for name, traits in model.predict(profile).items():
                    found[name][profile] = traits
        return found

    def _model(self, rows: Rows, seed: int) -> VectorPersonality:
        """Two folds need the same one where each is a part of the other's train."""
        key = (rows.tobytes(), seed)
        if key not in self._models:
            self._models[key] = fit_trait_heads(self.array, self.items, rows, seed)
        return self._models[key]


def _part(profile: Rows, rng: np.random.Generator, longest: int) -> Rows:
    """All utterances, or a random part of random size; the order does not matter to the heads."""
    size = len(profile) if rng.random() < 0.5 else int(rng.integers(1, len(profile) + 1))
    return rng.permutation(profile)[: min(size, longest)]


@torch.no_grad()
def _utterance_score(model: VectorPersonality, items: Sequence[Item], profiles: Sequence[Rows]) -> float:
    """Mean CCC of setting 1 over the traits, by utterance."""
    rows = np.concatenate(profiles)
    return _mean_ccc(model.utterance(model.vectors(rows)), [items[row].traits for row in rows])


@torch.no_grad()
def _conversation_score(model: VectorPersonality, items: Sequence[Item], profiles: Sequence[Rows]) -> float:
    """Mean CCC of setting 3 over the traits, by profile."""
    whole = torch.cat([model.conversation(model.vectors(profile)[None]) for profile in profiles])
    return _mean_ccc(whole, [items[profile[0]].traits for profile in profiles])


def _mean_ccc(predicted: Tensor, traits: Sequence[object]) -> float:
    truth = np.array(traits, dtype=np.float64)
    return float(np.mean([ccc(predicted[:, k].numpy(), truth[:, k]) for k in range(len(TRAITS))]))


def _line(model: VectorPersonality, items: Sequence[Item], profiles: Sequence[Rows]) -> tuple[Floats, Floats]:
    """Slope and offset (5,) that bring setting 2 nearest to the truth; the mean where it is constant."""
    with torch.no_grad():
        found = np.stack([model.utterance(model.vectors(p)).clamp(*TRAIT_SCALE).mean(dim=0).numpy() for p in profiles])
    truth = np.array([items[profile[0]].traits for profile in profiles])  # (P, 5)
    centred = found - found.mean(axis=0)
    spread = (centred**2).mean(axis=0)
    slope = np.where(spread > 1e-9, (centred * truth).mean(axis=0) / np.maximum(spread, 1e-9), 0.0)
    return slope, truth.mean(axis=0) - slope * found.mean(axis=0)
