"""Traits as a service has them: predicted from what was heard so far, little at first, and trained for.

A head that was trained on true traits trusts whatever it is given. After one utterance that is mostly noise. Two
remedies, measured apart and together: traits are weighted by their evidence (`kibun.models.evidence`), that is drawn
towards the population mean by what dev says that they are worth after so many utterances; and the head is trained on
such traits, so that it has seen all amounts of evidence.
"""

import numpy as np
import torch
from torch import Tensor

from kibun.models import evidence
from kibun.training.simulation.data import SimulationOptions, Splits, UtteranceSet, of_profiles
from kibun.training.simulation.heads import EmotionEstimator, fit_head
from kibun.training.simulation.personality import PersonalityModel, by_speaker, fit_personality, mean_ccc
from kibun.training.simulation.world import TRAIT_CENTRE

HEARD = (1, 2, 3, 6, 12, 24)  # utterances
# Of the utterances that a mixed head is trained on: with constant traits, and, of the rest, with true ones in the first
# and in the last epoch.
CONSTANT_SHARE = 0.1
TRUE_SHARE = (1.0, 0.25)


def on_heard_traits(
    plain: EmotionEstimator,
    personality: PersonalityModel,
    splits: Splits,
    audible: Splits,
    options: SimulationOptions,
    seed: int,
) -> dict[str, float]:
    """CCC on test with traits heard after 1, 2, ... utterances, and with constant ones.

    plain: TICN-CA trained on true traits. audible: the same scenes as `splits`, with frames that show traits. Every
    utterance is estimated at every count, so the figures differ in nothing but the evidence.
    """
    test, (_, utterances) = splits.test, splits.test.shape
    mixed = fit_mixed(personality, splits, audible, options, seed)
    causal = personality.predict(by_speaker(audible.test)).causal3  # (P, U, 5)
    weighted = weigh(causal, evidence_weights(personality, audible.dev))
    constant = test.with_traits(torch.full_like(test.traits, TRAIT_CENTRE))
    figures = {
        "constant.plain": plain.ccc(constant),
        "constant.mixed": mixed.ccc(constant),
        "truth.mixed": mixed.ccc(test),
    }
    for count in (count for count in HEARD if count <= utterances):
        raw, shrunk = (test.with_traits(of_profiles(each[:, count - 1], utterances)) for each in (causal, weighted))
        figures |= {
            f"heard.{count}.traits": mean_ccc(causal[:, count - 1], test.true_traits),
            f"heard.{count}.plain": plain.ccc(raw),
            f"heard.{count}.weighted": plain.ccc(shrunk),
            f"heard.{count}.mixed": mixed.ccc(shrunk),
        }
    return figures


def fit_mixed(
    personality: PersonalityModel, splits: Splits, audible: Splits, options: SimulationOptions, seed: int
) -> EmotionEstimator:
    """TICN-CA trained on weighted causal traits after a random number of utterances, on true and on constant ones.

    Traits of the speakers to train on come from models that have not seen these speakers: those of one half from a
    model trained on the other half. Otherwise they would be better than any that come in service.
    """
    halves = torch.arange(audible.train.shape[0]).chunk(2)
    heard = torch.empty(*audible.train.shape, 5)
    for unseen, seen in (halves, halves[::-1]):
        half = fit_personality(audible.train.of_speakers(seen), audible.dev, options, seed)
        causal = half.predict(by_speaker(audible.train.of_speakers(unseen))).causal3
        heard[unseen] = weigh(causal, evidence_weights(half, audible.dev))
    on_dev = weigh(personality.predict(by_speaker(audible.dev)).causal3, evidence_weights(personality, audible.dev))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(10,)))
    dev = splits.dev.with_traits(_mixed(splits.dev, on_dev, TRUE_SHARE[1], rng))
    first, last = TRUE_SHARE

    def traits_of(epoch: int) -> Tensor:
        return _mixed(splits.train, heard, first + (last - first) * (epoch + 0.5) / options.epochs, rng)

    return fit_head("ticn-ca", splits.train, dev, options, seed, traits_of=traits_of)


def evidence_weights(personality: PersonalityModel, dev: UtteranceSet) -> Tensor:
    """(U, 5), 0..1: what causal traits after 1, 2, ... utterances are worth, measured on dev as a bundle's are."""
    causal = personality.predict(by_speaker(dev)).causal3.numpy()  # (P, U, 5)
    truth, centre = dev.true_traits.numpy(), [TRAIT_CENTRE] * 5
    counts = range(1, causal.shape[1] + 1)
    return torch.tensor([evidence.measured(count, causal[:, count - 1], truth, centre).weight for count in counts])


def weigh(causal: Tensor, weights: Tensor) -> Tensor:
    """Causal traits (P, U, 5) drawn towards the population mean by weights (U, 5)."""
    return torch.from_numpy(evidence.shrunk(causal.numpy(), weights.numpy(), [TRAIT_CENTRE] * 5)).float()


def _mixed(utterances: UtteranceSet, causal: Tensor, true_share: float, rng: np.random.Generator) -> Tensor:
    """(N, 5): constant traits, true ones, or causal ones (P, U, 5) after a random, often small count of utterances."""
    profiles, length = utterances.shape
    drawn = np.exp(rng.uniform(0.0, np.log(length + 1), (profiles, length)))  # log-uniform
    count = torch.from_numpy(np.minimum(drawn.astype(np.int64), length))  # 1..U
    traits = causal[torch.arange(profiles)[:, None], count - 1]  # (P, U, 5)
    is_true, is_constant = torch.from_numpy(rng.random((2, profiles, length)))[..., None]
    traits = torch.where(is_true < true_share, utterances.true_traits[:, None], traits)
    return torch.where(is_constant < CONSTANT_SHARE, TRAIT_CENTRE, traits).flatten(0, 1)
