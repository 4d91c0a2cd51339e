"""The parts of a training run by themselves: characters and CTC, trait sources, batches, settings, losses."""

import dataclasses
import errno
import itertools
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from kibun.models.types import TRAITS
from kibun.training.corpora.manifest import Item, load_manifest
from kibun.training.runs import ctc
from kibun.training.runs.config import (
    ConfigError,
    RunConfig,
    TraitOptions,
    as_dict,
    from_dict,
    identity,
    load_config,
    write_config,
)
from kibun.training.runs.conversation_stage import Vectors, train_conversation_head
from kibun.training.runs.task_model import TaskModel, new_task_model
from kibun.training.runs.trait_source import add_noise, condition_traits, true_traits
from kibun.training.runs.trunk_cache import TrunkCache, cache_off_reason, cache_root, fill
from kibun.training.runs.utterances import BucketBatches, Utterances, collate, make_augmentation
from tests.support import present
from tests.support.run_config import changed
from tests.support.tiny_corpus import make_corpus, make_hubert


def items(profiles: int = 6, each: int = 3) -> list[Item]:
    rng = np.random.default_rng(0)
    return [
        Item(f"{p}-{u}", Path("x"), f"s{p}", f"d{p // 2}", "train" if p % 2 else "dev", traits=tuple(traits))
        for p, traits in enumerate(rng.uniform(1, 7, (profiles, 5)).tolist())
        for u in range(each)
    ]


# ---- characters and CTC ------------------------------------------------------------------------------------------


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


# ---- trait sources -----------------------------------------------------------------------------------------------


def test_shuffled_traits_are_those_of_another_profile_of_the_split() -> None:
    some = items(8)
    truth = true_traits(some)
    shuffled = condition_traits(some, TraitOptions("shuffled"), seed=3)
    for split in ("train", "dev"):
        rows = [row for row, item in enumerate(some) if item.split == split]
        assert sorted(map(tuple, truth[rows].tolist())) == sorted(map(tuple, shuffled[rows].tolist()))
    assert not (shuffled == truth).all(axis=1).any()
    for profile in {item.conversation for item in some}:
        rows = [row for row, item in enumerate(some) if item.conversation == profile]
        assert len({tuple(shuffled[row]) for row in rows}) == 1
    assert np.array_equal(shuffled, condition_traits(some, TraitOptions("shuffled"), seed=3))
    with pytest.raises(ConfigError, match="has one profile"):
        condition_traits(items(2), TraitOptions("shuffled"), seed=0)


def test_noise_is_one_draw_per_profile_of_the_size_asked_for() -> None:
    some = items(2000, 2)
    centre = np.full((len(some), 5), 4.0, np.float32)
    noisy = add_noise(some, centre, 0.5, seed=0)
    assert np.array_equal(noisy[::2], noisy[1::2])
    assert float((noisy - centre).std()) == pytest.approx(0.5, rel=0.05)
    wild = condition_traits(some, TraitOptions("noisy", sigma=3.0), seed=0)
    assert wild.min() == 1.0
    assert wild.max() == 7.0


def test_traits_that_are_missing_are_named() -> None:
    some = [dataclasses.replace(items(1, 1)[0], traits=None)]
    with pytest.raises(ConfigError, match="'0-0' has no traits"):
        condition_traits(some, TraitOptions("truth"), seed=0)
    assert np.array_equal(condition_traits(some, TraitOptions("none"), seed=0), np.full((1, 5), 4.0))
    with pytest.raises(ConfigError, match="finished run"):
        condition_traits(some, TraitOptions("predicted", run="/nowhere"), seed=0)


# ---- batches -----------------------------------------------------------------------------------------------------


def test_batches_are_of_similar_length_and_every_epoch_uses_each_utterance_once() -> None:
    sizes = np.random.default_rng(0).integers(8000, 160_000, 1003)
    batches = BucketBatches(sizes, 4, epochs=3, seed=7, per_step=2)
    order = list(batches)
    assert len(order) == len(batches) == 3 * 125 * 2
    for epoch in range(3):
        seen = Counter(index for batch in order[epoch * 250 : (epoch + 1) * 250] for e, index in batch if e == epoch)
        assert len(seen) == 1000
        assert set(seen.values()) == {1}
    spread = np.mean([np.ptp(sizes[[index for _e, index in batch]]) for batch in order])
    shuffled = np.mean([np.ptp(row) for row in np.random.default_rng(1).permutation(sizes)[:1000].reshape(-1, 4)])
    assert spread < shuffled / 10
    lengths = [sizes[batch[0][1]] for batch in order[:250]]
    assert abs(np.corrcoef(lengths, np.arange(250))[0, 1]) < 0.2, "long and short batches are mixed"
    assert order == list(BucketBatches(sizes, 4, epochs=3, seed=7, per_step=2))
    assert order != list(BucketBatches(sizes, 4, epochs=3, seed=8, per_step=2))
    with pytest.raises(ValueError, match="do not fill one batch of 2000"):
        BucketBatches(sizes, 4, epochs=1, seed=0, per_step=500)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_corpus(folder / "corpus")
    make_hubert(folder / "hubert", hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    return folder


@pytest.mark.parametrize("augment", ["none", "perturb", "rooms"])
def test_what_is_random_about_an_utterance_hangs_on_seed_epoch_and_index(world: Path, augment: str) -> None:
    def examples(seed: int) -> Utterances:
        some = load_manifest(world / "corpus" / "manifest.jsonl")
        condition = np.zeros((len(some), 5), np.float32)
        return Utterances(
            some,
            condition,
            min_samples=400,
            seed=seed,
            crop_seconds=0.25,
            augmentation=make_augmentation(augment),
        )

    one, two, other = examples(0), examples(0), examples(1)
    keys = [(0, 3), (1, 3), (1, 4)]
    first = [present(one[key].audio) for key in keys]
    later = [present(two[key].audio) for key in reversed(keys)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, later, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], present(other[(0, 3)].audio))
    assert all(torch.isfinite(audio).all() for audio in first)


def test_audio_comes_back_bit_for_bit_and_is_never_too_short(world: Path) -> None:
    import soundfile

    some = load_manifest(world / "corpus" / "manifest.jsonl")[:3]
    utterances = Utterances(some, np.zeros((3, 5), np.float32), min_samples=20_000)
    for row, item in enumerate(some):
        audio = soundfile.read(item.path, dtype="float32")[0]
        for _again in range(2):
            read = utterances.read(row)
            assert np.array_equal(read[: len(audio)], audio)
            assert not read[len(audio) :].any()
            assert len(read) == 20_000
    assert utterances.sizes().tolist() == [round(item.seconds * 16_000) for item in some if item.seconds]


# ---- the model of a run ------------------------------------------------------------------------------------------


def task_model(world: Path, task: str, **changes: Any) -> TaskModel:
    content: dict[str, Any] = {"manifest": "corpus/manifest.jsonl", "model": {"start": "hubert", "condition_ff": 32}}
    if task != "pr":
        content["dimension"] = "arousal"
    if task == "mtl":
        content["model"]["head"] = "baseline"
    config = changed(from_dict(task, content, world), changes)  # type: ignore[arg-type]
    return new_task_model(config, "x")


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
    world: Path, task: str, changes: dict[str, Any]
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


def test_the_conversation_head_learns_what_no_single_utterance_shows(world: Path) -> None:
    """Each vector shows a trait with much noise; the mean of many shows it well."""
    model = task_model(world, "pr").kibun
    rng = np.random.default_rng(0)

    def split(count: int, each: int) -> Vectors:
        some = items(count, each)
        traits = true_traits(some)
        vectors = np.zeros((len(some), model.vector_size), np.float16)
        vectors[:, :5] = (traits - 4) / 2 + rng.normal(0, 1.0, traits.shape)
        return Vectors(some, vectors)

    options = from_dict("pr", {"manifest": "m", "training": {"conversation_steps": 150}}, Path("/")).training
    score = train_conversation_head(model, split(120, 8), split(20, 8), options)
    assert score > 0.6


# ---- settings ----------------------------------------------------------------------------------------------------


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    config = from_dict(
        "ser",
        {
            "manifest": "corpus/m.jsonl",
            "dimension": "arousal",
            "license": 'a "quoted" – licence',
            "model": {"head": "ca", "condition_on": ["openness", "neuroticism"]},
            "traits": {"source": "noisy", "sigma": 1},
            "training": {"seed": 3, "crop_seconds": 4, "loss": "ccc", "micro_batch": 8},
        },
        tmp_path,
    )
    assert config.manifest == tmp_path / "corpus" / "m.jsonl"
    assert config.traits.sigma == 1.0
    write_config(config, tmp_path / "c.toml")
    assert load_config(None, tmp_path / "c.toml") == config
    assert from_dict("ser", as_dict(config), Path("/")) == config
    changed = load_config("ser", tmp_path / "c.toml", ["training.seed=4", "model.head=ticn-ca", 'splits="paper"'])
    assert (changed.training.seed, changed.model.head, changed.splits) == (4, "ticn-ca", "paper")
    with pytest.raises(ConfigError, match="run `kibun train ser` with it"):
        load_config("pr", tmp_path / "c.toml")


def test_the_papers_settings_are_the_defaults() -> None:
    config = RunConfig("ser", Path("/m"), dimension="valence")
    assert (config.training.micro_batch, config.training.batch) == (2, 16)
    assert config.training.ctc_weight == 0.1
    assert config.model.start == "facebook/hubert-base-ls960"
    assert config.model.condition_on == TRAITS


# ---- kept frames of a frozen trunk -------------------------------------------------------------------------------


def some_utterances(world: Path, count: int = 5) -> Utterances:
    some = load_manifest(world / "corpus" / "manifest.jsonl")[:count]
    return Utterances(some, true_traits(some), min_samples=400)


@pytest.mark.parametrize(("dtype", "step"), [("float32", 0.0), ("float16", 2.0**-11)])
def test_cached_frames_are_those_of_the_trunk(world: Path, tmp_path: Path, dtype: str, step: float) -> None:
    kibun, utterances = task_model(world, "ser").eval().kibun, some_utterances(world)
    cache, lines = TrunkCache(tmp_path, kibun, dtype), list[str]()
    fill(cache, kibun, utterances.to_cache(), report=lines.append)
    with torch.inference_mode():
        alone = [kibun.encode([torch.from_numpy(utterances.read(row))]).hidden[0] for row in range(5)]
    size = 2 if dtype == "float16" else 4
    assert sum(file.stat().st_size for file in tmp_path.rglob(f"*.{dtype}")) == size * sum(f.numel() for f in alone)
    assert re.fullmatch(
        r"frames of the frozen trunk: 5 utterances, .* GB in .*; .* GB to be computed, .* free", lines[0]
    )
    utterances.use_cache(cache)
    for row, frames in enumerate(alone):
        kept = utterances[(3, row)].frames
        assert kept is not None
        assert ((kept - frames).abs() <= step * frames.abs() + 6e-8 * (step > 0)).all()
    batch = utterances.encode(kibun, [4, 0, 2])
    assert batch.lengths == tuple(len(alone[row]) for row in (4, 0, 2))
    assert torch.equal(batch.hidden[2, : batch.lengths[2]], cache.read(utterances.sounds()[2]))


def test_other_audio_other_weights_and_other_precision_are_other_entries(world: Path, tmp_path: Path) -> None:
    import soundfile

    kibun = task_model(world, "ser").kibun
    cache, heard = TrunkCache(tmp_path, kibun), some_utterances(world, 2)
    fill(cache, kibun, heard.to_cache())
    assert all(map(cache.has, heard.sounds()))

    audio, rate = soundfile.read(heard.items[0].path, dtype="int16")
    audio[100] += 1
    soundfile.write(tmp_path / "changed.wav", audio, rate)
    changed = Utterances(
        [dataclasses.replace(heard.items[0], path=tmp_path / "changed.wav")], heard.condition, min_samples=400
    )
    assert not cache.has(changed.sounds()[0])
    with pytest.raises(ConfigError, match="cannot be read"):
        cache.read(changed.sounds()[0])

    assert TrunkCache(tmp_path, task_model(world, "pr").kibun).folder == cache.folder, "one trunk, any task"
    assert TrunkCache(tmp_path, kibun, "float16").folder != cache.folder
    with torch.no_grad():
        kibun.trunk.state_dict()["layers.0.attention.q_proj.bias"][3] += 1e-6
    assert TrunkCache(tmp_path, kibun).folder != cache.folder
    kibun = task_model(world, "ser").kibun
    kibun.config.hubert_config.num_attention_heads = 2  # the same weights, put to other use
    assert TrunkCache(tmp_path, kibun).folder != cache.folder
    kibun = task_model(world, "ser").kibun
    kibun.config.do_normalize = not kibun.config.do_normalize
    assert TrunkCache(tmp_path, kibun).folder != cache.folder


def test_what_a_kill_leaves_is_neither_used_nor_left(world: Path, tmp_path: Path) -> None:
    kibun, utterances = task_model(world, "ser").kibun, some_utterances(world)
    cache = TrunkCache(tmp_path, kibun)
    sounds = utterances.to_cache()

    def killed() -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(cache, kibun, [*sounds[:2], (sounds[2][0], killed), *sounds[3:]])
    assert [cache.has(sound) for sound in utterances.sounds()] == [True, True, False, False, False]

    first = cache.file(utterances.sounds()[0])
    whole = first.read_bytes()
    first.write_bytes(whole[:-4])  # as a copy that broke off
    with pytest.raises(ConfigError, match="is cut short"):
        cache.read(utterances.sounds()[0])
    old, fresh = cache.folder / "old.part", cache.folder / "fresh.part"
    for part in (old, fresh):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    untouched = cache.file(utterances.sounds()[1]).stat().st_mtime_ns
    fill(cache, kibun, sounds)
    assert all(map(cache.has, utterances.sounds()))
    assert first.read_bytes() == whole
    assert cache.file(utterances.sounds()[1]).stat().st_mtime_ns == untouched
    assert [part.exists() for part in (old, fresh)] == [False, True], "another run may be writing the fresh one"


def test_an_interrupted_write_leaves_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kibun, utterances = task_model(world, "ser").kibun, some_utterances(world, 1)
    cache = TrunkCache(tmp_path, kibun)

    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device; free space"):
        fill(cache, kibun, utterances.to_cache())
    assert not list(cache.folder.iterdir())


def test_a_full_disk_is_reported_before_anything_is_computed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kibun, utterances = task_model(world, "ser").kibun, some_utterances(world)
    cache = TrunkCache(tmp_path, kibun)
    needed = sum(map(cache.size, utterances.sounds()))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("kibun.training.runs.trunk_cache.shutil.disk_usage", lambda _: usage._replace(free=needed))
    with pytest.raises(ConfigError, match=r"5 utterances need .* the disk has .*training\.trunk_cache = 'off'"):
        fill(cache, kibun, utterances.to_cache())
    assert not list(cache.folder.iterdir())


def test_a_folder_that_cannot_be_made_is_reported(world: Path, tmp_path: Path) -> None:
    kibun, utterances = task_model(world, "ser").kibun, some_utterances(world, 1)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"trunk_cache: .*/file/.* cannot be made \(Not a directory\); free space"):
        fill(TrunkCache(tmp_path / "file", kibun), kibun, utterances.to_cache())


def test_frames_that_do_not_fit_are_refused(world: Path, tmp_path: Path) -> None:
    kibun, utterances = task_model(world, "ser").kibun, some_utterances(world, 1)
    sound = utterances.sounds()[0]
    for dtype in ("float16", "float32"):
        cache = TrunkCache(tmp_path, kibun, dtype)
        cache.folder.mkdir()
        with pytest.raises(ConfigError, match=f"do not fit into {dtype}"):
            cache.write(sound, torch.full((3, 32), 1e30 if dtype == "float16" else float("nan")))
        assert not list(cache.folder.iterdir())


def test_several_processes_share_the_filling(world: Path, tmp_path: Path) -> None:
    kibun, utterances = task_model(world, "ser").kibun, some_utterances(world)
    cache, waited = TrunkCache(tmp_path, kibun), list[bool]()
    for number in range(2):
        fill(cache, kibun, utterances.to_cache()[:4], share=(number, 2), ready=lambda: waited.append(True))
    # Run one after the other, the second sees what the first has done, and takes its share of the rest.
    assert sum(map(cache.has, utterances.sounds())) == 3
    assert len(waited) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"training.trunk_cache": "off"}, "training.trunk_cache is 'off'"),
        ({"model.freeze": "none"}, "the trunk learns"),
        ({"training.augment": "rooms"}, "training.augment is 'rooms': every epoch gets other audio"),
        ({"training.crop_seconds": 2.0}, "every epoch gets other pieces"),
    ],
)
def test_frames_are_cached_only_where_they_stay_the_same(changes: dict[str, Any], reason: str | None) -> None:
    config = changed(RunConfig("ser", Path("m"), dimension="arousal"), changes)
    said = cache_off_reason(config)
    assert said is None if reason is None else reason in (said or "")


def test_where_frames_are_cached_does_not_make_another_run(tmp_path: Path) -> None:
    content: dict[str, Any] = {"manifest": "m", "dimension": "valence", "training": {"trunk_cache": "frames"}}
    config = from_dict("ser", content, tmp_path)
    assert config.training.trunk_cache == str(tmp_path / "frames")
    assert cache_root(config, tmp_path / "run") == tmp_path / "frames"
    plain = changed(config, {"training.trunk_cache": "auto"})
    assert cache_root(plain, tmp_path / "runs" / "one") == (tmp_path / "runs" / "trunk-cache")
    assert identity(plain) == identity(config) == identity(changed(config, {"training.trunk_cache": "off"}))
    assert identity(plain) != identity(changed(config, {"training.trunk_cache_dtype": "float16"}))
    with pytest.raises(ConfigError, match="trunk_cache_dtype is 'int8', allowed are float32, float16"):
        changed(config, {"training.trunk_cache_dtype": "int8"})
    with pytest.raises(ConfigError, match="trunk_cache is empty"):
        changed(config, {"training.trunk_cache": ""})
