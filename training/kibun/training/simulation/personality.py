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

    def by_setting(self, dev: "Predicted", dev_truth: Tensor) -> dict[str, Tensor]:
        """Traits to condition each utterance on, (P * U, 5), by setting; dev and its truth (D, 5) for calibration."""
        utterances = self.setting1.shape[1]
        return {
            "setting1": self.setting1.flatten(0, 1),
            "setting2": of_profiles(self.setting2, utterances),
            "setting2_calibrated": of_profiles(calibrated(self.setting2, dev.setting2, dev_truth), utterances),
            "setting3": of_profiles(self.setting3, utterances),
            "setting3_calibrated": of_profiles(calibrated(self.setting3, dev.setting3, dev_truth), utterances),
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


def calibrated(predicted: Tensor, dev: Tensor, dev_truth: Tensor) -> Tensor:
    """(P, 5) on one straight line per trait, the least-squares line from dev (D, 5) to its truth; within 1..7."""
    centred, mean = dev - dev.mean(dim=0), dev_truth.mean(dim=0)
    slope = (centred * (dev_truth - mean)).sum(dim=0) / centred.square().sum(dim=0).clamp(min=1e-8)  # (5,)
    return (mean + slope * (predicted - dev.mean(dim=0))).clamp(1.0, 7.0)


def mean_ccc(predicted: Tensor, truth: Tensor) -> float:
    """CCC of traits, mean of the five; (N, 5) each."""
    return sum(ccc(predicted[:, trait].numpy(), truth[:, trait].numpy()) for trait in range(5)) / 5


@torch.no_grad()
def _score(model: PersonalityModel, dev: UtteranceSet) -> float:
    """Mean CCC of setting 1 over utterances and setting 3 over speakers."""
    vectors, truth = model.stored(by_speaker(dev)), dev.true_traits
    alone = mean_ccc(model.utterance(vectors).flatten(0, 1), of_profiles(truth, dev.shape[1]))
    return (alone + mean_ccc(model.conversation(vectors), truth)) / 2


def _first_utterances(speakers: int, utterances: int, generator: torch.Generator) -> Tensor:
    """(B, U) mask of the conversation head: the first few utterances of each speaker, all of them in half the cases."""
    count = torch.randint(1, utterances + 1, (speakers, 1), generator=generator)
    whole = torch.rand(speakers, 1, generator=generator) < 0.5
    return (torch.arange(utterances) < count) | whole
