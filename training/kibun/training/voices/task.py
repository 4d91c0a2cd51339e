"""What is learnt from a batch: valence and arousal over all voices and within each, and the category beside them."""

import dataclasses

import torch
from torch import Tensor, nn

from kibun.models.bundle import KibunConfig, KibunModel
from kibun.training.filter_bank import new_model, small_hubert
from kibun.training.losses import emotion_loss
from kibun.training.runs.average import MovingAverage
from kibun.training.voices.batches import CATEGORIES

SHARED = {"valence": "emotion", "arousal": "emotion"}


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Weights of the losses."""

    within: float = 0.5  # share of the loss on what differs within a speaker, the rest being over all
    category: float = 1.0
    average_decay: float = 0.99


def new_net(seed: int, dropout: float, start: KibunModel | None) -> KibunModel:
    """A net of about 0.4 M parameters: valence and arousal read the same frames, and need no traits.

    start: a bundle whose trunk and arousal tail it begins with, in place of random weights; its heads are new.
    """
    hubert = small_hubert(dropout)
    if start is not None:
        dropouts = {name: value for name, value in hubert.items() if name.endswith("dropout")}
        hubert = {**start.config.hubert_config.to_dict(), **dropouts}
    config = KibunConfig(
        hubert=hubert,
        trunk_layers=2 if start is None else start.config.trunk_layers,
        tasks=list(SHARED),
        tail_of=SHARED,
        emotion_head="baseline",
        head_dropout=0.0,
    )
    model = new_model(seed, config)
    if start is not None:
        model.trunk.load_state_dict(start.trunk.state_dict())
        model.tail("arousal").load_state_dict(start.tail("arousal").state_dict())
    return model


class VoicesTask(nn.Module):
    """The net, a classifier that is thrown away afterwards, and the moving average of the net's weights."""

    def __init__(self, kibun: KibunModel, options: LossOptions, per_speaker: int) -> None:
        super().__init__()
        self.kibun, self.options, self.per_speaker = kibun, options, per_speaker
        self.categories = nn.Linear(kibun.config.hubert_config.hidden_size, len(CATEGORIES))
        self.average = MovingAverage(kibun, options.average_decay)

    def forward(self, input_values: Tensor, valence: Tensor, arousal: Tensor, category: Tensor) -> dict[str, Tensor]:
        """Weighted sum of the losses for one batch of S speakers with K utterances each, speaker by speaker.

        input_values: (B, N), B = S K. valence, arousal: (B,). category: (B,), of CATEGORIES, or UNNAMED.
        """
        tail = self.kibun.tail("arousal")(self.kibun.encode(list(input_values)))  # (B, T, H)
        truth = {"valence": valence, "arousal": arousal}
        parts = {name: self._emotion(head(tail, None), truth[name]) for name, head in self.kibun.emotion_heads.items()}
        if bool((category >= 0).any()):
            logits = self.categories(tail.mean())  # (B, C)
            loss = nn.functional.cross_entropy(logits, category, label_smoothing=0.1)
            parts["category"] = self.options.category * loss
        return {"loss": sum(parts.values(), torch.zeros(())), **parts}

    def _emotion(self, predicted: Tensor, truth: Tensor) -> Tensor:
        """Over all, and on what is left without each speaker's mean: (B,) and (B,) -> ()."""
        within = emotion_loss(self._centred(predicted), self._centred(truth))
        return (1 - self.options.within) * emotion_loss(predicted, truth) + self.options.within * within

    def _centred(self, values: Tensor) -> Tensor:
        by_speaker = values.reshape(-1, self.per_speaker)  # (S, K)
        return (by_speaker - by_speaker.mean(1, keepdim=True)).reshape(-1)
