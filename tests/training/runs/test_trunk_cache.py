"""Cached frames of a frozen trunk."""

import dataclasses
import errno
import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from kibun.training.corpora.manifest import load_manifest
from kibun.training.progress import Progress
from kibun.training.runs.config import (
    ConfigError,
    RunConfig,
    from_dict,
    identity,
)
from kibun.training.runs.trait_source import true_traits
from kibun.training.runs.trunk_cache import TrunkCache, cache_off_reason, cache_root, fill
from kibun.training.runs.utterances import Utterances
from tests.support.run_config import changed
from tests.support.task_models import task_model


def some_utterances(world: Path, count: int = 5) -> Utterances:
    some = load_manifest(world / "corpus" / "manifest.jsonl")[:count]
    return Utterances(some, true_traits(some), min_samples=400)


@pytest.mark.parametrize(("dtype", "step"), [("float32", 0.0), ("float16", 2.0**-11)])
def test_cached_frames_are_those_of_the_trunk(world: Path, tmp_path: Path, dtype: str, step: float) -> None:
    kibun, utterances = task_model(world, "ser").eval().kibun, some_utterances(world)
    cache, output = TrunkCache(tmp_path, kibun, dtype), io.StringIO()
    fill(cache, kibun, utterances.to_cache(), progress=Progress(console=Console(file=output)))
    lines = output.getvalue().splitlines()
    with torch.inference_mode():
        alone = [kibun.encode([torch.from_numpy(utterances.read(row))]).hidden[0] for row in range(5)]
    size = 2 if dtype == "float16" else 4
    assert sum(file.stat().st_size for file in tmp_path.rglob(f"*.{dtype}")) == size * sum(f.numel() for f in alone)
    assert re.fullmatch(
        r"frames of the frozen trunk: 5 utterances, .* GB in .*; .* GB to be computed, .* free", lines[0]
    )
    assert re.fullmatch(r"frames of the trunk: 5 of 5, \d+ s", lines[1])
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
