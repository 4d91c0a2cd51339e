"""The last step of docs/demo-tiny.md: measure an assembled bundle as served, and say in its card how it was made.

    python docs/demo-tiny/finish.py demo-tiny corpus/manifest.jsonl trunk-work

Rewrites the bundle's MODEL_CARD.md, and its checksum; the weights stay as they are.
"""

import sys
from pathlib import Path

import torch

from kibun.models.bundle import load_bundle
from kibun.models.files import write_sidecars
from kibun.training.corpora.manifest import load_manifest
from kibun.training.demo_tiny.data import Corpus
from kibun.training.demo_tiny.evaluate import analyze_causally
from kibun.training.demo_tiny.pack import Provenance, make_card, read_corpus_settings


def main() -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    bundle, manifest, work = map(Path, sys.argv[1:])
    items = load_manifest(manifest, require=("path", "split", "traits", "valence", "arousal", "seconds"))
    model = load_bundle(bundle)
    version, settings = model.config.bundle_version, read_corpus_settings(manifest)
    commands = (
        settings["command"],
        *(work / "commands.txt").read_text(encoding="utf-8").splitlines(),
        "kibun train pr --config pr.toml --out pr",
        "kibun train ser --config arousal.toml --out arousal",
        "kibun train ser --config valence.toml --out valence",
        "kibun models build --pr pr --valence valence --arousal arousal"
        f" --out {bundle.name} --version {version} --half",
    )
    origin = Provenance(
        espeak_version=settings["espeak_ng"],
        corpus_seed=settings["seed"],
        seed=0,
        speakers=len({item.speaker for item in items}),
        utterances=len(items),
        hours=sum(item.seconds or 0.0 for item in items) / 3600,
        commands=commands,
    )
    heard = analyze_causally(model, Corpus([item for item in items if item.split == "test"]).examples)
    _whole, heading, parts = (model.card or "").partition("## Personality: from")
    note = "\nThe runs that it was assembled from, as they describe themselves (before rounding to float16):\n\n"
    model.card = make_card(model, heard, origin) + note + heading + parts
    write_sidecars(bundle, model.config, model.expected_error, model.card)


if __name__ == "__main__":
    main()
