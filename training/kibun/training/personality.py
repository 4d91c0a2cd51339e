"""Second stage: personality on the frozen trunk.

Traits show little in one utterance and each batch has few speakers, so the personality tail and its heads need many
more steps than emotion does. The trunk is frozen by then: its frames are computed once, and a step costs a tenth.
"""

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kibun.models.bundle import KibunModel
from kibun.models.hubert import Frames
from kibun.training._transformers import Trainer, TrainingArguments
from kibun.training.augment import Augment, AugmentOptions
from kibun.training.data import Corpus, CropCollator, SpeakerBatches
from kibun.training.losses import trait_loss
from kibun.training.trainer import causal_traits

CachedFrames = tuple[Tensor, Tensor]  # (T, H) float16 of the trunk, (5,) traits


@dataclasses.dataclass(frozen=True)
class PersonalityOptions:
    """How the second stage is trained."""

    steps: int = 400
    speakers_per_batch: int = 16
    utterances_per_speaker: int = 6
    learning_rate: float = 1e-3
    seconds: float = 2.0  # of every utterance, augmented once
    seed: int = 0


class TrunkFrames(Dataset[CachedFrames]):
    """The trunk's frames of a corpus, all equally long."""

    def __init__(self, model: KibunModel, corpus: Corpus, options: PersonalityOptions) -> None:
        augment = Augment(AugmentOptions(noise_snr_db=(20.0, 60.0)), torch.Generator().manual_seed(options.seed))
        seconds = (options.seconds, options.seconds + 0.01)
        collate = CropCollator(augment, seconds, np.random.default_rng(options.seed), margin_chance=0.3)
        self.frames: list[Tensor] = []
        self.traits = torch.tensor([item.traits for _audio, item in corpus.examples])  # (N, 5)
        self.by_speaker: dict[str, list[int]] = defaultdict(list, corpus.by_speaker)
        model.train(False)
        with torch.no_grad():
            for start in range(0, len(corpus), 32):
                batch = collate(corpus.examples[start : start + 32])
                hidden = model.encode(list(batch["input_values"])).hidden  # (B, T, H)
                self.frames += list(hidden.to(torch.float16))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> CachedFrames:
        return self.frames[index], self.traits[index]


class PersonalityTrainer(Trainer):
    """Trains the personality tail, the utterance head and the causal conversation head; all else is frozen."""

    def __init__(self, model: KibunModel, frames: TrunkFrames, folder: str, options: PersonalityOptions) -> None:
        self.options = options
        self.cached = frames
        model.requires_grad_(False)
        for part in (model.tails["personality"], model.personality_head, model.conversation_head):
            part.requires_grad_(True)
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            warmup_steps=min(30, options.steps // 4),
            learning_rate=options.learning_rate,
            weight_decay=0.02,
            lr_scheduler_type="cosine",
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            seed=options.seed,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            disable_tqdm=False,
        )
        super().__init__(model=model, args=arguments, train_dataset=frames)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Endless batches of several speakers' utterances."""
        options = self.options
        batches = SpeakerBatches(self.cached, options.speakers_per_batch, options.utterances_per_speaker, options.seed)
        return DataLoader(self.cached, batch_sampler=batches, collate_fn=_stack)

    def compute_loss(  # type: ignore[override]
        self, model: KibunModel, inputs: dict[str, Tensor], return_outputs: bool = False, **_unused: Any
    ) -> Any:
        """Squared error of setting 1 and of causal setting 3."""
        hidden, truth = inputs["frames"], inputs["traits"]  # (B, T, H), (B, 5)
        vectors = model.vectors(Frames(hidden, (hidden.shape[1],) * len(hidden)))  # (B, H)
        together = causal_traits(model, vectors, self.options.utterances_per_speaker)
        loss = trait_loss(model.utterance_traits(vectors), truth) + trait_loss(together, truth)
        return (loss, {"vectors": vectors}) if return_outputs else loss

    def log(self, *_unused: Any, **_also_unused: Any) -> None:
        """Nothing: standard output belongs to the command."""


def _stack(examples: list[CachedFrames]) -> dict[str, Tensor]:
    frames, traits = zip(*examples, strict=True)
    return {"frames": torch.stack(frames).float(), "traits": torch.stack(traits)}
