"""Characters, and the CTC loss over them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kibun.training.runs import ctc


def test_the_vocabulary_has_thirty_two_entries() -> None:
    assert len(ctc.VOCABULARY) == len(set(ctc.VOCABULARY)) == 32


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("Excuse me.", "EXCUSE ME"),
        ("[LAUGHTER] I don’t -- know!", "I DON'T KNOW"),
        ("Crème brûlée, 3 times", "CREME BRULEE TIMES"),
        ("気分 ok", "?? OK"),
        ("[BREATHING]", ""),
        ("a|b", "A B"),
    ],
)
def test_transcripts_are_spelled(text: str, spelled: str) -> None:
    assert ctc.spell(text) == spelled
    frames = [index for entry in ctc.encode(text) for index in (entry, ctc.BLANK)]
    assert ctc.decode(frames) == spelled


def test_decoding_merges_repetitions_but_not_across_a_blank() -> None:
    t, o = ctc.VOCABULARY.index("T"), ctc.VOCABULARY.index("O")
    assert ctc.decode([t, t, 0, o, o, 0, 0, o, 4, 4, t, 1, 2]) == "TOO T"


@given(st.text(alphabet="abc DEF'", max_size=20))
def test_what_is_encoded_can_be_decoded(text: str) -> None:
    frames = [index for entry in ctc.encode(text) for index in (ctc.BLANK, entry)]
    assert ctc.decode(frames) == ctc.spell(text)


def by_hand(logits: torch.Tensor, text: str) -> float:
    """Negative log likelihood of a text by summing over every alignment."""
    probabilities = logits.softmax(dim=1)
    total = 0.0
    for path in itertools.product({ctc.BLANK, *ctc.encode(text)}, repeat=len(logits)):
        if ctc.decode(list(path)) == text:
            total += float(torch.stack([probabilities[t, entry] for t, entry in enumerate(path)]).prod())
    return float(-np.log(total))


def test_ctc_loss_equals_the_sum_over_all_alignments_and_masks_what_has_no_text() -> None:
    logits = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    texts = ["ab", "", None, "a"]
    loss = ctc.ctc_loss(logits, (5, 5, 5, 3), texts)
    expected = (by_hand(logits[0].detach(), "AB") / 2 + by_hand(logits[3, :3].detach(), "A")) / 2
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert float(logits.grad[0].abs().sum()) > 0
    assert float(logits.grad[1:3].abs().sum()) == 0
    assert float(logits.grad[3, 3:].abs().sum()) == 0


def test_ctc_without_any_text_is_zero_and_has_a_gradient() -> None:
    logits = torch.randn(2, 5, 32).requires_grad_()
    loss = ctc.ctc_loss(logits, (5, 5), [None, "[NOISE]"])
    loss.backward()  # type: ignore[no-untyped-call]  # several processes wait for every gradient
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_text_too_long_for_its_frames_does_not_poison_the_batch() -> None:
    logits = torch.randn(2, 5, 32).requires_grad_()
    loss = ctc.ctc_loss(logits, (5, 5), ["far too long for this", "a"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
