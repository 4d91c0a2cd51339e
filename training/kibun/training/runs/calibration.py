"""Dev in two parts: one chooses among models, the other measures what the chosen one's traits are worth.

Errors on the utterances that chose a model are too small. So a run of personality leaves half of dev's speakers out of
every choice (epoch, conversation head), and `expected_error` is measured on them alone.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from kibun.models.bundle import KibunModel
from kibun.models.personality import Familiarity
from kibun.models.types import TRAITS, Evidence
from kibun.training.corpora.manifest import Item
from kibun.training.evaluation.predictions import evidence_by_count
from kibun.training.runs.conversation_stage import Vectors
from kibun.training.runs.heard import Heard

FEWEST = 4  # speakers, or else conversations, that dev needs to be divided


@dataclasses.dataclass(frozen=True)
class Halves:
    """Rows of dev that choose, and rows that calibrate; `note` says so for the card."""

    choose: tuple[int, ...]
    calibrate: tuple[int, ...]
    note: str


def halves(dev: Sequence[Item]) -> Halves:
    """Divide dev by speaker, the same way in every run; by conversation where it has too few speakers.

    Where it has too few conversations as well, all of it chooses and nothing is left to calibrate.
    """
    by_unit: dict[str, list[str]] = {
        "speaker": [item.speaker for item in dev],
        "conversation": ["\t".join(item.conversation) for item in dev],
    }
    for unit, of in by_unit.items():
        names = sorted(set(of), key=lambda name: hashlib.sha256(name.encode()).digest())
        if len(names) < FEWEST:
            continue
        chosen = set(names[::2])
        sides: tuple[list[int], list[int]] = ([], [])
        for row, name in enumerate(of):
            sides[name not in chosen].append(row)
        note = f"half of dev's {unit}s chose the model, the other {len(names) // 2} calibrate it"
        if unit == "conversation":
            note += f" (dev has fewer than {FEWEST} speakers, so both halves have voices in common)"
        return Halves(tuple(sides[0]), tuple(sides[1]), note)
    note = f"expected error not measured: dev has fewer than {FEWEST} conversations, which are needed to choose the"
    return Halves(tuple(range(len(dev))), (), f"{note} model by some and to measure it on others")


def evidence(heard: Sequence[Heard], items: Sequence[Item], centre: Sequence[float]) -> tuple[Evidence, ...]:
    """What the traits of `items`, which chose nothing, are worth after as many utterances as some speaker reaches.

    heard: the traits of these items after random numbers of utterances, once or under several conditions, which count
    alike. centre: (5,) of the training speakers.
    """
    truth = np.array([item.traits for item in items])
    names = {name: at for at, name in enumerate(dict.fromkeys(item.conversation for item in items))}
    speakers = np.array([names[item.conversation] for item in items])
    return evidence_by_count(
        np.concatenate([part.counts.ravel() for part in heard]),
        np.concatenate([part.traits.reshape(-1, len(TRAITS)) for part in heard]),
        np.concatenate([np.broadcast_to(truth, part.traits.shape).reshape(-1, len(TRAITS)) for part in heard]),
        centre,
        speakers=np.concatenate([np.broadcast_to(speakers, part.counts.shape).ravel() for part in heard]),
    )


def learn_familiarity(model: KibunModel, train: Sequence[Vectors], seed: int) -> None:
    """Let the model know which vectors its traits were learnt from; nothing is learnt from a single speaker.

    One half of the speakers gives mean and covariance, the other the distances that are usual.

    train: the training utterances, once or under several conditions.
    """
    speakers = sorted({item.speaker for part in train for item in part.items})
    if len(speakers) < 2:
        return
    chance = np.random.default_rng([seed, 7]).permutation(len(speakers))
    first = {speakers[at] for at in chance[::2]}
    sides: tuple[list[NDArray[np.float16]], list[NDArray[np.float16]]] = ([], [])
    for part in train:
        inside = np.array([item.speaker in first for item in part.items])
        sides[0].append(part.vectors[inside])
        sides[1].append(part.vectors[~inside])
    known = Familiarity(model.vector_size).to(model.device)
    known.fit(*(torch.from_numpy(np.concatenate(side).astype(np.float32)).to(model.device) for side in sides))
    model.conversation_head.familiarity = known
    model.config.familiarity = True
