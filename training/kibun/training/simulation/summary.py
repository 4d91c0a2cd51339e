"""The results of the simulation: mean and sd over seeds, the verdicts, and both as tables."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kibun.training.evaluation.report_table import Cell, Row, Table
from kibun.training.simulation.data import SimulationOptions
from kibun.training.simulation.paper import SIGMAS, Figures

NOTE = (
    "Simulated data with known ground truth: this shows that the mechanism works, not the gain on IEMOCAP."
    " No IEMOCAP and no pretrained weights were used."
)
ENOUGH_PROFILES = 1000  # from here on TICN-CA must not fall behind CA
PERSONALITY_TITLE = "Traits at the paper's settings, CCC, and valence by TICN-CA given these traits"
SETTING_FIGURES = (
    ("setting 1", "setting1"),
    ("setting 2", "setting2"),
    ("setting 3", "setting3"),
    ("causal 3", "causal3"),
)
SHUFFLED_TOLERANCE = 0.05
CONTROL_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim, the figures that it rests on, and whether it holds. One that is not required never fails the command."""

    claim: str
    figures: str
    holds: bool
    required: bool = True


def summarise(by_seed: Mapping[int, Figures], options: SimulationOptions, seconds: float) -> dict[str, Any]:
    """The one object of `--json`; figures are CCC on test, {"mean", "sd", "values"} each, values in order of seeds."""
    for figures in by_seed.values():
        figures["control.gain"] = figures["control.ticn_ca"] - max(
            figures["control.baseline"], figures["control.concat"]
        )
    results: dict[str, Any] = {}
    for name in sorted(next(iter(by_seed.values())), key=_order):
        values = [by_seed[seed][name] for seed in sorted(by_seed)]
        *path, last = name.split(".", 1) if not name.startswith("control.ceilings") else name.split(".")
        place = results
        for part in path:
            place = place.setdefault(part, {})
        place[last] = mean_sd(values)
    if "predicted" in results:
        results["predicted"] = {"none": results["baseline"], **results["predicted"], "truth": results["ticn_ca"]}
    # The control in one figure: TICN-CA beyond the better of the heads without interaction.
    results["control"] |= results["control"]["gain"]
    checked = verdicts(results, options.profiles)
    return {
        **results,
        "profiles": options.profiles,
        "seeds": sorted(by_seed),
        "seconds": round(seconds, 1),
        "options": dataclasses.asdict(options),
        "note": NOTE,
        "verdicts": [dataclasses.asdict(verdict) for verdict in checked],
        "passed": all(verdict.holds for verdict in checked if verdict.required),
    }


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "sd", "values"}; sd of the sample (ddof 1), None for a single value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "values": list(values)}


def verdicts(results: Mapping[str, Any], profiles: int) -> list[Verdict]:
    """The claims that the simulation is to show, and whether each holds; all about means over seeds."""

    def mean(path: str) -> float:
        place: Any = results
        for part in path.split("/"):
            place = place[part]
        return float(place["mean"])

    def rising(claim: str, *paths: str, required: bool = True) -> Verdict:
        means = [mean(path) for path in paths]
        holds = all(before <= after for before, after in itertools.pairwise(means))
        return Verdict(claim, " ≤ ".join(f"{value:.3f}" for value in means), holds, required)

    baseline, concat, ca = mean("baseline"), mean("concat"), mean("ca")
    shuffled, gain = mean("shuffled") - baseline, mean("control/gain")
    bounds = [
        *(("ceilings/none", head) for head in ("baseline", "shuffled")),
        ("ceilings/additive", "concat"),
        *(("ceilings/full", head) for head in ("ca", "ticn_ca")),
        ("control/ceilings/none", "control/baseline"),
        ("control/ceilings/additive", "control/concat"),
        *(("control/ceilings/full", f"control/{head}") for head in ("ca", "ticn_ca")),
    ]
    nearest = min(mean(bound) - mean(head) for bound, head in bounds)
    noise = [mean(f"noise/{sigma:g}") for sigma in SIGMAS]
    traits = []
    if "personality" in results:
        settings = ("personality/setting1", "personality/setting2", "personality/setting3")
        traits = [
            rising("PR settings 1 < 2 < 3", *settings),
            rising("causal setting 3 between 1 and 3", settings[0], "personality/causal3", settings[2]),
            rising(
                "predicted traits between none and truth", "predicted/none", "predicted/setting3", "predicted/truth"
            ),
        ]
    return [
        Verdict("baseline + .05 < Concat", f"{baseline:.3f} + .05 < {concat:.3f}", baseline + 0.05 < concat),
        Verdict("Concat + .2 < CA", f"{concat:.3f} + .2 < {ca:.3f}", concat + 0.2 < ca),
        rising(
            f"CA ≤ TICN-CA (from {ENOUGH_PROFILES} profiles on)", "ca", "ticn_ca", required=profiles >= ENOUGH_PROFILES
        ),
        Verdict("no head above its ceiling", f"nearest {nearest:.3f} below", nearest >= 0),
        Verdict("shuffled ≈ baseline", f"{shuffled:+.3f}", abs(shuffled) <= SHUFFLED_TOLERANCE),
        Verdict("no gain of TICN-CA in the control world", f"{gain:+.3f}", gain <= CONTROL_TOLERANCE),
        *traits,
        Verdict(
            "noisy traits: falls all along, slowly at first",
            " > ".join(f"{value:.3f}" for value in noise),
            all(before > after for before, after in itertools.pairwise(noise))
            and noise[0] - noise[2] < (noise[0] - noise[-1]) / 4,
        ),
    ]


def to_tables(payload: Mapping[str, Any]) -> list[Table]:
    """For the terminal and for Markdown."""
    seeds, profiles = len(payload["seeds"]), payload["profiles"]
    control, bound = payload["control"], payload["ceilings"]
    rows = [
        Row(label, (_cell(payload[name]), _cell(bound[limit]), _cell(control[name]), _cell(control["ceilings"][limit])))
        for label, name, limit in (
            ("baseline (no traits)", "baseline", "none"),
            ("Concat", "concat", "additive"),
            ("CA", "ca", "full"),
            ("TICN-CA", "ticn_ca", "full"),
        )
    ]
    rows += [
        Row(label, (_cell(payload[name]), _cell(bound[limit]), Cell(None), Cell(None)))
        for label, name, limit in (
            ("TICN-CA, trained on shuffled traits", "shuffled", "none"),
            ("TICN-CA, shuffled at test only", "shuffled_at_test", "none"),
            ("traits only (linear, no audio)", "traits_only", "additive"),
        )
    ]
    of = " of sound" if payload["options"]["audio"] else ""
    title = (
        f"Valence on test, CCC: {profiles} profiles{of} to train on, {seeds} seed{'s' if seeds > 1 else ''}, mean ± sd"
    )
    columns = ("head", "world", "its ceiling", "control world", "its ceiling")
    noise = [Row(f"{sigma:g}", (_cell(payload["noise"][f"{sigma:g}"]),)) for sigma in SIGMAS]
    checked = [
        Row(each["claim"], (Cell(each["figures"]), Cell(_word(each["holds"], each["required"]))))
        for each in payload["verdicts"]
    ]
    notes: tuple[str, ...] = (payload["note"],)
    if "cue_accuracy" in payload:
        notes += (
            f"The frozen trunk names the cue in {payload['cue_accuracy']['mean']:.0%} of the frames of new voices.",
        )
    return [
        Table(title, columns, tuple(rows), digits=3),
        *_personality_tables(payload),
        Table("Valence by TICN-CA given true traits + N(0, σ)", ("σ", "valence"), tuple(noise), digits=3),
        Table("Verdicts", ("claim", "figures", "holds"), tuple(checked), notes),
    ]


def _personality_tables(payload: Mapping[str, Any]) -> list[Table]:
    """Traits at every setting; no table where they are inaudible."""
    if "personality" not in payload:
        return []
    rows = [
        Row("none", (Cell(None), _cell(payload["predicted"]["none"]))),
        *(
            Row(label, (_cell(payload["personality"][name]), _cell(payload["predicted"][name])))
            for label, name in SETTING_FIGURES
        ),
        Row("truth", (Cell(None), _cell(payload["predicted"]["truth"]))),
    ]
    return [Table(PERSONALITY_TITLE, ("traits", "CCC of the traits", "CCC of valence"), tuple(rows), digits=3)]


def _cell(figure: Mapping[str, Any]) -> Cell:
    return Cell(figure["mean"], figure["sd"])


def _word(holds: bool, required: bool) -> str:
    return ("yes" if holds else "NO") + ("" if required else " (not required)")


def _order(name: str) -> tuple[str, float]:
    """Names in order; those that end in a number by that number."""
    start, _, number = name.partition(".")
    try:
        return start, float(number)
    except ValueError:
        return start, 0.0
