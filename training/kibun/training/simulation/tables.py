"""The results of the simulation as tables, for the terminal and as Markdown."""

from collections.abc import Mapping
from typing import Any

from kibun.training.evaluation.report_table import Cell, Row, Table
from kibun.training.simulation.evidence import HEARD
from kibun.training.simulation.paper import SIGMAS

HEADS = (
    ("baseline (no traits)", "baseline", "none"),
    ("Concat", "concat", "additive"),
    ("CA", "ca", "full"),
    ("CA, frames ask", "ca_acoustic", "full"),
    ("CA, widened", "ca_wide", "full"),
    ("CA, deepened", "ca_deep", "full"),
    ("TICN-CA", "ticn_ca", "full"),
    ("TICN-CA, frames ask", "ticn_ca_acoustic", "full"),
    ("TICN-CA, trained on shuffled traits", "shuffled", "none"),
    ("TICN-CA, shuffled at test only", "shuffled_at_test", "none"),
    ("traits only (linear, no audio)", "traits_only", "additive"),
)
BY_WORLD = ("baseline", "concat", "ca", "ca_wide", "ca_deep", "ticn_ca")
SETTINGS = (
    ("setting 1", "setting1"),
    ("setting 2", "setting2"),
    ("setting 2, calibrated", "setting2_calibrated"),
    ("setting 3", "setting3"),
    ("setting 3, calibrated", "setting3_calibrated"),
    ("causal 3", "causal3"),
)
HEARD_COLUMNS = (("as heard", "plain"), ("weighted", "weighted"), ("mixed", "mixed"))


def to_tables(payload: Mapping[str, Any]) -> list[Table]:
    """Tables of the pooled figures, of each world, and of the verdicts."""
    worlds = payload["worlds"]
    # Over worlds, or over seeds where there is one world.
    figures = payload["pooled"] if len(worlds) > 1 else worlds[0]
    return [
        _heads(payload, figures),
        _by_world(payload),
        *_traits(figures),
        Table(
            "Valence by TICN-CA given true traits + N(0, σ), CCC",
            ("σ", "CCC of valence"),
            tuple(Row(f"{sigma:g}", (_cell(figures, f"noise.{sigma:g}"),)) for sigma in SIGMAS),
            digits=3,
        ),
        _verdicts(payload),
    ]


def _heads(payload: Mapping[str, Any], figures: Mapping[str, Any]) -> Table:
    worlds, seeds, options = len(payload["worlds"]), len(payload["seeds"]), payload["options"]
    rows = []
    for label, name, limit in HEADS:
        control = f"control.{name}" in figures
        rows.append(
            Row(
                label,
                (
                    Cell(payload["parameters"].get(name)),
                    _cell(figures, name),
                    _cell(figures, f"ceilings.{limit}"),
                    _cell(figures, f"control.{name}") if control else Cell(None),
                    _cell(figures, f"control.ceilings.{limit}") if control else Cell(None),
                ),
            )
        )
    title = (
        f"Valence on test, CCC: {options['profiles']} profiles of {options['utterances']} utterances"
        f"{' as sound' if options['audio'] else ''}, {worlds} world{'s' * (worlds > 1)},"
        f" {seeds} seed{'s' * (seeds > 1)}; mean ± sd over {'worlds' if worlds > 1 else 'seeds'}"
    )
    return Table(
        title,
        ("head", "its parameters", "CCC", "its ceiling", "control", "its ceiling"),
        tuple(rows),
        ("Control: worlds in which traits only shift valence.",),
        digits=3,
    )


def _by_world(payload: Mapping[str, Any]) -> Table:
    rows = [(f"ceiling: {limit}", f"ceilings.{limit}") for limit in ("none", "additive", "full")]
    rows += [(label, name) for label, name, _ in HEADS if name in BY_WORLD]
    worlds = payload["worlds"]
    return Table(
        "Each world, CCC, mean ± sd over seeds",
        ("world", *(str(world["world"]) for world in worlds)),
        tuple(Row(label, tuple(_cell(world, name) for world in worlds)) for label, name in rows),
        digits=3,
    )


def _traits(figures: Mapping[str, Any]) -> list[Table]:
    """Traits at every setting, and by how much was heard; no tables where they are inaudible."""
    if "personality.setting1" not in figures:
        return []
    settings = [
        Row("none", (Cell(None), _cell(figures, "baseline"))),
        *(
            Row(label, (_cell(figures, f"personality.{name}"), _cell(figures, f"predicted.{name}")))
            for label, name in SETTINGS
        ),
        Row("truth", (Cell(None), _cell(figures, "ticn_ca"))),
    ]
    columns = tuple(name for _, name in HEARD_COLUMNS)
    constant = ("constant.plain", "constant.plain", "constant.mixed")
    truth = ("ticn_ca", "ticn_ca", "truth.mixed")
    heard = [Row("constant", (Cell(None), *(_cell(figures, name) for name in constant)))]
    for count in HEARD:
        if f"heard.{count}.traits" in figures:
            names = ("traits", *columns)
            heard.append(Row(str(count), tuple(_cell(figures, f"heard.{count}.{name}") for name in names)))
    heard.append(Row("truth", (Cell(None), *(_cell(figures, name) for name in truth))))
    return [
        Table(
            "Traits at the paper's settings, and valence by TICN-CA given these traits, CCC",
            ("traits", "CCC of the traits", "CCC of valence"),
            tuple(settings),
            ("Calibrated: one line per trait, fitted on dev.",),
            digits=3,
        ),
        Table(
            "Valence by TICN-CA with traits of causal setting 3 after so many utterances, CCC",
            ("heard", "CCC of the traits", *(label for label, _ in HEARD_COLUMNS)),
            tuple(heard),
            (
                "Weighted: by evidence; both trained on true traits. Mixed: trained on weighted causal traits.",
                f"Without traits, the baseline: {figures['baseline']['mean']:.3f}.",
            ),
            digits=3,
        ),
    ]


def _verdicts(payload: Mapping[str, Any]) -> Table:
    count = len(payload["worlds"])
    rows = [
        Row(
            each["claim"],
            (
                Cell(f"{each['mean']:+.3f}" + (f" ± {each['sd']:.3f}" if each["sd"] is not None else "")),
                Cell(each["unit"]),
                Cell(each["bounds"]),
                Cell(f"{sum(each['held'])} of {count}"),
                Cell(_required(each)),
            ),
        )
        for each in payload["verdicts"]
    ]
    notes: tuple[str, ...] = (payload["note"],)
    if "cue_accuracy" in payload["pooled"]:
        accuracy = payload["pooled"]["cue_accuracy"]["mean"]
        notes += (f"The frozen trunk names the cue in {accuracy:.1%} of the frames of new voices.",)
    columns = ("claim", "figure, mean ± sd over worlds", "unit", "holds if", "in worlds", "required")
    return Table("Verdicts", columns, tuple(rows), notes)


def _required(verdict: Mapping[str, Any]) -> str:
    if verdict["required"] == "no":
        return "no"
    return f"{verdict['required']}{'' if verdict['holds'] else ': FAILS'}"


def _cell(figures: Mapping[str, Any], name: str) -> Cell:
    return Cell(figures[name]["mean"], figures[name]["sd"])
