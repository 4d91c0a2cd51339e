"""How good is a bundle, as served, on held-out speakers of a corpus?

    python benchmarks/held_out.py corpus/manifest.jsonl [--model demo-tiny] [--split test] [--json]

Plays every speaker's utterances in order through `analyze`, the call that is served: traits from what was heard so far,
emotion conditioned on them. Prints the CCC of each output (traits: after all that a speaker said) with its standard
deviation over bootstrap draws of speakers, and the traits' root mean square error against the utterances heard.
"""

import argparse
import json
from pathlib import Path

import torch

from kibun.models.bundle import load_bundle
from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import load_manifest
from kibun.training.demo_tiny.data import Corpus
from kibun.training.demo_tiny.evaluate import analyze_causally, ccc_spread, emotion_ccc, expected_error, trait_ccc


def measure(model_name: str, manifest: Path, split: str) -> dict[str, object]:
    """All figures, as one JSON object."""
    fields = ("path", "split", "traits", "valence", "arousal")
    items = [item for item in load_manifest(manifest, require=fields) if item.split == split]
    heard = analyze_causally(load_bundle(model_name), Corpus(items).examples)
    figures = {**emotion_ccc(heard), **trait_ccc(heard)}
    return {
        "model": model_name,
        "speakers": len({item.speaker for item in items}),
        "utterances": len(heard),
        "ccc": {name: round(value, 4) for name, value in figures.items()},
        "ccc_sd": {name: round(ccc_spread(heard, name), 4) for name in figures},
        "expected_error": [
            {"utterance_count": count, **dict(zip(TRAITS, errors, strict=True))}
            for count, errors in expected_error(heard)
        ],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="demo-tiny")
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(options.model, options.manifest, options.split)
    if options.as_json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{options.model}: {figures['speakers']} speakers, {figures['utterances']} utterances")
    for name, value in figures["ccc"].items():  # type: ignore[attr-defined]
        print(f"  {name:<18}{value:>7.3f} ± {figures['ccc_sd'][name]:.3f}")  # type: ignore[index]
    print("RMSE after    " + "".join(f"{trait[:8]:>10}" for trait in TRAITS))
    for row in figures["expected_error"]:  # type: ignore[attr-defined]
        print(f"{row['utterance_count']:>10}    " + "".join(f"{row[trait]:>10.2f}" for trait in TRAITS))


if __name__ == "__main__":
    main()
