"""The conversation head (setting 3): trained on the cached utterance vectors of the finished personality tail.

Each step sees a batch of conversation profiles, half of them whole and half cut to a random part of their utterances,
so that one head serves both the paper's setting 3 (the whole conversation) and the causal one of a service.

`out_of_fold` trains it once more for each fold of speakers, for traits of the training speakers that are no better than
those of others.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from kibun.models.bundle import KibunModel
from kibun.models.personality import ConversationHead, round_to_stored
from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item, conversations
from kibun.training.evaluation.metrics import ccc
from kibun.training.fit import fit
from kibun.training.runs.config import ConfigError, RunConfig
from kibun.training.runs.heard import ORDERS, Heard, replay
from kibun.training.runs.predict import trait_estimates
from kibun.training.runs.task_model import silence

PROFILES = 16  # of one step
EVERY = 25  # steps between evaluations on dev
FOLDS = 5  # of the training speakers


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The utterances of a split after the personality tail: vectors (N, H) float16, items beside them."""

    items: Sequence[Item]
    vectors: NDArray[np.float16]


def train_conversation_head(
    model: KibunModel,
    train: Vectors,
    dev: Vectors,
    config: RunConfig,
    step: Callable[[], None] = lambda: None,
) -> float:
    """Train `model.conversation_head` in place to the best evaluation on dev, and return its score.

    step: called at every step. The score is the mean CCC over the estimated traits of settings 3 and causal 3 together.
    """
    estimated = [TRAITS.index(trait) for trait in config.model.traits]
    profiles = list(conversations(train.items).values())
    score = _fit(
        model, model.conversation_head, train, profiles, config, lambda: dev_score(model, dev, estimated), step
    )
    silence(model, config.model.traits)  # whose bias the optimizer decays
    return score


def out_of_fold(model: KibunModel, train: Vectors, config: RunConfig, step: Callable[[], None] = lambda: None) -> Heard:
    """The traits of the training utterances as of speakers that the conversation head never saw, in ORDERS orders.

    Only this head is trained anew, for each of the FOLDS; the vectors are those of a tail that saw everyone. step:
    called at every step.

    Raises ConfigError where there is one speaker alone.
    """
    speakers = sorted({item.speaker for item in train.items})
    if len(speakers) < 2:
        raise ConfigError("the train split has one speaker: two are needed, to estimate each without itself")
    chance = np.random.default_rng([config.training.seed, 5]).permutation(len(speakers))
    fold_of = {speaker: int(at) % min(FOLDS, len(speakers)) for speaker, at in zip(speakers, chance, strict=True)}
    counts = np.zeros((ORDERS, len(train.items)), np.int64)
    traits = np.zeros((ORDERS, len(train.items), len(TRAITS)), np.float32)
    known = np.zeros((ORDERS, len(train.items)), np.float32)
    profiles = list(conversations(train.items).values())
    for fold in sorted(set(fold_of.values())):
        seen = [rows for rows in profiles if fold_of[train.items[rows[0]].speaker] != fold]
        unseen = [row for row, item in enumerate(train.items) if fold_of[item.speaker] == fold]
        head = _new_head(model, config.training.seed)
        _fit(model, head, train, seen, config, None, step)
        heard = replay(model, head, train.items, train.vectors, config.training.seed, unseen)
        counts[:, unseen], traits[:, unseen], known[:, unseen] = heard.counts, heard.traits, heard.familiarity
    return Heard(tuple(item.id for item in train.items), counts, traits, known)


def _new_head(model: KibunModel, seed: int) -> ConversationHead:
    """A head of the same sizes as the model's, on its device, with new weights."""
    config = model.config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = ConversationHead(
            model.vector_size,
            inner=cast(int, config.conversation_size),
            heads=config.conversation_heads,
            dropout=config.head_dropout,
            centre=sum(config.trait_scale) / 2,
        )
    return head.to(model.device)


def _fit(
    model: KibunModel,
    head: ConversationHead,
    train: Vectors,
    profiles: Sequence[list[int]],
    config: RunConfig,
    score: Callable[[], float] | None,
    step: Callable[[], None],
) -> float:
    """Train `head` in place on these profiles (rows of `train`), to the best evaluation or, without one, to the end."""
    options, estimated = config.training, [TRAITS.index(trait) for trait in config.model.traits]
    rng, steps = np.random.default_rng([options.seed, 3]), options.conversation_steps
    head.to(model.device).requires_grad_(True)

    def batch() -> list[NDArray[np.int64]]:
        step()
        chosen = rng.choice(len(profiles), min(PROFILES, len(profiles)), replace=False)
        return [_part(profiles[index], rng) for index in chosen]

    def loss(rows: list[NDArray[np.int64]]) -> Tensor:
        vectors, mask, truth = _batch(train, rows, model.device)
        return F.mse_loss(head(round_to_stored(vectors), mask)[:, estimated], truth[:, estimated])

    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        return fit(
            head,
            torch.optim.AdamW(head.parameters(), options.conversation_learning_rate, weight_decay=0.01),
            ((batch() for _ in range(min(EVERY, steps - done))) for done in range(0, steps, EVERY)),
            loss,
            score,
            steps=steps + 1,
            warmup=0.3,
        )


def dev_score(model: KibunModel, dev: Vectors, estimated: Sequence[int]) -> float:
    """Mean CCC over these traits: whole conversations (one value each) and causal ones (each utterance) together."""
    estimates = trait_estimates(model, dev.items, dev.vectors)
    rows = list(conversations(dev.items).values())
    truth = np.array([item.traits for item in dev.items])  # (N, 5)
    whole = np.array([estimates[some[-1]].conversation_traits for some in rows])  # (P, 5)
    whole_truth = truth[[some[-1] for some in rows]]
    causal = np.array([estimate.causal_traits for estimate in estimates])  # (N, 5)
    scores = [ccc(whole[:, k], whole_truth[:, k]) + ccc(causal[:, k], truth[:, k]) for k in estimated]
    return float(np.mean(scores)) / 2


def _part(rows: list[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """All rows of a profile, or a random part of them of random size; order does not matter to the head."""
    size = len(rows) if rng.random() < 0.5 else int(rng.integers(1, len(rows) + 1))
    return rng.permutation(rows)[:size]


def _batch(
    split: Vectors, profiles: Sequence[NDArray[np.int64]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(P, K, H) vectors, (P, K) mask, (P, 5) true traits."""
    rows = [torch.from_numpy(split.vectors[some].astype(np.float32)) for some in profiles]
    vectors = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(vectors.shape[1]) < torch.tensor([[len(some)] for some in profiles])
    truth = torch.tensor([split.items[some[0]].traits for some in profiles])
    return vectors.to(device), mask.to(device), truth.to(device)
