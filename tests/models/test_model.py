"""Every emotion head against the paper's graph written out plainly, with PyTorch's own layers where it has them."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kibun.models.conditioning import Baseline, Ca, Concat, Regression, TicnCa, make_head
from kibun.models.config import KibunConfig
from kibun.models.frames import Frames
from kibun.models.layers import Attention, TransformerLayer
from kibun.models.types import CONDITIONED, HEADS, TRAITS
from tests.support import present
from tests.support.tiny_hubert import HUBERT, tiny_model

SIZE, HEAD_COUNT, FF = 16, 4, 24
SELECTIONS = [pytest.param(TRAITS, id="all"), *(pytest.param((name,), id=name) for name in TRAITS)]
QUERIES = ("personality", "acoustic")
CENTRE, SCALE = (4.5, 3.5, 4.0, 5.0, 3.0), (0.5, 1.0, 1.5, 0.25, 2.0)


def make(name: str, query: str = "personality", traits: tuple[str, ...] = TRAITS) -> nn.Module:
    """In evaluation mode, off its starting values, so that a forgotten bias or norm shows."""
    torch.manual_seed(0)
    head = make_head(
        name,  # type: ignore[arg-type]
        SIZE,
        heads=HEAD_COUNT,
        ff=FF,
        query=query,  # type: ignore[arg-type]
        dropout=0.1,
        traits=traits,
        condition_centre=CENTRE,
        condition_scale=SCALE,
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head.eval()


def hidden(*lengths: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, SIZE, generator=generator) for length in lengths]


def five(count: int, seed: int = 2) -> Tensor:
    return 1 + 6 * torch.rand(count, 5, generator=torch.Generator().manual_seed(seed))


def padded(rows: list[Tensor]) -> Frames:
    """What is behind an utterance's end must not matter, so it is large."""
    longest = max(map(len, rows))
    batch = torch.full((len(rows), longest, SIZE), 1e3)
    for index, row in enumerate(rows):
        batch[index, : len(row)] = row
    return Frames(batch, tuple(map(len, rows)))


# ---- references: one utterance H (T, H), its five traits (5,) -------------------------------------------------


def attend(ours: Attention, query: Tensor, memory: Tensor) -> Tensor:
    """Multi-head attention, (Q, H) to (K, H), by PyTorch's module with the same weights."""
    theirs = nn.MultiheadAttention(SIZE, HEAD_COUNT, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    mixed: Tensor = theirs(query[None], memory[None], memory[None], need_weights=False)[0][0]  # (Q, H)
    return mixed


def encoder_layer(ours: TransformerLayer, x: Tensor) -> Tensor:
    """A post-norm Transformer layer over (L, H), step by step."""
    x = F.layer_norm(x + attend(ours.attention, x, x), (SIZE,), ours.norm1.weight, ours.norm1.bias)
    first, last = cast(nn.Linear, ours.feed_forward[0]), cast(nn.Linear, ours.feed_forward[3])
    inner = F.linear(F.relu(F.linear(x, first.weight, first.bias)), last.weight, last.bias)
    return F.layer_norm(x + inner, (SIZE,), ours.norm2.weight, ours.norm2.bias)


def picked(traits: Tensor, names: tuple[str, ...]) -> Tensor:
    indices = [TRAITS.index(name) for name in names]
    return torch.stack([(traits[k] - CENTRE[k]) / SCALE[k] for k in indices])


def baseline(head: Baseline, h: Tensor, *_: object) -> Tensor:
    return F.linear(h.mean(0), head.out.weight, head.out.bias)


def regression(head: Regression, h: Tensor, *_: object) -> Tensor:
    inner = torch.tanh(F.linear(h.mean(0), head.dense.weight, head.dense.bias))
    return F.linear(inner, head.out.weight, head.out.bias)


def concat(head: Concat, h: Tensor, traits: Tensor, names: tuple[str, ...], query: str) -> Tensor:
    p = F.linear(picked(traits, names), head.personality.weight, head.personality.bias)
    return F.linear(torch.cat([h.mean(0), p]), head.out.weight, head.out.bias)


def ca(head: Ca, h: Tensor, traits: Tensor, names: tuple[str, ...], query: str) -> Tensor:
    p = F.linear(picked(traits, names), head.personality.weight, head.personality.bias)[None]
    attended = attend(head.cross_attention, *((p, h) if query == "personality" else (h, p)))
    return F.linear(attended.mean(0), head.out.weight, head.out.bias)


def ticn_ca(head: TicnCa, h: Tensor, traits: Tensor, names: tuple[str, ...], query: str) -> Tensor:
    values = picked(traits, names)
    layers = [cast(nn.Linear, layer) for layer in head.traits]
    each = [F.linear(values[k : k + 1], layer.weight, layer.bias) for k, layer in enumerate(layers)]
    p = F.linear(torch.cat(each), head.fuse.weight, head.fuse.bias).repeat(len(h), 1)  # (T, H)
    acoustic = F.linear(h, head.acoustic.weight, head.acoustic.bias)
    z = encoder_layer(head.interaction, acoustic + p)
    attended = attend(head.cross_attention, *((z, acoustic) if query == "personality" else (acoustic, z)))
    return F.linear(attended.mean(0), head.out.weight, head.out.bias)


REFERENCES: dict[str, Callable[..., Tensor]] = {
    "baseline": baseline,
    "regression": regression,
    "concat": concat,
    "ca": ca,
    "ticn-ca": ticn_ca,
}


def test_every_head_has_a_reference() -> None:
    assert set(REFERENCES) == set(HEADS)
    assert set(CONDITIONED) < set(HEADS)


def personality_of(head: nn.Module, traits: Tensor) -> Tensor:
    """P of (B, 5) traits: (B, H)."""
    assert isinstance(head, Concat | Ca | TicnCa)
    return head.embed(traits) if isinstance(head, TicnCa) else cast(Tensor, head.personality(head.condition(traits)))


@pytest.mark.parametrize("traits", SELECTIONS)
@pytest.mark.parametrize("size", [96, 768])
@pytest.mark.parametrize("name", CONDITIONED)
def test_at_the_start_p_is_nothing_for_the_mean_and_of_the_order_of_a_frame_for_others(
    name: str, size: int, traits: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    head = make_head(name, size, traits=traits, condition_centre=CENTRE, condition_scale=SCALE)  # type: ignore[arg-type]
    people = torch.tensor(CENTRE) + torch.tensor(SCALE) * torch.randn(500, 5)
    frames = F.layer_norm(torch.randn(500, size), (size,))
    with torch.no_grad():
        assert not personality_of(head, torch.tensor([CENTRE])).any()
        beside = head.acoustic(frames) if isinstance(head, TicnCa) else frames
        ratio = personality_of(head, people).norm(dim=1).mean() / beside.norm(dim=1).mean()
    assert 0.3 < ratio < 1


@pytest.mark.parametrize("traits", SELECTIONS)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("name", HEADS)
def test_a_padded_batch_equals_the_plain_graph_of_each_utterance(
    name: str, query: str, traits: tuple[str, ...]
) -> None:
    head, rows, known = make(name, query, traits), hidden(9, 1, 5, 9), five(4)
    with torch.no_grad():
        batch = head(padded(rows), known)
        assert batch.shape == (4,)
        for index, row in enumerate(rows):
            expected = REFERENCES[name](head, row, known[index], traits, query)
            torch.testing.assert_close(batch[index : index + 1], expected, atol=1e-5, rtol=0)
            alone = head(Frames(row[None], (len(row),)), known[index : index + 1])
            torch.testing.assert_close(batch[index : index + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("name", HEADS)
def test_a_head_depends_on_its_own_traits_and_no_others(name: str, query: str) -> None:
    head, frames, known = make(name, query, ("openness", "agreeableness")), padded(hidden(9)), five(1)
    with torch.no_grad():
        value = head(frames, known)
        for index, trait in enumerate(TRAITS):
            other = known.clone()
            other[0, index] = 8.0 - other[0, index] + 0.5
            moved = float((head(frames, other) - value).abs())
            if name in CONDITIONED and trait in ("openness", "agreeableness"):
                assert moved > 1e-4, trait
            else:
                assert moved == 0.0, trait


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("name", HEADS)
def test_only_ca_with_acoustic_queries_ignores_the_audio(name: str, query: str) -> None:
    """Softmax over a single key is 1: every frame gets the same value, that of the traits."""
    head, known = make(name, query), five(1)
    with torch.no_grad():
        first, second = (head(padded(hidden(9, seed=seed)), known) for seed in (1, 5))
    if (name, query) == ("ca", "acoustic"):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    else:
        assert float((first - second).abs()) > 1e-3


@pytest.mark.parametrize("name", ["baseline", "regression"])
def test_unconditioned_heads_need_no_traits(name: str) -> None:
    head = make(name)
    with torch.no_grad():
        assert torch.equal(head(padded(hidden(9)), None), head(padded(hidden(9)), five(1)))


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns_unless_frozen(name: str, query: str) -> None:
    head = make(name, query)
    for part in ("personality", "fuse", "dense"):
        if hasattr(head, part):
            getattr(head, part).requires_grad_(False)
    head(padded(hidden(9, 5)), five(2)).square().sum().backward()
    for key, parameter in head.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, key
        elif (name, query) == ("ca", "acoustic") and key.startswith(("cross_attention.query", "cross_attention.key")):
            assert present(parameter.grad).abs().max() < 1e-6, "one key: neither query nor key can matter"
        elif key == "cross_attention.key.bias" or key == "interaction.attention.key.bias":
            assert present(parameter.grad).abs().max() < 1e-4, "the same for all keys, so softmax drops it"
        else:
            assert present(parameter.grad).abs().max() > 0, key


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="head is 'film', allowed are baseline, regression, concat, ca, ticn-ca"):
        make("film")
    with pytest.raises(ValueError):
        make("concat", traits=("honesty",))


# ---- in the whole model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_tail_and_head_and_not_the_frozen_trunk(name: str, query: str) -> None:
    model = tiny_model(emotion_head=name, cross_attention_query=query, tasks=["valence"], condition_on=["openness"])
    model.freeze_trunk()
    model.train()
    waveforms = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(1))
    traits = five(2) if name in CONDITIONED else None
    model(waveforms, [4_000, 2_500], traits).valence.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    assert all(parameter.grad is not None for parameter in model.tail("valence").parameters())
    moved = max(float(present(parameter.grad).abs().max()) for parameter in model.tail("valence").parameters())
    assert (moved < 1e-6) == ((name, query) == ("ca", "acoustic")), "that one ignores the audio"


@pytest.mark.parametrize("name", HEADS)
def test_only_conditioned_models_ask_for_traits(name: str) -> None:
    model = tiny_model(emotion_head=name, tasks=["valence", "arousal"])
    assert model.config.conditioned == (name in CONDITIONED)
    waveforms = torch.zeros(1, 800)
    if model.config.conditioned:
        with pytest.raises(ValueError, match="pass `traits`"):
            model(waveforms)
    else:
        with torch.no_grad():
            assert model(waveforms).valence.shape == (1,)


def test_tasks_that_share_a_tail_learn_it_together() -> None:
    model = tiny_model(tail_of={"personality": "all", "valence": "all"}, tasks=["personality", "valence", "arousal"])
    assert sorted(model.tails) == ["all", "arousal"]
    assert model.tail("personality") is model.tail("valence")
    waveforms = torch.randn(1, 4_000, generator=torch.Generator().manual_seed(1))
    gradients = {}
    for task in ("traits", "valence", "arousal"):
        model.zero_grad()
        getattr(model(waveforms), task).sum().backward()
        gradients[task] = [parameter.grad for parameter in model.tails["all"].parameters()]
    assert all(gradient is not None for gradient in gradients["traits"] + gradients["valence"])
    assert all(gradient is None for gradient in gradients["arousal"]), "its tail is its own"


def test_a_shared_tail_runs_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = tiny_model(tasks=["valence", "arousal"])
    apart.tails["arousal"].load_state_dict(apart.tails["valence"].state_dict())
    shared = tiny_model(tasks=["valence", "arousal"], tail_of={"valence": "both", "arousal": "both"})
    shared.trunk.load_state_dict(apart.trunk.state_dict())
    shared.tails["both"].load_state_dict(apart.tails["valence"].state_dict())
    shared.emotion_heads.load_state_dict(apart.emotion_heads.state_dict())
    calls = []
    shared.tails["both"].register_forward_hook(lambda *_: calls.append(1))
    waveforms = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        first, second = apart(waveforms, None, five(2)), shared(waveforms, None, five(2))
    assert torch.equal(first.valence, second.valence)
    assert torch.equal(first.arousal, second.arousal)
    assert len(calls) == 1


def test_impossible_parts_are_named() -> None:
    for settings, message in (
        ({"emotion_head": "film"}, "emotion_head is 'film'"),
        ({"condition_on": []}, "condition_on is"),
        ({"condition_on": ["neuroticism", "openness"]}, "in this order"),
        ({"tail_of": {"dominance": "x"}}, "tail_of is"),
        ({"tail_of": {"valence": "a.b"}}, "tail_of is"),
        ({"tasks": ["valence"], "personality_hubert": dict(HUBERT)}, "personality_hubert is set"),
        ({"personality_hubert": dict(HUBERT), "tail_of": {"valence": "personality"}}, "no other task can share"),
        ({"personality_hubert": dict(HUBERT), "personality_trunk_layers": 9}, "personality_trunk_layers is 9"),
    ):
        with pytest.raises(ValueError, match=message):
            KibunConfig(hubert=HUBERT, **settings)
