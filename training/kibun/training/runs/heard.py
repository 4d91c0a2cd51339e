"""Traits as they would have been heard after any number of a speaker's utterances.

A conversation is replayed in several random orders. In each order an utterance gets the traits of the conversation head
after all that came before it and itself, as a server would serve them; so each utterance is seen after few and after
many others. For the training split there is one conversation head for each of a few folds of speakers, and everyone's
traits come from the head that has not seen them: those of the run's own head would be too good.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kibun.models import evidence
from kibun.models.bundle import KibunModel
from kibun.models.files import written_atomically
from kibun.models.personality import ConversationHead, round_to_stored
from kibun.models.types import TRAIT_SCALE, TRAITS, Evidence
from kibun.training.corpora.manifest import Item, conversations
from kibun.training.runs.config import ConfigError

ORDERS = 8  # in which each conversation is replayed


@dataclasses.dataclass(frozen=True)
class Heard:
    """N utterances in R orders.

    ids: (N,). counts: (R, N), how many utterances were heard, this one included. traits: (R, N, 5) on 1..7.
    familiarity: (R, N), how much the voice was like those of training, 0..1.
    """

    ids: tuple[str, ...]
    counts: NDArray[np.int64]
    traits: NDArray[np.float32]
    familiarity: NDArray[np.float32]

    def condition(self, rows: Sequence[Evidence] | None, centre: Sequence[float]) -> "ServedTraits":
        """What emotion is conditioned on as served: these, drawn to the centre (5,) by what they are worth."""
        weights = np.array([evidence.weight(rows, count) for count in range(self.counts.max() + 1)])  # (K, 5)
        weights = weights[self.counts] * self.familiarity[..., None]  # (R, N, 5)
        return ServedTraits(self.ids, evidence.shrunk(self.traits, weights, centre).astype(np.float32))


@dataclasses.dataclass(frozen=True)
class ServedTraits:
    """Traits (R, N, 5) that emotion is conditioned on as served, of N utterances with these ids, in R orders."""

    ids: tuple[str, ...]
    traits: NDArray[np.float32]

    def write(self, path: Path) -> None:
        """Write whole or not at all."""
        with written_atomically(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, ids=np.array(self.ids), traits=self.traits)

    def of(self, items: Sequence[Item], path: Path) -> NDArray[np.float32]:
        """(R, M, 5) of these items. Raises ConfigError, which names `path`, where one is missing."""
        place = {name: at for at, name in enumerate(self.ids)}
        if lacking := [item.id for item in items if item.id not in place]:
            raise ConfigError(f"{path}: lacks utterance {lacking[0]!r}: train it on the same manifest and splits")
        return self.traits[:, [place[item.id] for item in items]]


def read_condition(path: Path) -> ServedTraits:
    """What `ServedTraits.write` wrote. Raises ConfigError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return ServedTraits(tuple(stored["ids"].tolist()), stored["traits"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path}: missing or damaged ({error}); traits.run must be a finished run of `kibun train pr` with"
            " training.calibrate = true: train it again"
        ) from error


@torch.inference_mode()
def replay(
    model: KibunModel,
    head: ConversationHead,
    items: Sequence[Item],
    vectors: NDArray[np.float16],
    seed: int | None,
    rows: Sequence[int] | None = None,
) -> Heard:
    """Replay the conversations of items (N,) with vectors (N, H) in ORDERS random orders, or once as they were.

    model: whose familiarity counts. head: which estimates the traits. seed: of the orders; None: the items' own order.
    rows: of `items` that are wanted, whole conversations; None: all.
    """
    wanted = list(range(len(items)) if rows is None else rows)
    orders = 1 if seed is None else ORDERS
    counts = np.zeros((orders, len(wanted)), np.int64)
    traits = np.zeros((orders, len(wanted), len(TRAITS)), np.float32)
    known = np.zeros((orders, len(wanted)), np.float32)
    rng = None if seed is None else np.random.default_rng([seed, 4])
    for some in conversations([items[row] for row in wanted]).values():
        spoken = torch.from_numpy(vectors[[wanted[index] for index in some]].astype(np.float32)).to(
            model.device
        )  # (K, H)
        each = np.array([model.familiarity(vector[None]) for vector in spoken])  # (K,)
        so_far = np.arange(1, len(some) + 1)
        for order in range(orders):
            shuffled = np.arange(len(some)) if rng is None else rng.permutation(len(some))
            estimates = head.causal(round_to_stored(spoken[shuffled])).clamp(*TRAIT_SCALE)  # (K, 5)
            into = [some[index] for index in shuffled]
            traits[order, into] = estimates.cpu().numpy()
            counts[order, into] = so_far
            known[order, into] = np.cumsum(each[shuffled]) / so_far
    return Heard(tuple(items[row].id for row in wanted), counts, traits, known)
