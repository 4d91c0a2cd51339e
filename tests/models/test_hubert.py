"""Trunk and tails against transformers' own HubertModel, Wav2Vec2Model and WavLMModel, alone and in ragged batches."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from kibun.models._transformers import HubertModel
from kibun.models.config import KibunConfig
from kibun.models.encoder_settings import frame_count, receptive_field
from kibun.models.frames import Frames
from kibun.models.model import KibunModel
from tests.support import present
from tests.support.tiny_hubert import VARIANTS, WAVLM, full_model, hubert_config, split, waveforms


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("layers", [0, 2, 4])
def test_trunk_and_tail_are_bit_equal_to_the_full_model(changes: dict[str, Any], layers: int) -> None:
    full = full_model(hubert_config(**changes))
    trunk, tail = split(full, layers)
    batch = torch.stack(waveforms(8000, 8000))
    with torch.no_grad():
        expected = full(batch).last_hidden_state
        actual = tail(trunk(list(batch))).hidden
    assert torch.equal(actual, expected)


def test_one_trunk_serves_three_fine_tuned_models() -> None:
    """The paper's models freeze everything up to a layer; what differs between tasks is the tail alone."""
    full = full_model(hubert_config())
    trunk, _ = split(full, 2)
    [waveform] = waveforms(12_000)
    with torch.no_grad():
        shared = trunk([waveform])
        for seed in (1, 2, 3):
            tuned = copy.deepcopy(full)
            torch.manual_seed(seed)
            for parameter in tuned.encoder.layers[2:].parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            _, tail = split(tuned, 2)
            expected = tuned(waveform[None]).last_hidden_state
            assert torch.equal(tail(shared).hidden, expected)
            assert not torch.allclose(expected, full(waveform[None]).last_hidden_state, atol=1e-2)


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_ragged_batch_equals_each_utterance_alone(changes: dict[str, Any]) -> None:
    trunk, tail = split(full_model(hubert_config(**changes)), 2)
    lengths = (400, 16_000, 5_001, 16_000, 777, 31_999)
    with torch.no_grad():
        batch = tail(trunk(waveforms(*lengths)))
        for index, waveform in enumerate(waveforms(*lengths)):
            alone = tail(trunk([waveform]))
            frames = batch.lengths[index]
            assert frames == alone.lengths[0] == frame_count(hubert_config(), lengths[index])
            torch.testing.assert_close(batch.hidden[index, :frames], alone.hidden[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.mean()[index], alone.mean()[0], atol=1e-5, rtol=0)


def test_padding_the_full_model_is_not_exact() -> None:
    """Why the front takes no padding: the attention mask of transformers does not reach the GroupNorm."""
    full = full_model(hubert_config())
    short, long = waveforms(5_000, 16_000)
    padded = torch.stack([nn.functional.pad(short, (0, 11_000)), long])
    mask = torch.tensor([[1] * 5_000 + [0] * 11_000, [1] * 16_000])
    with torch.no_grad():
        alone = full(short[None]).last_hidden_state[0]
        batched = full(padded, attention_mask=mask).last_hidden_state[0, : alone.shape[0]]
    assert (alone - batched).abs().max() > 0.05


def test_padded_values_do_not_matter() -> None:
    _, tail = split(full_model(hubert_config()), 2)
    hidden = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
    changed = hidden.clone()
    changed[0, 6:] = 1e3
    with torch.no_grad():
        first, second = tail(Frames(hidden, (6, 10))), tail(Frames(changed, (6, 10)))
    torch.testing.assert_close(first.hidden[0, :6], second.hidden[0, :6], atol=1e-6, rtol=0)
    torch.testing.assert_close(first.mean(), second.mean(), atol=1e-6, rtol=0)


def test_frame_count_is_that_of_transformers() -> None:
    config = hubert_config()
    model = HubertModel(config)
    assert receptive_field(config) == 400
    assert frame_count(config, 399) == 0
    for samples in (400, 719, 720, 16_000, 12_345):
        assert frame_count(config, samples) == model._get_feat_extract_output_lengths(samples)


def test_gradients_reach_only_what_is_not_frozen() -> None:
    torch.manual_seed(0)
    model = KibunModel(KibunConfig(hubert=hubert_config(), condition_ff=32))
    model.freeze_trunk()
    model.train()
    assert not model.trunk.training, "dropout in a frozen trunk would make its frames random"
    assert model.tails.training
    output = model(torch.stack(waveforms(4_000, 4_000)))
    (output.traits.square().mean() + output.valence.mean() + output.arousal.mean()).backward()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    for part in (model.tails, model.personality_head, model.emotion_heads):
        assert all(parameter.grad is not None for parameter in part.parameters())
        assert any(present(parameter.grad).abs().max() > 0 for parameter in part.parameters())


def test_the_emotion_loss_does_not_train_the_personality_tail() -> None:
    torch.manual_seed(0)
    model = KibunModel(KibunConfig(hubert=hubert_config(), condition_ff=32))
    output = model(torch.stack(waveforms(4_000, 4_000)))
    (output.valence.mean() + output.arousal.mean()).backward()
    assert all(parameter.grad is None for parameter in model.tails["personality"].parameters())
    assert all(parameter.grad is not None for parameter in model.trunk.layers.parameters())


def test_a_tail_of_wavlm_needs_the_frames_alone() -> None:
    """Its table of relative positions is a copy of the first layer's, and frozen as that is."""
    full = full_model(hubert_config(**WAVLM))
    trunk, tail = split(full, 2)
    table = tail.layers[0].get_parameter("attention.rel_attn_embed.weight")
    assert torch.equal(table, full.get_parameter("encoder.layers.0.attention.rel_attn_embed.weight"))
    assert not table.requires_grad
    assert split(full, 0)[1].layers[0].get_parameter("attention.rel_attn_embed.weight").requires_grad, "it is the first"
    [waveform] = waveforms(16_000)
    with torch.no_grad():
        frames = trunk([waveform])
        cached = Frames(frames.hidden.clone(), frames.lengths)
        assert torch.equal(tail(cached).hidden, full(waveform[None]).last_hidden_state)
        table.zero_()
        assert (tail(cached).hidden - full(waveform[None]).last_hidden_state).abs().max() > 1e-2, "and it matters"
