"""The model of a run: its loss, its learning rates, and the bundle that it may start from."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kibun.training.corpora.manifest import load_manifest
from kibun.training.runs import ctc
from kibun.training.runs.config import ConfigError, Task
from kibun.training.runs.task_model import TaskModel
from kibun.training.runs.trait_source import true_traits
from kibun.training.runs.utterances import Utterances, collate
from tests.support.task_models import task_model


def batch(world: Path, model: TaskModel, rows: list[int]) -> dict[str, Any]:
    some = load_manifest(world / "corpus" / "manifest.jsonl")
    utterances = Utterances(some, true_traits(some), min_samples=400)
    return collate([utterances[(0, row)] for row in rows], model.run.dimension, traits=model.run.task != "ser")


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("pr", {}),
        ("ser", {}),
        ("ser", {"model.head": "baseline"}),
        ("ser", {"training.mix": "convex"}),
        ("mtl", {"training.trait_weight": 0.5}),
    ],
)
def test_the_loss_is_that_of_the_graph_and_teaches_only_what_is_unfrozen(
    world: Path, task: Task, changes: dict[str, Any]
) -> None:
    model = task_model(world, task, **changes).train()
    inputs = batch(world, model, [1, 6, 11])
    losses = model(**inputs)
    losses["loss"].backward()
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("kibun.trunk", "kibun.conversation_head")) for name in learning)
    assert any(name.startswith("kibun.tails") for name in learning)
    assert any(name.startswith("ctc") for name in learning)

    model.eval()
    kibun, emotion, traits, spelled = model.kibun, [], [], []
    for row in range(3):  # each utterance alone
        frames = kibun.tail(model.task_name)(kibun.encode([inputs["input_values"][row]]))
        pooled = frames.hidden.mean(dim=1)
        if task != "pr":
            emotion.append(kibun.emotion_heads["arousal"](frames, inputs["condition"][row : row + 1]))
        if task != "ser":
            traits.append(
                F.linear(pooled.half().float(), kibun.personality_head.out.weight, kibun.personality_head.out.bias)
            )
        spelled.append(ctc.ctc_loss(model.ctc(frames.hidden), frames.lengths, [inputs["texts"][row]]))
    expected = torch.zeros(())
    if emotion:
        expected = expected + (torch.cat(emotion) - inputs["emotion"]).square().mean()
    if traits:
        weight = 0.5 if task == "mtl" else 1.0
        expected = expected + weight * (torch.cat(traits) - inputs["traits"]).square().mean()
    share = 0.9 if changes.get("training.mix") == "convex" else 1.0
    expected = share * expected + 0.1 * torch.stack(spelled).mean()
    torch.testing.assert_close(model(**inputs)["loss"], expected, atol=1e-4, rtol=1e-4)


def test_setting_three_reaches_the_tail(world: Path) -> None:
    """Its loss is that of the conversation's traits from all of its utterances, and its gradient trains the tail."""
    model = task_model(world, "pr", **{"training.conversation": "through_tail", "training.ctc_weight": 0.0})
    inputs = batch(world, model, [4, 5, 6, 7])
    kibun = model.kibun
    rows = [kibun.vectors(kibun.encode([waveform]))[0] for waveform in inputs["input_values"]]
    model.eval()
    with torch.inference_mode():
        pooled = torch.stack([row.detach().half().float() for row in rows])
        whole: torch.Tensor = kibun.conversation_head.forward(pooled[None])[0]
        expected = (whole - inputs["traits"][0]).square().mean()
        again = model(**inputs)
    torch.testing.assert_close(again["conversation"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again["loss"], again["conversation"] + again["traits"])
    with torch.no_grad():  # no gradient of setting 1, so that the tail's is of setting 3 alone
        kibun.personality_head.out.weight.zero_()
    losses = model(**inputs)
    losses["loss"].backward()
    for part in (kibun.conversation_head, kibun.tail("personality")):
        assert all(
            parameter.grad is not None and parameter.grad.any() for parameter in part.parameters() if parameter.ndim > 1
        )
    assert all(parameter.grad is None for parameter in kibun.trunk.parameters())


def test_a_single_trait_is_learnt_and_the_others_say_nothing(world: Path) -> None:
    model = task_model(world, "mtl", **{"model.traits": ["extraversion"], "training.ctc_weight": 0.0}).train()
    inputs = batch(world, model, [1, 6, 11])
    optimizer = torch.optim.AdamW(model.parameter_groups())
    for _step in range(2):
        losses = model(**inputs)
        losses["loss"].backward()
        optimizer.step()
    head = model.kibun.personality_head.out
    assert head.weight[2].abs().min() > 0
    for out in (head, model.kibun.conversation_head.out):
        assert torch.equal(out.weight[[0, 1, 3, 4]], torch.zeros_like(out.weight[[0, 1, 3, 4]]))
        assert out.bias[[0, 1, 3, 4]].tolist() == [4.0] * 4
    model.eval()
    [estimate] = [model.kibun.utterance_traits(torch.ones(1, head.in_features))]
    others = inputs["traits"].clone()
    others[:, [0, 1, 3, 4]] = 1.0  # what the other labels are makes no difference
    torch.testing.assert_close(model(**inputs)["traits"], model(**{**inputs, "traits": others})["traits"])
    assert estimate[0, [0, 1, 3, 4]].tolist() == [4.0] * 4


def test_two_learning_rates_and_no_decay_of_biases(world: Path) -> None:
    model = task_model(world, "ser")
    groups = model.parameter_groups()
    assert {(group["lr"], group["weight_decay"]) for group in groups} == {
        (5e-5, 0.01),
        (5e-5, 0.0),
        (1e-4, 0.01),
        (1e-4, 0.0),
    }
    sizes = sum(parameter.numel() for group in groups for parameter in group["params"])
    assert sizes == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    unfrozen = task_model(world, "ser", **{"model.freeze": "none"})
    assert all(p.requires_grad for p in unfrozen.kibun.trunk.parameters())


def test_a_run_may_start_from_a_bundle(world: Path, tmp_path: Path) -> None:
    source = task_model(world, "mtl").kibun
    assert source.config.trunk_sha256 is not None
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.01)
    source.save_pretrained(tmp_path / "bundle")
    start = {"model.start": str(tmp_path / "bundle")}
    model = task_model(world, "ser", **start)
    assert model.kibun.config.trunk_sha256 == source.config.trunk_sha256
    for a, b in zip(model.kibun.trunk.parameters(), source.trunk.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(model.kibun.tail("arousal").parameters(), source.tail("arousal").parameters(), strict=True):
        assert torch.equal(a, b)
    kept = task_model(world, "ser", **start, **{"model.head": "baseline", "model.keep_heads": True})
    ours, theirs = (model.emotion_heads["arousal"].state_dict() for model in (kept.kibun, source))
    assert torch.equal(ours["out.weight"], theirs["out.weight"])
    with pytest.raises(ConfigError, match="of another kind or size"):
        task_model(world, "ser", **start, **{"model.keep_heads": True})
    with pytest.raises(ConfigError, match="no head for valence"):
        task_model(
            world, "ser", **start, **{"model.keep_heads": True, "dimension": "valence", "model.head": "baseline"}
        )
    with pytest.raises(ConfigError, match="was cut after 2"):
        task_model(world, "ser", **start, **{"model.trunk_layers": 3})


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize("freeze", ["trunk", "none"])
@pytest.mark.parametrize("begun_with", [(), ("trunk",), ("trunk", "personality", "arousal")])
def test_a_run_knows_what_learnt_from_generated_speech(
    world: Path, tmp_path: Path, begun_with: tuple[str, ...], freeze: str, synthetic: bool
) -> None:
    source = task_model(world, "mtl").kibun
    source.config.synthetic_parts, source.config.synthetic = begun_with, "arousal" in begun_with
    source.save_pretrained(tmp_path / "bundle")
    start = {"model.start": str(tmp_path / "bundle"), "model.freeze": freeze, "synthetic": synthetic}
    config = task_model(world, "ser", **start).kibun.config
    assert config.synthetic == synthetic, "what a head is trained on now is what it says"
    trunk = "trunk" in begun_with or (synthetic and freeze == "none")
    assert set(config.synthetic_parts or ()) == {*(["arousal"] if synthetic else []), *(["trunk"] if trunk else [])}
