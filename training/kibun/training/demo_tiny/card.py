"""The model card of demo-tiny: how it was made, and its figures on held-out generated speakers, as served."""

from collections.abc import Mapping, Sequence
from typing import Any

from kibun.models.bundle import KibunModel
from kibun.training.corpora.manifest import Item
from kibun.training.demo_tiny.evaluate import ccc_as_served, ccc_spread
from kibun.training.evaluation.predictions import Prediction

CARD = """\
# {config.bundle_name} (version {config.bundle_version})

**A synthetic demonstration model. It was trained on generated speech only and tells you nothing about real people.**
Apparent, enacted traits; not a diagnosis, and no basis for a decision about anyone.

- Architecture: HuBERT ({hubert.num_hidden_layers} Transformer layers x {hubert.hidden_size}, {parameters:,} \
parameters, weights stored as float16); one
  trunk, three tails; personality at utterance and conversation level; TICN-CA for valence and arousal
- Input: 16 kHz, zero mean and unit variance per utterance, so loudness as such carries nothing
- Data: `kibun synth speech` with espeak-ng {corpus[espeak_ng]}; \
{speakers} speakers, {utterances:,} utterances ({hours:.1f} h).
  The text is ours; espeak-ng is GPL-3.0-or-later, needed to render the corpus, not to use the model. No recording of a
  person
- Licence of the weights: {config.license}
- Labels: from the generator's settings. Arousal = weighted vocal effort, pitch, pitch range, rate and pausing, each
  relative to the speaker. Valence = smile against harshness of the generator. Traits = habits of a generated speaker
- Split: by speaker; voice variants, speaker filters and texts of dev and test never occur in training
- Seeds: corpus {corpus[seed]}, training {seed}

## Command

```
{command}
```

which renders the corpus and trains from random weights.

## Held-out figures (test split, {test_speakers} speakers, {test_utterances} utterances, causal, predicted traits)

| output | CCC |
|---|---|
{rows}

± : standard deviation over bootstrap draws of test speakers, one training run. Traits: after a speaker's last one.

## Limits

- Arousal carries over to real voices to a degree: higher, faster, more strained speech scores higher
  (`docs/demo-tiny.md` has the manipulations of real recordings, as measured). It is unreliable for very short, noisy
  or whispered speech
- **Valence: no claim for real speech.** It has no such plain acoustic correlate; it is here to exercise the full path
- **Traits: no claim for real speakers.** The generated habits behind them are invented
"""


def make_card(
    model: KibunModel,
    rows: Sequence[Prediction],
    items: Sequence[Item],
    corpus: Mapping[str, Any],
    command: str,
    seed: int,
) -> str:
    """Markdown.

    Args:
        rows: the test split as served. items: the whole corpus. corpus: the content of its corpus.json.
        command: the command line that makes the model. seed: of the training.
    """
    return CARD.format(
        config=model.config,
        hubert=model.config.hubert_config,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        corpus=corpus,
        speakers=len({item.speaker for item in items}),
        utterances=len(items),
        hours=sum(item.seconds or 0.0 for item in items) / 3600,
        seed=seed,
        command=command,
        test_speakers=len({row.speaker for row in rows}),
        test_utterances=len(rows),
        rows="\n".join(
            f"| {name} | {value:.3f} ± {ccc_spread(rows, name):.3f} |" for name, value in ccc_as_served(rows).items()
        ),
    )
