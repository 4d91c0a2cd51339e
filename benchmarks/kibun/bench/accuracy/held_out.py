"""How good is a bundle, as served, on held-out speakers of a corpus?"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from kibun.models.bundle import load_bundle
from kibun.models.files import evidence_rows
from kibun.models.types import TRAITS, Traits
from kibun.training.corpora.manifest import load_manifest
from kibun.training.demo_tiny.evaluate import analyze_causally, ccc_as_served, ccc_spread
from kibun.training.evaluation.predictions import expected_error
from kibun.training.evaluation.report_table import Cell, Row, Table


def measure(model_name: str, manifest: Path, split: str) -> tuple[dict[str, object], tuple[Table, Table]]:
    """CCC of each output, and the traits' error by number of utterances, as JSON and as tables.

    Plays every speaker's utterances in order through `analyze`, the call that is served: traits from the utterances
    so far, emotion conditioned on them. CCC of traits is after all of a speaker's utterances; its standard
    deviation is over bootstrap draws of speakers. Raises ManifestError.
    """
    fields = ("path", "split", "traits", "valence", "arousal")
    items = [item for item in load_manifest(manifest, require=fields) if item.split == split]
    model = load_bundle(model_name)
    predictions = analyze_causally(model, items)
    ccc = ccc_as_served(predictions)
    spread = {name: ccc_spread(predictions, name) for name in ccc}
    evidence = expected_error(predictions, cast(Traits, model.config.condition_centre))
    speakers = len({item.speaker for item in items})
    figures: dict[str, object] = {
        "model": model_name,
        "speakers": speakers,
        "utterances": len(predictions),
        "ccc": {name: round(value, 4) for name, value in ccc.items()},
        "ccc_sd": {name: round(value, 4) for name, value in spread.items()},
        "expected_error": evidence_rows(evidence),
    }
    rows = [Row(name, (Cell(value, sd=spread[name]),)) for name, value in ccc.items()]
    title = f"{model_name}: {speakers} speakers, {len(predictions)} utterances"
    by_count = [Row(str(row.utterance_count), tuple(map(Cell, row.error))) for row in evidence]
    return figures, (
        Table(title, ("output", "CCC"), tuple(rows), digits=3),
        Table("Root mean square error of the traits", ("utterances so far", *TRAITS), tuple(by_count)),
    )
