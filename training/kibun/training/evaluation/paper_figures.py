"""Published figures of the paper, for comparison in the tables. Figures that are not here are shown as "–".

Gao, Shi, Fu, Chu, Kawahara, "Bridging Speech Emotion Recognition and Personality: Dataset and Temporal Interaction
Condition Network", IEEE Transactions on Affective Computing, 2025 (arXiv 2505.13978). Only figures that we have read in
a source are here, each with its source; none is guessed. Those of table III (conversations) are not among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

AVERAGE = "average"
PUBLISHED_SPLITS = ("paper", "paper_2to5")  # splits whose test half is the paper's; Table VIII: the `loso` splits


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

# Table II: Pearson's r over all 10,039 utterances of IEMOCAP, 5,239 of men and 4,800 of women, as (valence, arousal) by
# trait. Source: the results that the authors publish beside their scripts, github.com/gitgaviny/IEMOCAP_personality,
# correlation_analysis/pcc_utterance_level_by_gender.txt.
UTTERANCES = {"all": 10_039, "male": 5_239, "female": 4_800}
CORRELATIONS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "all": {
        "openness": (0.527, 0.088),
        "conscientiousness": (0.327, -0.214),
        "extraversion": (0.350, 0.315),
        "agreeableness": (0.508, -0.114),
        "neuroticism": (-0.447, 0.189),
    },
    "male": {
        "openness": (0.500, 0.092),
        "conscientiousness": (0.283, -0.189),
        "extraversion": (0.348, 0.287),
        "agreeableness": (0.463, -0.095),
        "neuroticism": (-0.390, 0.198),
    },
    "female": {
        "openness": (0.550, 0.084),
        "conscientiousness": (0.376, -0.242),
        "extraversion": (0.356, 0.343),
        "agreeableness": (0.546, -0.135),
        "neuroticism": (-0.498, 0.187),
    },
}

# CCC on IEMOCAP by (row, column) of the tables that kibun prints; in Table VIII the column begins with the dimension,
# as in "valence, mean of folds". This is the place of every cell of tables IV to VIII and of Figure 3. At hand is what
# the abstract states of valence: .698 without traits, .785 with true and .776 with predicted ones. It does not name
# the setting of the predicted ones; that they are of conversations, so of setting 3, is from the summary of the paper
# at sciencestack.ai/paper/2505.13978. All other cells are not at hand.
_BASELINE, _TRUE_TRAITS, _PREDICTED_TRAITS = 0.698, 0.785, 0.776
CELLS: Mapping[str, Mapping[tuple[str, str], float]] = {
    "IV": {("baseline", "valence"): _BASELINE, ("TICN-CA, all", "valence"): _TRUE_TRAITS},
    "V": {},
    "VI": {
        ("baseline", "valence"): _BASELINE,
        ("TICN-CA, true traits, all", "valence"): _TRUE_TRAITS,
        ("TICN-CA, setting 3 traits, all", "valence"): _PREDICTED_TRAITS,
    },
    "VII": {("baseline", "valence"): _BASELINE, ("TICN-CA, sigma 0", "valence"): _TRUE_TRAITS},
    "VIII": {},
    "Figure 3": {("valence", "single task"): _BASELINE},
}
