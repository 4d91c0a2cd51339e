"""Training with transformers' Trainer: one model, one loss per task, held-out CCC through the served call.

Every evaluation adds one JSON line to ``log.jsonl`` in the work folder. What is kept is a moving average of the
weights (it generalises better than the last step), at the evaluation with the best mean CCC on dev.
"""

import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kibun.models.bundle import KibunModel, KibunOutput
from kibun.training._transformers import Trainer, TrainerCallback, TrainingArguments
from kibun.training.audio.rooms import Augment, AugmentOptions
from kibun.training.demo_tiny.data import Corpus, CropCollator, SpeakerBatches
from kibun.training.demo_tiny.evaluate import analyze_causally, emotion_ccc, trait_ccc
from kibun.training.losses import emotion_loss, pair_loss, trait_loss

TRAIT_CENTRE = 4.0


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long, how fast, and what counts how much."""

    steps: int = 1400
    warmup_steps: int = 100
    speakers_per_batch: int = 8
    utterances_per_speaker: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    valence_weight: float = 0.5
    trait_weight: float = 1.0
    pair_weight: float = 0.5
    crop_seconds: tuple[float, float] = (1.2, 2.8)
    average_decay: float = 0.99
    evaluations: int = 4
    dev_utterances: int = 240
    seed: int = 0


def mixed_traits(truth: Tensor, alone: Tensor, together: Tensor, generator: torch.Generator) -> Tensor:
    """Traits to condition emotion on, (B, 5) each: true, predicted either way, true with noise, or the centre.

    In service they are predicted from little speech, of voices unlike those trained on. A head that has seen true
    traits only would trust them too much; this one has to do with any.
    """
    noisy = truth + torch.randn(truth.shape, generator=generator)
    kinds = torch.stack([truth, alone.detach(), together.detach(), noisy, torch.full_like(truth, TRAIT_CENTRE)])
    which = torch.multinomial(torch.tensor([0.2, 0.2, 0.25, 0.15, 0.2]), len(truth), True, generator=generator)
    return kinds[which, torch.arange(len(truth))].clamp(1.0, 7.0)


class KibunTrainer(Trainer):
    """Trains personality (settings 1 and 3) and emotion together on batches of a few utterances per speaker."""

    def __init__(self, model: KibunModel, train: Corpus, dev: Corpus, folder: Path, options: TrainOptions) -> None:
        self.options = options
        self.corpus, self.dev = train, dev
        self.generator = torch.Generator().manual_seed(options.seed)
        self.average: KibunModel = copy.deepcopy(model).train(False).requires_grad_(False)
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.folder = folder
        self.started = time.monotonic()
        self.evaluated = -1
        self.losses: list[float] = []  # since the last evaluation
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").write_text("", encoding="utf-8")
        arguments = TrainingArguments(
            output_dir=str(folder / "checkpoints"),
            max_steps=options.steps,
            warmup_steps=options.warmup_steps,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            adam_beta2=0.98,
            lr_scheduler_type="cosine",
            eval_strategy="steps",
            eval_steps=max(1, options.steps // options.evaluations),
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            seed=options.seed,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
            disable_tqdm=False,
        )
        super().__init__(model=model, args=arguments, train_dataset=train, eval_dataset=dev)
        self.add_callback(_Average(self.average, options.average_decay))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Endless batches; nothing is padded and no worker processes are used."""
        options = self.options
        collator = CropCollator(
            Augment(AugmentOptions(), self.generator),
            options.crop_seconds,
            np.random.default_rng(options.seed),
            pair_every=options.utterances_per_speaker,
        )
        batches = SpeakerBatches(self.corpus, options.speakers_per_batch, options.utterances_per_speaker, options.seed)
        return DataLoader(self.corpus, batch_sampler=batches, collate_fn=collator)

    def compute_loss(  # type: ignore[override]
        self, model: KibunModel, inputs: dict[str, Tensor], return_outputs: bool = False, **_unused: Any
    ) -> Any:
        """Weighted sum of the tasks' losses for one batch."""
        options, count = self.options, self.options.utterances_per_speaker
        truth = inputs["traits"]  # (B, 5)
        size = len(truth)
        frames = model.encode([*inputs["input_values"], *inputs["changed"]])  # (B + P, T, H)
        vectors = model.vectors(frames.rows(range(size)))  # (B, H)
        alone = model.utterance_traits(vectors)  # (B, 5)
        together = causal_traits(model, vectors, count)  # (B, 5)
        traits = mixed_traits(truth, alone, together, self.generator)
        both = model.emotion(frames, torch.cat([traits, traits[::count]]))
        emotion = {name: values[:size] for name, values in both.items()}
        changes = {name: values[size:] - values[:size:count] for name, values in both.items()}  # (P,)
        loss = emotion_loss(emotion["arousal"], inputs["arousal"])
        loss = loss + options.valence_weight * emotion_loss(emotion["valence"], inputs["valence"])
        loss = loss + options.trait_weight * (trait_loss(alone, truth) + trait_loss(together, truth))
        loss = loss + options.pair_weight * pair_loss(changes["arousal"], inputs["arousal_change"], changes["valence"])
        self.losses.append(float(loss.detach()))
        return (loss, KibunOutput(vectors=vectors, traits=alone, **emotion)) if return_outputs else loss

    def evaluate(self, *_unused: Any, **_also_unused: Any) -> dict[str, float]:
        """CCC on dev of the averaged weights; logs one JSON line and keeps the best."""
        if self.evaluated == self.state.global_step:  # the last step is also the end of training
            return {}
        self.evaluated = self.state.global_step
        heard = analyze_causally(self.average, self.dev.examples[: self.options.dev_utterances])
        emotion, traits = emotion_ccc(heard), trait_ccc(heard)
        score = emotion["arousal"] + 0.3 * emotion["valence"] + 0.3 * float(np.mean(list(traits.values())))
        line = {
            "step": self.state.global_step,
            "seconds": round(time.monotonic() - self.started),
            "loss": round(float(np.mean(self.losses)), 4) if self.losses else None,
            "dev_ccc": {name: round(value, 4) for name, value in {**emotion, **traits}.items()},
            "score": round(score, 4),
        }
        self.losses.clear()
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self.best is None or score > self.best[0]:
            self.best = (score, {name: value.clone() for name, value in self.average.state_dict().items()})
            self.average.save_pretrained(self.folder / "best")  # should training be cut off
        return {"eval_score": score}

    def log(self, *_unused: Any, **_also_unused: Any) -> None:
        """Nothing: `evaluate` writes the log, and standard output belongs to the command."""

    def best_model(self) -> KibunModel:
        """The averaged model of the best evaluation."""
        if self.best is not None:
            self.average.load_state_dict(self.best[1])
        return self.average


class _Average(TrainerCallback):
    """Exponential moving average of the weights after every step; short at the start, so that it follows early on."""

    def __init__(self, average: KibunModel, decay: float) -> None:
        self.average, self.decay = average, decay

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for kept, new in zip(self.average.parameters(), kwargs["model"].parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)


def causal_traits(model: KibunModel, vectors: Tensor, per_speaker: int) -> Tensor:
    """Setting 3 after each utterance of each speaker's short conversation: (S * K, H) -> (S * K, 5)."""
    conversations = vectors.reshape(-1, per_speaker, vectors.shape[1])  # (S, K, H)
    heard = torch.ones(per_speaker, per_speaker, dtype=torch.bool, device=vectors.device).tril()  # (K, K)
    speakers = len(conversations)
    repeated = conversations.repeat_interleave(per_speaker, 0)  # (S * K, K, H)
    return model.conversation_traits(repeated, heard.repeat(speakers, 1))  # (S * K, 5)
