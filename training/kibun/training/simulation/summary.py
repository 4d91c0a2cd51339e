"""The results of the simulation in one object: figures of each world, pooled over worlds, and the verdicts."""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kibun.training.simulation.data import SimulationOptions
from kibun.training.simulation.heads import parameters
from kibun.training.simulation.paper import ROWS, Figures
from kibun.training.simulation.verdicts import HEAD_CLAIMS, TRAIT_CLAIMS, judge

NOTE = (
    "Simulated data with known ground truth: this shows that the mechanism works, not the gain on IEMOCAP."
    " No IEMOCAP and no pretrained weights were used."
)


def summarise(
    measured: Mapping[tuple[int, int], Figures], options: SimulationOptions, seconds: float
) -> dict[str, Any]:
    """The one object of `--json`, from the figures by world and seed.

    worlds: of each world its seed, and its figures as {"mean", "sd", "values"} over seeds. pooled: the same figures
    over the means of worlds. Figures are CCC on test. verdicts: each claim's figure by world and pooled.
    """
    for figures in measured.values():
        # The control in one figure: TICN-CA beyond the better of the heads without interaction.
        without = max(figures["control.baseline"], figures["control.concat"])
        figures["control.gain"] = figures["control.ticn_ca"] - without
    seeds = sorted({seed for _, seed in measured})
    names = sorted(next(iter(measured.values())), key=_order)
    worlds = {
        world: {name: mean_sd([measured[world, seed][name] for seed in seeds]) for name in names}
        for world in sorted({world for world, _ in measured})
    }
    means = [{name: figure["mean"] for name, figure in figures.items()} for figures in worlds.values()]
    has_traits = "personality.setting1" in names
    verdicts = judge(HEAD_CLAIMS + (TRAIT_CLAIMS if has_traits else ()), means)
    return {
        "worlds": [{"world": world, **figures} for world, figures in worlds.items()],
        "pooled": {name: mean_sd([each[name] for each in means]) for name in names},
        "parameters": {row.replace("-", "_"): parameters(row, options.size) for row in ROWS},
        "verdicts": [{**dataclasses.asdict(verdict), **mean_sd(verdict.values)} for verdict in verdicts],
        "seeds": seeds,
        "options": dataclasses.asdict(options),
        "seconds": round(seconds, 1),
        "note": NOTE,
        "passed": all(verdict.holds for verdict in verdicts if verdict.required != "no"),
    }


def mean_sd(values: Sequence[float]) -> dict[str, Any]:
    """{"mean", "sd", "values"}; sd of the sample (ddof 1), None for a single value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "values": list(values)}


def _order(name: str) -> list[tuple[float, str]]:
    """Names in order, numbers in them by size: "noise.0.1", "heard.12.mixed"."""
    parts = re.split(r"\.(?=[a-z])|(?<=[a-z])\.(?=\d)", name)
    return [(float(part), "") if part[0].isdigit() else (-1.0, part) for part in parts]
