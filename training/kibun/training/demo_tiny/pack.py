"""From a trained model to a bundle: figures on the test split, expected error, model card, checksums."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from kibun.models.bundle import KibunModel
from kibun.models.types import TRAITS
from kibun.training.demo_tiny.data import Example
from kibun.training.demo_tiny.evaluate import (
    Heard,
    analyze_causally,
    ccc_spread,
    emotion_ccc,
    expected_error,
    trait_ccc,
)

CARD = """\
# {name} (version {version})

**A synthetic demonstration model. It was trained on generated speech only and says nothing about people.** Apparent,
enacted traits; not a diagnosis, and no basis for a decision about anyone.

- Architecture: HuBERT ({layers} Transformer layers x {size}, {parameters:,} parameters, weights stored as float16); one
  trunk, three tails; personality at utterance and conversation level; TICN-CA for valence and arousal
- Input: 16 kHz, zero mean and unit variance per utterance, so loudness as such carries nothing
- Data: `kibun synth speech` with espeak-ng {espeak}; {speakers} speakers, {utterances:,} utterances ({hours:.1f} h).
  The text is ours; espeak-ng is GPL-3.0-or-later, needed to render the corpus, not to use the model. No recording of a
  person
- Labels: from the generator's settings. Arousal = weighted vocal effort, pitch, pitch range, rate and pausing, each
  relative to the speaker. Valence = smile against harshness of the generator. Traits = habits of a generated speaker
- Split: by speaker; voice variants, speaker filters and texts of dev and test never occur in training
- Seeds: corpus {corpus_seed}, training {seed}

## Commands

```
{commands}
```

## Held-out figures (test split, {test_speakers} speakers, {test_utterances} utterances, causal, predicted traits)

| output | CCC |
|---|---|
{rows}

± : standard deviation over bootstrap draws of test speakers, one training run. Traits: after all that a speaker said.

## Limits

- Arousal carries over to real voices to a degree: higher, faster, more strained speech scores higher
  (`docs/demo-tiny.md` has the manipulations of real recordings, as measured). It is unreliable for very short, noisy
  or whispered speech
- **Valence: no claim for real speech.** It has no such plain acoustic correlate; it is here to exercise the full path
- **Traits: no claim for real speakers.** The generated habits behind them are invented
"""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What the card says about how the model was made."""

    espeak_version: str
    corpus_seed: int
    seed: int
    speakers: int
    utterances: int
    hours: float
    commands: tuple[str, ...]


def write_bundle(model: KibunModel, test: Sequence[Example], origin: Provenance, folder: Path) -> dict[str, Any]:
    """Save ``model`` as float16 with its card and expected error, and return the figures on ``test``.

    The figures are those of the stored weights: they are rounded before anything is measured.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.float16))
    model.config.trained = True
    heard = analyze_causally(model, test)
    model.expected_error = expected_error(heard)
    model.card = make_card(model, heard, origin)
    model.save_pretrained(folder, dtype=torch.float16)
    return {
        "test_ccc": {name: round(value, 4) for name, value in {**emotion_ccc(heard), **trait_ccc(heard)}.items()},
        "expected_error": [
            {"utterance_count": count, **dict(zip(TRAITS, errors, strict=True))}
            for count, errors in model.expected_error
        ],
        "bundle_bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
    }


def make_card(model: KibunModel, heard: Sequence[Heard], origin: Provenance) -> str:
    """The card of a model trained on a generated corpus, with its figures on held-out utterances, as served."""
    figures = {**emotion_ccc(heard), **trait_ccc(heard)}
    return CARD.format(
        name=model.config.bundle_name,
        version=model.config.bundle_version,
        layers=model.config.hubert_config.num_hidden_layers,
        size=model.config.hubert_config.hidden_size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        espeak=origin.espeak_version,
        speakers=origin.speakers,
        utterances=origin.utterances,
        hours=origin.hours,
        corpus_seed=origin.corpus_seed,
        seed=origin.seed,
        commands="\n".join(origin.commands),
        test_speakers=len({h.example[1].speaker for h in heard}),
        test_utterances=len(heard),
        rows="\n".join(f"| {name} | {value:.3f} ± {ccc_spread(heard, name):.3f} |" for name, value in figures.items()),
    )


def read_corpus_settings(manifest: Path) -> dict[str, Any]:
    """``corpus.json`` beside a manifest (seed, command, espeak-ng version); empty where there is none."""
    path = manifest.with_name("corpus.json")
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
