"""Personality heads and TICN-CA: sizes, masks, order, what they start from."""

import itertools
from typing import cast

import pytest
import torch
from torch import nn

from kibun.models._transformers import HubertConfig, HubertModel
from kibun.models.conditioning import TicnCa, make_head, restandardise
from kibun.models.config import KibunConfig
from kibun.models.frames import Frames
from kibun.models.model import KibunModel
from kibun.models.personality import ConversationHead, PersonalityHead, round_to_stored
from kibun.models.types import HeadName, Query
from tests.support import present


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def ticn(query: str = "personality", size: int = 16) -> TicnCa:
    torch.manual_seed(0)
    head = make_head("ticn-ca", size, ff=24, query=query, dropout=0.0)  # type: ignore[arg-type]
    return cast(TicnCa, head.eval())


def conversation_head() -> ConversationHead:
    torch.manual_seed(0)
    return ConversationHead(16, inner=8, heads=4, dropout=0.0, centre=4.0).eval()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_parameter_counts_of_hubert_base_size() -> None:
    with torch.device("meta"):
        hubert = HubertModel(HubertConfig())
        model = KibunModel(KibunConfig())
    assert count(hubert) == 94_371_712
    # One full model without the mask embedding of pre-training, plus two more tails of six layers.
    assert count(model.trunk) + count(model.tails["personality"]) == count(hubert) - 768
    assert count(model.trunk) == 51_843_712
    assert {name: count(tail) for name, tail in model.tails.items()} == dict.fromkeys(
        ("personality", "valence", "arousal"), 42_527_232
    )
    assert count(model.personality_head) == 768 * 5 + 5
    assert count(model) == 203_005_325

    ctc_and_linear = (768 * 32 + 32) + (768 + 1)
    baseline = count(hubert) + ctc_and_linear
    assert round(baseline / 1e6, 2) == 94.40
    for head in model.emotion_heads.values():
        assert count(head) == 11_425_281
        assert round(count(head) / 1e6, 2) == 11.43
        assert round(100 * count(head) / baseline, 2) == 12.10


def test_parts_of_ticn_ca_are_those_of_the_design() -> None:
    with torch.device("meta"):
        head = cast(TicnCa, make_head("ticn-ca", 768))
    assert count(head.traits) == 5 * (768 + 768)
    assert count(head.fuse) == 3840 * 768 + 768
    assert count(head.acoustic) == 768 * 768 + 768
    reference = nn.TransformerEncoderLayer(768, 4, 2048, device="meta")
    assert count(head.interaction) == count(reference)
    assert count(head.cross_attention) == count(nn.MultiheadAttention(768, 4, device="meta"))


def test_transformer_layer_equals_pytorchs() -> None:
    torch.manual_seed(0)
    ours = ticn().interaction
    theirs = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True).eval()
    a = ours.attention
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([a.query.weight, a.key.weight, a.value.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([a.query.bias, a.key.bias, a.value.bias]))
    theirs.self_attn.out_proj.load_state_dict(a.out.state_dict())
    theirs.linear1.load_state_dict(ours.feed_forward[0].state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward[3].state_dict())
    x, mask = random(2, 7, 16), torch.arange(7) < torch.tensor([[7], [4]])
    actual, expected = ours(x, mask), theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(actual[1, :4], expected[1, :4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", ["personality", "acoustic"])
def test_ticn_ca_ignores_padding(query: str) -> None:
    head, traits = ticn(query), 1 + 6 * torch.rand(2, 5, generator=torch.Generator().manual_seed(3))
    hidden = random(2, 9, 16)
    hidden[1, 5:] = 1e3
    batch = head(Frames(hidden, (9, 5)), traits)
    alone = torch.cat([head(Frames(hidden[:1], (9,)), traits[:1]), head(Frames(hidden[1:, :5], (5,)), traits[1:])])
    torch.testing.assert_close(batch, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", ["personality", "acoustic"])
def test_ticn_ca_depends_on_audio_and_on_every_trait(query: str) -> None:
    """Cross attention with a single personality token as key would ignore the audio; with T tokens it cannot."""
    head, traits, hidden = ticn(query), torch.full((1, 5), 4.0), random(1, 9, 16)
    value = head(Frames(hidden, (9,)), traits)
    assert (head(Frames(random(1, 9, 16, seed=1), (9,)), traits) - value).abs() > 1e-3
    for trait in range(5):
        other = traits.clone()
        other[0, trait] = 7.0
        assert (head(Frames(hidden, (9,)), other) - value).abs() > 1e-4


def test_query_sides_differ() -> None:
    frames, traits = Frames(random(1, 9, 16), (9,)), torch.full((1, 5), 4.0)
    assert not torch.allclose(ticn("personality")(frames, traits), ticn("acoustic")(frames, traits), atol=1e-4)


def test_conversation_estimate_does_not_depend_on_order() -> None:
    head, vectors = conversation_head(), round_to_stored(random(1, 4, 16))
    expected = head(vectors)
    for order in itertools.permutations(range(4)):
        torch.testing.assert_close(head(vectors[:, list(order)]), expected, atol=1e-5, rtol=0)


def test_causal_estimates_use_only_what_was_heard() -> None:
    head, vectors = conversation_head(), round_to_stored(random(6, 16))
    causal = head.causal(vectors)
    for heard in range(1, 7):
        torch.testing.assert_close(causal[heard - 1], head(vectors[None, :heard])[0], atol=1e-5, rtol=0)
    changed = torch.cat([vectors[:3], random(3, 16, seed=9)])
    torch.testing.assert_close(head.causal(changed)[:3], causal[:3], atol=1e-5, rtol=0)
    assert not torch.allclose(head.causal(changed)[3:], causal[3:], atol=1e-3)


def test_conversations_of_different_length_batch_exactly() -> None:
    head, vectors = conversation_head(), random(2, 5, 16)
    vectors[1, 2:] = 1e3
    batch = head(vectors, torch.arange(5) < torch.tensor([[5], [2]]))
    torch.testing.assert_close(batch[0], head(vectors[:1])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(batch[1], head(vectors[1:, :2])[0], atol=1e-5, rtol=0)


def test_rounding_is_that_of_float16_and_lets_gradients_through() -> None:
    vectors = random(3, 16).requires_grad_()
    rounded = round_to_stored(vectors)
    assert torch.equal(rounded, vectors.detach().half().float())
    torch.autograd.backward(rounded.sum())
    assert torch.equal(present(vectors.grad), torch.ones(3, 16))


def test_heads_start_at_the_centre_of_their_scales() -> None:
    torch.manual_seed(0)
    hubert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    small = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
    model = KibunModel(KibunConfig(hubert={**hubert, **small}, condition_ff=32))
    assert torch.equal(model.personality_head.out.bias, torch.full((5,), 4.0))
    assert torch.equal(model.conversation_head.out.bias, torch.full((5,), 4.0))
    assert torch.equal(model.get_parameter("emotion_heads.valence.out.bias"), torch.full((1,), 3.0))
    # transformers would have started them at a standard deviation of 0.02, where traits hardly reach the output.
    assert model.get_parameter("emotion_heads.valence.traits.0.weight").std() > 0.3
    assert PersonalityHead(8, centre=4.0)(torch.zeros(2, 8)).tolist() == [[4.0] * 5] * 2


def test_impossible_settings_are_named() -> None:
    for settings, field in (
        ({"trunk_layers": 13}, "trunk_layers"),
        ({"tasks": ["dominance"]}, "tasks"),
        ({"tasks": []}, "tasks"),
        ({"condition_source": "guess"}, "condition_source"),
        ({"cross_attention_query": "both"}, "cross_attention_query"),
        ({"condition_heads": 7}, "condition_heads"),
        ({"conversation_size": 30}, "conversation_heads"),
        ({"sampling_rate": 8000}, "sampling_rate"),
    ):
        with pytest.raises(ValueError, match=field):
            KibunConfig(**settings)


@pytest.mark.parametrize("query", ["personality", "acoustic"])
@pytest.mark.parametrize("name", ["concat", "ca", "ticn-ca"])
def test_other_units_of_the_traits_leave_a_head_as_it_is(name: HeadName, query: Query) -> None:
    torch.manual_seed(0)
    head = make_head(
        name,
        16,
        ff=24,
        query=query,
        dropout=0.0,
        condition_centre=(0.0,) * 5,
        condition_scale=(1.0,) * 5,
    ).eval()
    for parameter in head.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    frames, traits = Frames(random(3, 9, 16), (9, 7, 4)), 1 + 6 * torch.rand(3, 5)
    before = head(frames, traits)
    assert before.std() > 1e-3
    centre = (4.0, 4.2, 3.9, 4.1, 3.5)
    restandardise(head, centre, (1.2, 1.1, 0.9, 1.0, 1.3))
    torch.testing.assert_close(head(frames, traits), before, atol=2e-5, rtol=0)
    if name == "ticn-ca" and query == "personality":
        biases = [
            value for key, value in head.named_parameters() if key.startswith(("traits", "fuse")) and "bias" in key
        ]
        assert len(biases) == 6
        assert not any(bias.any() for bias in biases)
