"""What the simulation is to show, measured by the gap between ceilings, and in how many worlds each claim holds.

Worlds differ in what traits can explain, so differences of CCC do not compare. A share of a gap does: of that between
the ceilings without traits and with traits that only shift valence (none → additive), of that from there to traits that
interact (additive → full), or of both (none → full).
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from kibun.training.simulation.paper import SIGMAS

Means = Mapping[str, float]
"""Figures of one world by name, means over seeds."""

Required = Literal["all", "most", "no"]
"""In how many worlds a claim has to hold; "no": it is a question, whose answer is reported."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim that holds in a world where its figure there is within low..high; `unit` says what the figure is."""

    text: str
    figure: Callable[[Means], float]
    unit: str
    required: Required
    low: float = float("-inf")
    high: float = float("inf")

    @property
    def bounds(self) -> str:
        """The figures with which it holds."""
        if self.low == float("-inf"):
            return f"≤ {self.high:g}"
        return f"≥ {self.low:g}" if self.high == float("inf") else f"{self.low:g} to {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim's figure in each world, where it holds, and whether that suffices."""

    claim: str
    unit: str
    bounds: str
    required: Required
    values: list[float]
    held: list[bool]
    holds: bool


def judge(claims: Sequence[Claim], worlds: Sequence[Means]) -> list[Verdict]:
    """Each claim in these worlds."""
    verdicts = []
    for claim in claims:
        values = [claim.figure(means) for means in worlds]
        held = [claim.low <= value <= claim.high for value in values]
        enough = {"all": all(held), "most": 2 * sum(held) > len(held), "no": 2 * sum(held) > len(held)}
        verdicts.append(
            Verdict(claim.text, claim.unit, claim.bounds, claim.required, values, held, enough[claim.required])
        )
    return verdicts


def _share(higher: str, lower: str, gap: tuple[str, str]) -> Callable[[Means], float]:
    """(higher − lower) as a share of the gap between two figures."""
    return lambda means: (means[higher] - means[lower]) / (means[gap[1]] - means[gap[0]])


def _rise(*names: str) -> Callable[[Means], float]:
    """The smallest step from one figure to the next."""
    return lambda means: min(means[after] - means[before] for before, after in itertools.pairwise(names))


def _margin(means: Means) -> float:
    """How far the nearest head is below its ceiling."""
    conditioned = ("ca", "ca_acoustic", "ca_wide", "ca_deep", "ticn_ca", "ticn_ca_acoustic")
    bounds = [
        *(("ceilings.none", head) for head in ("baseline", "shuffled")),
        ("ceilings.additive", "concat"),
        *(("ceilings.full", head) for head in conditioned),
        ("control.ceilings.none", "control.baseline"),
        ("control.ceilings.additive", "control.concat"),
        *(("control.ceilings.full", f"control.{head}") for head in ("ca", "ticn_ca")),
    ]
    return min(means[bound] - means[head] for bound, head in bounds)


def _first_utterance(head: str) -> Callable[[Means], float]:
    """What traits heard after one utterance gain over the better of the baseline and constant traits."""

    def figure(means: Means) -> float:
        without = max(means["baseline"], means[f"constant.{head}"])
        return (means[f"heard.1.{head}"] - without) / (means["ceilings.full"] - means["ceilings.none"])

    return figure


def _early_fall(means: Means) -> float:
    return (means["noise.0"] - means["noise.0.2"]) / (means["noise.0"] - means[f"noise.{SIGMAS[-1]:g}"])


_SHIFT = ("ceilings.none", "ceilings.additive")
_INTERACTION = ("ceilings.additive", "ceilings.full")
_WHOLE = ("ceilings.none", "ceilings.full")
_CONTROL = ("control.ceilings.none", "control.ceilings.additive")
_OF_SHIFT, _OF_INTERACTION, _OF_WHOLE = "of none → additive", "of additive → full", "of none → full"

HEAD_CLAIMS = (
    Claim("Concat gains half of what shifts can", _share("concat", "baseline", _SHIFT), _OF_SHIFT, "all", 0.5),
    Claim("CA closes half of the rest", _share("ca", "ceilings.additive", _INTERACTION), _OF_INTERACTION, "most", 0.5),
    Claim(
        "TICN-CA closes half of the rest",
        _share("ticn_ca", "ceilings.additive", _INTERACTION),
        _OF_INTERACTION,
        "most",
        0.5,
    ),
    Claim("TICN-CA above CA", _share("ticn_ca", "ca", _INTERACTION), _OF_INTERACTION, "most", 0.0),
    Claim("TICN-CA above CA widened to its size", _share("ticn_ca", "ca_wide", _INTERACTION), _OF_INTERACTION, "no", 0),
    Claim(
        "TICN-CA above CA deepened to its size", _share("ticn_ca", "ca_deep", _INTERACTION), _OF_INTERACTION, "no", 0.0
    ),
    Claim("CA: traits, not frames, have to ask", _share("ca", "ca_acoustic", _WHOLE), _OF_WHOLE, "all", 0.1),
    Claim("TICN-CA: either side can ask", _share("ticn_ca", "ticn_ca_acoustic", _WHOLE), _OF_WHOLE, "no", -0.05, 0.05),
    Claim("no head above its ceiling", _margin, "CCC below, the nearest", "all", 0.0),
    Claim("trained on shuffled traits ≈ baseline", _share("shuffled", "baseline", _WHOLE), _OF_WHOLE, "all", -0.1, 0.1),
    Claim(
        "control: TICN-CA gains nothing",
        lambda means: means["control.gain"] / (means[_CONTROL[1]] - means[_CONTROL[0]]),
        _OF_SHIFT,
        "all",
        high=0.05,
    ),
    Claim(
        "noise on traits costs at every step",
        _rise(*(f"noise.{sigma:g}" for sigma in reversed(SIGMAS))),
        "CCC, the smallest step",
        "all",
        0.0,
    ),
    Claim("noise costs little at first: up to σ = .2", _early_fall, "of the fall to σ = 1.6", "all", high=0.25),
)

TRAIT_CLAIMS = (
    Claim(
        "settings 1 < 2 < 3",
        _rise("personality.setting1", "personality.setting2", "personality.setting3"),
        "CCC of traits, the smaller step",
        "most",
        0.0,
    ),
    Claim(
        "setting 3 above setting 2 calibrated",
        _rise("personality.setting2_calibrated", "personality.setting3"),
        "CCC of traits",
        "no",
        0.0,
    ),
    Claim(
        "causal setting 3 between 1 and 3",
        _rise("personality.setting1", "personality.causal3", "personality.setting3"),
        "CCC of traits, the smaller step",
        "most",
        0.0,
    ),
    Claim(
        "valence: setting 3's traits between none and truth",
        _share("predicted.setting3", "baseline", ("baseline", "ticn_ca")),
        "of the gain by true traits",
        "all",
        0.0,
        1.0,
    ),
    Claim(
        "valence: setting 3 above setting 2 calibrated",
        _share("predicted.setting3", "predicted.setting2_calibrated", ("baseline", "ticn_ca")),
        "of the gain by true traits",
        "no",
        0.0,
    ),
    Claim("first utterance not hurt: trained on truth", _first_utterance("plain"), _OF_WHOLE, "no", -0.02),
    Claim("first utterance not hurt: mixed", _first_utterance("mixed"), _OF_WHOLE, "all", -0.02),
    Claim("mixed loses little on true traits", _share("truth.mixed", "ticn_ca", _WHOLE), _OF_WHOLE, "no", -0.05),
)
