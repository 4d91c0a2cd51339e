"""Characters for CTC: the paper trains speech recognition beside its tasks, with a weight of 0.1.

The 32 entries are those of English wav2vec 2.0 and HuBERT recognisers: padding (the blank), three marks, a word
boundary, the letters and the apostrophe.
"""

import re
import unicodedata
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kibun.models.frames import Frames

BLANK, UNKNOWN, BOUNDARY = 0, 3, 4
VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
_INDEX = {character: index for index, character in enumerate(VOCABULARY)}


def spell(text: str) -> str:
    """The part of a transcript that the CTC head spells: letters A to Z, apostrophes and single spaces.

    Accents are dropped, marks in square brackets (such as [LAUGHTER]) and punctuation removed; a letter of another
    alphabet becomes "?".
    """
    plain = unicodedata.normalize("NFKD", re.sub(r"\[[^\]]*\]", " ", text).replace("’", "'").upper())
    spelled = (
        c if c in _INDEX and c != "|" else " " if not c.isalpha() else "?"
        for c in plain
        if not unicodedata.combining(c)
    )
    return " ".join("".join(spelled).split())


def encode(text: str) -> list[int]:
    """Entries of the vocabulary for a transcript; [] where none of it can be spelled."""
    return [BOUNDARY if c == " " else _INDEX.get(c, UNKNOWN) for c in spell(text)]


def decode(indices: Sequence[int]) -> str:
    """The text of one entry per frame: repetitions merged, blanks and marks dropped."""
    merged = [index for at, index in enumerate(indices) if at == 0 or index != indices[at - 1]]
    characters = (
        " " if index == BOUNDARY else "?" if index == UNKNOWN else VOCABULARY[index] for index in merged if index > 2
    )
    return " ".join("".join(characters).split())


def ctc_loss(logits: Tensor, lengths: Sequence[int], texts: Sequence[str | None]) -> Tensor:
    """Negative log likelihood per character, mean over the utterances that have a transcript.

    Args:
        logits: (B, T, 32). lengths: B valid frame counts.
        texts: B transcripts; None and those that cannot be spelled are masked out.

    Returns:
        (), zero (and still part of the graph) where no utterance has one. A transcript too long for its frames has no
        alignment and counts as zero.
    """
    spelled = [encode(text or "") for text in texts]
    sizes = torch.tensor([len(row) for row in spelled])  # (B,)
    width = max(1, int(sizes.max()))
    targets = torch.tensor([row + [BLANK] * (width - len(row)) for row in spelled])  # (B, L)
    log_probabilities = F.log_softmax(logits.float(), dim=2).transpose(0, 1)  # (T, B, 32)
    losses = F.ctc_loss(
        log_probabilities,
        targets.to(logits.device),
        torch.tensor(list(lengths)),
        sizes,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )  # (B,)
    has_text = (sizes > 0).to(losses.device)
    per_character = losses / sizes.clamp(min=1).to(losses)
    return torch.where(has_text, per_character, per_character * 0).sum() / has_text.sum().clamp(min=1)


def transcripts(logits: Tensor, frames: Frames) -> list[str]:
    """Greedy transcripts of a batch, (B, T, 32) -> B texts."""
    best = logits.argmax(dim=2).tolist()
    return [decode(row[:length]) for row, length in zip(best, frames.lengths, strict=True)]
