"""Personality at the three settings of the paper, on simulated frames that show traits a little.

Setting 1 is one utterance, setting 2 the mean of setting 1 over a speaker's utterances, setting 3 the conversation head
over the utterance vectors; causal setting 3 gets only the utterances so far. The heads are those of
`kibun.models.personality`, behind the same small encoder that emotion has, and vectors are rounded as a server rounds
them. Loss: squared error of settings 1 and 3; the conversation head gets a random number of utterances, as it does
in service.
"""

import dataclasses

import torch
from torch import Tensor, nn

from kibun.models.personality import ConversationHead, PersonalityHead, round_to_stored
from kibun.training.evaluation.metrics import ccc
from kibun.training.fit import fit
from kibun.training.losses import trait_loss
from kibun.training.simulation.data import SimulationOptions, UtteranceSet, of_profiles
from kibun.training.simulation.heads import ATTENTION_HEADS, Encoder
from kibun.training.simulation.world import TRAIT_CENTRE

SPEAKERS_PER_BATCH = 25


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Traits of P speakers with U utterances, within 1..7.

    setting1: (P, U, 5). setting2, setting3: (P, 5), from all of a speaker's utterances. causal3: (P, U, 5), from those
    up to and including each.
    """

    setting1: Tensor
    setting2: Tensor
    setting3: Tensor
    causal3: Tensor

    def of_utterances(self) -> dict[str, Tensor]:
        """Traits to condition each utterance on, (P * U, 5), by setting."""
        utterances = self.setting1.shape[1]
        return {
            "setting1": self.setting1.flatten(0, 1),
            "setting2": of_profiles(self.setting2, utterances),
            "setting3": of_profiles(self.setting3, utterances),
            "causal3": self.causal3.flatten(0, 1),
        }


class PersonalityModel(nn.Module):
    """Encoder, utterance head and conversation head."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.encoder = Encoder(size)
        self.utterance = PersonalityHead(size, centre=TRAIT_CENTRE)
        self.conversation = ConversationHead(size, inner=size, heads=ATTENTION_HEADS, dropout=0.0, centre=TRAIT_CENTRE)

    def vectors(self, frames: Tensor) -> Tensor:
        """(P, U, T, H) frames -> (P, U, H), rounded to what a server stores."""
        hidden = self.encoder(frames.flatten(0, 1))  # (P * U, T, H)
        return round_to_stored(hidden.mean(dim=1)).view(*frames.shape[:2], -1)

    @torch.no_grad()
    def stored(self, frames: Tensor) -> Tensor:
        """(P, U, T, H) frames -> (P, U, H) vectors, of many speakers."""
        self.eval()
        return torch.cat([self.vectors(part) for part in torch.split(frames, 4 * SPEAKERS_PER_BATCH)])

    @torch.no_grad()
    def predict(self, frames: Tensor) -> Predicted:
        """(P, U, T, H) frames -> traits at every setting."""
        vectors = self.stored(frames)  # (P, U, H)
        setting1 = self.utterance(vectors).clamp(1.0, 7.0)
        return Predicted(
            setting1=setting1,
            setting2=setting1.mean(dim=1),
            setting3=self.conversation(vectors).clamp(1.0, 7.0),
            causal3=torch.stack([self.conversation.causal(speaker) for speaker in vectors]).clamp(1.0, 7.0),
        )


def fit_personality(train: UtteranceSet, dev: UtteranceSet, options: SimulationOptions, seed: int) -> PersonalityModel:
    """Train a model; the result is the epoch with the best mean CCC of settings 1 and 3 on dev."""
    torch.manual_seed(seed)
    model = PersonalityModel(options.size)
    generator = torch.Generator().manual_seed(seed)
    profiles, utterances = train.shape
    frames, truth = by_speaker(train), train.true_traits  # (P, U, T, H), (P, 5)
    batches = -(-profiles // SPEAKERS_PER_BATCH)

    def loss(rows: Tensor) -> Tensor:
        vectors = model.vectors(frames[rows])  # (B, U, H)
        alone = trait_loss(model.utterance(vectors), truth[rows, None].expand(-1, utterances, -1))
        mask = _first_utterances(len(rows), utterances, generator)
        return alone + trait_loss(model.conversation(vectors, mask), truth[rows])

    fit(
        model,
        torch.optim.Adam(model.parameters(), options.learning_rate, fused=True),
        (torch.randperm(profiles, generator=generator).chunk(batches) for _ in range(options.personality_epochs)),
        loss,
        lambda: _score(model, dev),
        steps=options.personality_epochs * batches,
        patience=options.patience,
    )
    return model


def by_speaker(utterances: UtteranceSet) -> Tensor:
    """Frames as (P, U, T, H)."""
    return utterances.frames.view(*utterances.shape, *utterances.frames.shape[1:])


def trait_ccc(predicted: Predicted, truth: Tensor) -> dict[str, float]:
    """CCC by setting, mean of the five traits; settings 1 and causal 3 over utterances, 2 and 3 over speakers.

    truth: (P, 5).
    """
    utterances = predicted.setting1.shape[1]
    each = of_profiles(truth, utterances)
    return {
        "setting1": _mean_ccc(predicted.setting1.flatten(0, 1), each),
        "setting2": _mean_ccc(predicted.setting2, truth),
        "setting3": _mean_ccc(predicted.setting3, truth),
        "causal3": _mean_ccc(predicted.causal3.flatten(0, 1), each),
    }


def causal_curve(predicted: Predicted, truth: Tensor) -> list[float]:
    """CCC of causal setting 3 after 1, 2, ... utterances, mean of the five traits."""
    return [_mean_ccc(predicted.causal3[:, index], truth) for index in range(predicted.causal3.shape[1])]


@torch.no_grad()
def _score(model: PersonalityModel, dev: UtteranceSet) -> float:
    """Mean CCC of setting 1 over utterances and setting 3 over speakers."""
    vectors, truth = model.stored(by_speaker(dev)), dev.true_traits
    alone = _mean_ccc(model.utterance(vectors).flatten(0, 1), of_profiles(truth, dev.shape[1]))
    return (alone + _mean_ccc(model.conversation(vectors), truth)) / 2


def _first_utterances(speakers: int, utterances: int, generator: torch.Generator) -> Tensor:
    """(B, U) mask of the conversation head: the first few utterances of each speaker, all of them in half the cases."""
    count = torch.randint(1, utterances + 1, (speakers, 1), generator=generator)
    whole = torch.rand(speakers, 1, generator=generator) < 0.5
    return (torch.arange(utterances) < count) | whole


def _mean_ccc(predicted: Tensor, truth: Tensor) -> float:
    return sum(ccc(predicted[:, trait].numpy(), truth[:, trait].numpy()) for trait in range(5)) / 5
