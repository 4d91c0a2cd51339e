"""The utterances to train on, by corpus."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kibun.training.corpora.manifest import Item, is_generated, load_manifest
from kibun.training.errors import ManifestError

FIELDS = ("path", "valence", "arousal")
MIN_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class VoiceCorpus:
    """The utterances of one corpus. synthetic: `kibun synth` made it."""

    name: str
    items: tuple[Item, ...]
    synthetic: bool

    @property
    def speakers(self) -> list[str]:
        """Names, sorted."""
        return sorted({item.speaker for item in self.items})


def read_corpora(manifests: Sequence[Path], synthetic: Sequence[Path] = ()) -> list[VoiceCorpus]:
    """One corpus of each manifest, named by its lines or else by its folder; utterances below half a second left out.

    Args:
        manifests: of recordings. synthetic: of corpora that `kibun synth` made.

    Raises ManifestError: a manifest that is damaged, lacks audio, valence or arousal, is given as what it is not, or
        has the name or a speaker of another one.
    """
    corpora: list[VoiceCorpus] = []
    for path, generated in [*((path, False) for path in manifests), *((path, True) for path in synthetic)]:
        if is_generated(path) != generated:
            fix = "give it with --manifest" if generated else "give it with --synthetic"
            raise ManifestError(f"{path}: is {'no' if generated else 'a'} synthetic corpus: {fix}")
        items = [item for item in load_manifest(path, require=FIELDS) if not (item.seconds or 1) < MIN_SECONDS]
        names = sorted({item.corpus for item in items if item.corpus is not None})
        name = "+".join(names) or path.resolve().parent.name
        corpora.append(VoiceCorpus(name, tuple(items), generated))
    _check(corpora)
    return corpora


def _check(corpora: Sequence[VoiceCorpus]) -> None:
    """Raise ManifestError where two corpora could not be told apart."""
    homes: dict[str, str] = {}
    seen: set[str] = set()
    for corpus in corpora:
        if corpus.name in seen:
            raise ManifestError(f"two manifests are of the corpus {corpus.name!r}: give each corpus once")
        seen.add(corpus.name)
        for speaker in corpus.speakers:
            if homes.setdefault(speaker, corpus.name) != corpus.name:
                raise ManifestError(
                    f"speaker {speaker!r} is in {homes[speaker]} and in {corpus.name}: give the speakers of each corpus"
                    " names of their own, so that none is both heard and held out"
                )
