"""The trunk of demo-tiny: a small HuBERT from random weights, trained on all tasks at once in the loop of the runs.

It stands in for the pretrained checkpoint of a user with a real corpus. Each batch holds a few utterances of each of
several speakers, cut to one length, with rooms and noise. The first utterance of every speaker also comes changed in
pitch, rate or tilt: the loss on the difference of the two estimates teaches the cues rather than the voices that happen
to have them. What is stored is a moving average of the weights, at the evaluation with the best score on dev.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kibun.models._transformers import quiet
from kibun.models.bundle import KibunModel
from kibun.models.types import TRAITS
from kibun.training.audio.augment import ROOMS, Augment
from kibun.training.audio.crops import Crops, Floats, place
from kibun.training.corpora.manifest import Item
from kibun.training.demo_tiny.evaluate import analyze_causally, ccc_as_served
from kibun.training.demo_tiny.pairs import draw_change, make_pair
from kibun.training.losses import emotion_loss, pair_loss, trait_loss
from kibun.training.runs.average import MovingAverage
from kibun.training.runs.folder import BUNDLE, CHECKPOINT, FIGURES
from kibun.training.runs.loop import Plan, new_accelerator, train
from kibun.training.runs.utterances import Utterances

TRAIT_CENTRE = 4.0
MIN_SECONDS = 1.0
Example = tuple[Floats, Item]  # (N,) audio in ±1


@dataclasses.dataclass(frozen=True)
class TrunkOptions:
    """Length, learning rate, and the weights of the losses."""

    steps: int = 2400
    warmup: float = 0.08
    speakers: int = 8  # of a batch
    per_speaker: int = 2  # utterances of each
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    valence_weight: float = 0.5
    trait_weight: float = 1.0
    pair_weight: float = 0.5
    crop_seconds: tuple[float, float] = (1.2, 2.8)
    average_decay: float = 0.99
    evaluations: int = 8
    dev_utterances: int = 240
    seed: int = 0


def train_trunk(
    kibun: KibunModel, train_items: Sequence[Item], dev: Sequence[Item], options: TrunkOptions, folder: Path
) -> None:
    """Train a model in `folder`, from its last checkpoint if there is one; FOLDER/bundle is the best on dev.

    Raises ValueError: too few speakers for a batch.
    """
    if (folder / FIGURES).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    batches = SpeakerBatches(train_items, options)
    task, accelerator = TrunkTask(kibun, options), new_accelerator()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in kibun.parameters() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in kibun.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, options.learning_rate, betas=(0.9, 0.98))
    optimizer.register_step_post_hook(lambda *_: task.average.update(kibun))

    def evaluate() -> dict[str, float]:
        rows = analyze_causally(task.average.model, dev[: options.dev_utterances])
        figures = ccc_as_served(rows)
        traits = float(np.mean([figures[trait] for trait in TRAITS]))
        return {**figures, "score": figures["arousal"] + 0.3 * figures["valence"] + 0.3 * traits}

    def save() -> None:
        task.average.model.config.trained = True
        with quiet():
            task.average.model.save_pretrained(folder / BUNDLE)

    plan = Plan(
        model=task,
        optimizer=optimizer,
        batch=batches.draw,
        per_step=1,
        steps=options.steps,
        evaluate_every=max(1, options.steps // options.evaluations),
        evaluate=evaluate,
        save=save,
        schedule="cosine",
        warmup=options.warmup,
        seed=options.seed,
    )
    train(plan, folder, accelerator)
    (folder / FIGURES).write_text(json.dumps(dataclasses.asdict(options), indent=2) + "\n", encoding="utf-8")
    (folder / CHECKPOINT).unlink()


class TrunkTask(nn.Module):
    """All tasks at once on one model, and the moving average of its weights."""

    def __init__(self, kibun: KibunModel, options: TrunkOptions) -> None:
        super().__init__()
        self.kibun, self.options = kibun, options
        self.average = MovingAverage(kibun, options.average_decay)

    def forward(
        self,
        input_values: Tensor,
        changed: Tensor,
        arousal: Tensor,
        valence: Tensor,
        traits: Tensor,
        arousal_change: Tensor,
    ) -> dict[str, Tensor]:
        """Weighted sum of the tasks' losses for one batch of S speakers with K utterances each, as of `Crops`.

        input_values: (B, N), B = S K. changed: (S, N). arousal, valence: (B,). traits: (B, 5). arousal_change: (S,).
        """
        model, options, count, size = self.kibun, self.options, self.options.per_speaker, len(traits)
        frames = model.encode([*input_values, *changed])  # (B + S, T, H)
        vectors = model.vectors(frames.rows(range(size)))  # (B, H)
        alone = model.utterance_traits(vectors)  # (B, 5)
        together = causal_traits(model, vectors, count)  # (B, 5)
        given = mixed_traits(traits, alone, together)
        both = model.emotion(frames, torch.cat([given, given[::count]]))  # (B + S,) each
        change = {name: values[size:] - values[:size:count] for name, values in both.items()}  # (S,)
        parts = {
            "arousal": emotion_loss(both["arousal"][:size], arousal),
            "valence": options.valence_weight * emotion_loss(both["valence"][:size], valence),
            "traits": options.trait_weight * (trait_loss(alone, traits) + trait_loss(together, traits)),
            "pairs": options.pair_weight * pair_loss(change["arousal"], arousal_change, change["valence"]),
        }
        return {"loss": sum(parts.values(), torch.zeros(())), **parts}


def mixed_traits(truth: Tensor, alone: Tensor, together: Tensor) -> Tensor:
    """Traits to condition emotion on, (B, 5) each: true, predicted either way, true with noise, or the centre.

    In service they are predicted from little speech, of voices unlike those trained on. A head that has seen true
    traits only would trust them too much; this one learns to cope with any.
    """
    noisy = truth + torch.randn_like(truth)
    kinds = torch.stack([truth, alone.detach(), together.detach(), noisy, torch.full_like(truth, TRAIT_CENTRE)])
    shares = torch.tensor([0.2, 0.2, 0.25, 0.15, 0.2], device=truth.device)
    which = torch.multinomial(shares, len(truth), replacement=True)
    return kinds[which, torch.arange(len(truth))].clamp(1.0, 7.0)


def causal_traits(model: KibunModel, vectors: Tensor, per_speaker: int) -> Tensor:
    """Setting 3 after each utterance of each speaker's short conversation: (S * K, H) -> (S * K, 5)."""
    conversations = vectors.reshape(-1, per_speaker, vectors.shape[1])  # (S, K, H)
    earlier = torch.ones(per_speaker, per_speaker, dtype=torch.bool, device=vectors.device).tril()  # (K, K)
    repeated = conversations.repeat_interleave(per_speaker, 0)  # (S * K, K, H)
    return model.conversation_traits(repeated, earlier.repeat(len(conversations), 1))  # (S * K, 5)


class SpeakerBatches:
    """The batch of each step, a pure function of seed and step: a few utterances of each of several speakers.

    Within a speaker a batch contrasts manner, between speakers traits, and the conversation head gets a short
    conversation of each.
    """

    def __init__(self, items: Sequence[Item], options: TrunkOptions) -> None:
        self.utterances = Utterances(items, np.zeros((len(items), 5), np.float32), min_samples=0)
        self.options = options
        rows: dict[str, list[int]] = {}
        for row, item in enumerate(items):
            rows.setdefault(item.speaker, []).append(row)
        self.pools = [pool for pool in rows.values() if len(pool) >= options.per_speaker]
        if len(self.pools) < options.speakers:
            raise ValueError(
                f"{len(self.pools)} speakers have {options.per_speaker} utterances or more, a batch needs"
                f" {options.speakers}: render more speakers"
            )
        self.crops = LabelledCrops(options.crop_seconds, Augment(ROOMS), pair_every=options.per_speaker)

    def draw(self, step: int) -> dict[str, Tensor]:
        """The arguments of `TrunkTask.forward`."""
        rng = np.random.default_rng((4, self.options.seed, step))
        chosen = rng.choice(len(self.pools), self.options.speakers, replace=False)
        rows = [int(row) for pool in chosen for row in rng.choice(self.pools[pool], self.options.per_speaker, False)]
        return self.crops.batch(
            [(self.utterances.read(row), self.utterances.items[row]) for row in rows], (self.options.seed, step)
        )


@dataclasses.dataclass(frozen=True)
class LabelledCrops(Crops):
    """The same with labels and, with ``pair_every`` K, the first of every K utterances also changed.

    `kibun.training.demo_tiny.pairs` changes it: same crop, same margins, same channel, room and noise.
    """

    pair_every: int = 0

    def batch(self, examples: Sequence[Example], key: tuple[int, ...]) -> dict[str, Tensor]:
        """B utterances -> input_values (B, N), arousal and valence (B,), traits (B, 5); of pairs changed (P, N) and
        arousal_change (P,). What is random depends on the key alone.
        """
        rng = np.random.default_rng(key)
        size = self.draw_size(rng)
        rows, changed, changes = list[Tensor](), list[Tensor](), list[float]()
        for index, (audio, _item) in enumerate(examples):
            piece, at = self.cut(audio, size, rng)
            pieces: tuple[Floats, ...] = (piece,)
            if self.pair_every and index % self.pair_every == 0:
                change = draw_change(rng)
                pieces = make_pair(piece, change)
                changes.append(change.arousal())
            versions = [place(each, at, size) for each in pieces]  # (N,) each
            if self.augment is not None:
                versions = self.augmented(versions, [other for other, _item in examples], (*key, index), rng)
            rows.append(versions[0])
            changed += versions[1:]
        items = [item for _audio, item in examples]
        batch = {
            "input_values": torch.stack(rows),  # (B, N)
            "arousal": torch.tensor([item.arousal for item in items]),  # (B,)
            "valence": torch.tensor([item.valence for item in items]),  # (B,)
            "traits": torch.tensor([item.traits for item in items]),  # (B, 5)
        }
        if self.pair_every:
            batch |= {"changed": torch.stack(changed), "arousal_change": torch.tensor(changes)}  # of rows 0, K, 2 K ...
        return batch
