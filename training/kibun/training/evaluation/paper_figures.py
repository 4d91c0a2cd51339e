"""Published figures of the paper, for comparison in the tables. Figures that are not here are shown as "–".

Gao, Shi, Fu, Chu, Kawahara, "Bridging Speech Emotion Recognition and Personality: Dataset and Temporal Interaction
Condition Network", IEEE Transactions on Affective Computing, 2025. Only figures whose place in the paper is known are
here; none is guessed. Those of tables II and III (correlations) are not among them.
"""

from dataclasses import dataclass

AVERAGE = "average"
PUBLISHED_SPLITS = ("paper", "paper_2to5")  # splits whose test half is the paper's


@dataclass(frozen=True)
class PublishedAgreement:
    """A column of Table I: agreement of the raters after dropping the one farthest from the mean."""

    icc2k: float
    icc3k: float
    kappa: float


AGREEMENT = {
    "openness": PublishedAgreement(0.89, 0.90, 0.49),
    "conscientiousness": PublishedAgreement(0.89, 0.89, 0.53),
    "extraversion": PublishedAgreement(0.89, 0.89, 0.47),
    "agreeableness": PublishedAgreement(0.97, 0.97, 0.83),
    "neuroticism": PublishedAgreement(0.95, 0.95, 0.71),
    AVERAGE: PublishedAgreement(0.92, 0.92, 0.61),
}

# Averages over the traits with all six raters.
UNTRIMMED_ICC2K, UNTRIMMED_KAPPA = 0.83, 0.39

# CCC of valence on IEMOCAP, from the abstract.
VALENCE_CCC = {"baseline": 0.698, "ticn-ca, true traits": 0.785, "ticn-ca, predicted traits": 0.776}
