"""Runs of `kibun train pr|ser|mtl`: they learn, save the best, survive a kill, and run on several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kibun.models.building.assemble import assemble
from kibun.models.building.parts import load_parts
from kibun.models.bundle import BundleError, KibunModel, Utterance, load_bundle
from kibun.models.types import TRAITS, Traits
from kibun.training.audio.reading import load_audio
from kibun.training.commands import train_app
from kibun.training.corpora.manifest import load_manifest
from kibun.training.evaluation.metrics import ccc
from kibun.training.evaluation.predictions import read_predictions
from kibun.training.runs.calibration import halves
from kibun.training.runs.config import ConfigError, RunConfig, Task, write_config
from kibun.training.runs.folder import heard_file, read_figures, read_log
from kibun.training.runs.heard import read_condition
from kibun.training.runs.run import load_run, train_run
from tests.support import present
from tests.support.commands import invoke
from tests.support.run_config import changed, tiny_run
from tests.support.tiny_corpus import make_hubert

TRAINING = {
    "training.epochs": 3,
    "training.batch": 8,
    "training.learning_rate": 1e-3,
    "training.head_learning_rate": 3e-3,
    "training.conversation_steps": 40,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are rounded by how many threads share them; bits are compared here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(world: Path, task: Task = "ser", **changes: Any) -> RunConfig:
    return tiny_run(world, task, "valence", TRAINING | {key.replace("__", "."): v for key, v in changes.items()})


@pytest.fixture(scope="module")
def ser(world: Path) -> Path:
    train_run(config(world, training__head_learning_rate=1e-2, training__epochs=8), world / "ser")
    return world / "ser"


@pytest.fixture(scope="module")
def pr(world: Path) -> Path:
    train_run(config(world, "pr"), world / "pr")
    return world / "pr"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / "bundle" / "model.safetensors"), **load_file(run / "ctc.safetensors")}


def test_a_run_learns_and_saves_its_best(ser: Path) -> None:
    log = read_log(ser)
    assert [line["step"] for line in log] == [6 * epoch for epoch in range(1, len(log) + 1)]
    assert log[-1]["loss"]["loss"] < log[0]["loss"]["loss"]
    assert log[-1]["loss"]["ctc"] < log[0]["loss"]["ctc"]
    figures = json.loads((ser / "figures.json").read_text())
    best = max(line["dev"]["score"] for line in log)
    assert figures["dev"]["valence"] == pytest.approx(best, abs=1e-4)
    assert best > 0.2, "the pitch that valence is, is easy to hear"
    rows = read_predictions(ser / "predictions-test.jsonl")
    assert len(rows) == 16
    assert figures["test"]["valence"] == pytest.approx(
        ccc([present(row.predicted.valence) for row in rows], [present(row.valence) for row in rows])
    )
    assert not list(ser.glob("*checkpoint*"))


def test_predictions_are_what_the_bundle_serves(world: Path, ser: Path, pr: Path) -> None:
    items = {item.id: item for item in load_manifest(world / "corpus" / "manifest.jsonl")}
    emotion, personality = load_bundle(ser / "bundle"), load_bundle(pr / "bundle")
    history: dict[str, np.ndarray] = {}
    empty, none = np.zeros((0, 32), np.float16), np.zeros((0, 0), np.float16)
    for said, traits in zip(
        read_predictions(ser / "predictions-dev.jsonl")[:6],
        read_predictions(pr / "predictions-dev.jsonl"),
        strict=False,
    ):
        item = items[said.id]
        audio = load_audio(item.path)
        [answer] = emotion.analyze([Utterance(audio, none, given_traits=item.traits)])
        assert said.predicted.valence == pytest.approx(answer.valence, abs=1e-4)
        [answer] = personality.analyze([Utterance(audio, history.get(item.speaker, empty))])
        np.testing.assert_allclose(
            present(traits.predicted.utterance_traits), present(answer.utterance_traits), atol=2e-3
        )
        np.testing.assert_allclose(
            present(traits.predicted.causal_traits), present(answer.conversation_traits), atol=2e-3
        )
        assert traits.predicted.heard == len(history.get(item.speaker, empty)) + 1
        history[item.speaker] = np.concatenate([history.get(item.speaker, empty), answer.vector[None]])


def test_the_frozen_trunk_stays_bit_equal_and_the_rest_learns(world: Path, ser: Path, pr: Path) -> None:
    personality, valence = (KibunModel.from_pretrained(run / "bundle") for run in (pr, ser))
    hubert = load_file(world / "hubert" / "model.safetensors")
    assert torch.equal(
        valence.trunk.layers[0].attention.q_proj.weight, hubert["encoder.layers.0.attention.q_proj.weight"]
    )
    for a, b in zip(personality.trunk.state_dict().values(), valence.trunk.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for tail in (personality.tails["personality"], valence.tails["valence"]):
        assert not torch.equal(
            tail.layers[0].attention.q_proj.weight, hubert["encoder.layers.2.attention.q_proj.weight"]
        )


def test_a_run_of_pr_has_its_error_and_all_settings(pr: Path) -> None:
    figures = json.loads((pr / "figures.json").read_text())
    assert {"utterance", "average", "conversation", "causal"} <= figures["dev"].keys()
    bundle = load_bundle(pr / "bundle")
    assert bundle.config.tasks == ("personality",)
    assert bundle.config.license == "CC-BY-4.0 AND not stated"
    rows = read_predictions(pr / "predictions-dev.jsonl")
    assert bundle.evidence is not None
    assert [row.utterance_count for row in bundle.evidence] == [1, 2, 3]
    dev = [item for item in load_manifest(pr.parent / "corpus" / "manifest.jsonl") if item.split == "dev"]
    apart = [dev[row] for row in halves(dev).calibrate]
    away = np.array([item.traits for item in apart]) - np.array(bundle.config.condition_centre)
    np.testing.assert_allclose(present(bundle.evidence[0].error_of_mean), np.sqrt(np.mean(away**2, axis=0)), atol=1e-3)
    assert "calibrate it" in (pr / "bundle" / "MODEL_CARD.md").read_text()
    whole = {row.conversation: row.predicted for row in rows}
    for row in rows:
        alone = [present(r.predicted.utterance_traits) for r in rows if r.conversation == row.conversation]
        np.testing.assert_allclose(present(row.predicted.average_traits), np.mean(alone, axis=0), atol=1e-4)
        assert row.predicted.conversation_traits == whole[row.conversation].causal_traits


def test_the_card_names_data_and_seed(pr: Path) -> None:
    card = (pr / "bundle" / "MODEL_CARD.md").read_text()
    for part in (
        "not a diagnosis",
        "train 48 utterances of 12 speakers",
        "licence CC-BY-4.0 AND not stated;",
        "Seed: 0",
        "hubert",
        "WER",
    ):
        assert part in card
    assert str(pr.parent) not in card


def test_multitask_runs_share_one_tail(world: Path) -> None:
    figures = train_run(config(world, "mtl", training__epochs=1), world / "mtl")
    assert {"valence", "utterance", "conversation"} <= figures["test"].keys()
    assert all(line["dev"]["score"] == line["dev"]["valence"] for line in read_log(world / "mtl"))
    model = load_bundle(world / "mtl" / "bundle")
    assert list(model.tails) == ["shared"]
    [answer] = model.analyze([Utterance(np.zeros(8000, np.float32), np.zeros((0, 32), np.float16))])
    assert answer.valence is not None
    assert answer.conversation_traits is not None


def test_setting_three_may_be_trained_through_the_tail(world: Path) -> None:
    run = config(world, "pr", training__conversation="through_tail", training__epochs=10, training__micro_batch=4)
    run = changed(
        run,
        {
            "training.conversation_utterances": 3,
            "training.patience": 10,
            "training.ctc_weight": 0.0,
            "training.calibrate": False,
        },
    )
    figures = train_run(run, world / "through")
    log = read_log(world / "through")
    assert [line["step"] for line in log] == [12 * epoch for epoch in range(1, 11)], "12 profiles of 4, 2 parts each"
    assert log[-1]["loss"]["conversation"] < 0.7 * log[0]["loss"]["conversation"]
    assert [line["dev"]["score"] for line in log] == [line["dev"]["conversation"] for line in log]
    best = max(log, key=lambda line: line["dev"]["score"])
    assert figures["best_step"] == best["step"]
    # Nothing trains the conversation head afterwards.
    assert figures["dev"]["conversation"]["mean"] == pytest.approx(best["dev"]["score"], abs=1e-4)
    bundle = load_bundle(world / "through" / "bundle")
    hubert = load_file(world / "hubert" / "model.safetensors")
    name = "layers.{}.attention.q_proj.weight"
    assert not torch.equal(
        bundle.tails["personality"].state_dict()[name.format(0)], hubert["encoder." + name.format(2)]
    )
    assert torch.equal(bundle.trunk.state_dict()[name.format(0)], hubert["encoder." + name.format(0)])
    assert bundle.card is not None
    assert "conversation head (trained through the tail)" in bundle.card
    with pytest.raises(ConfigError, match=r"'through_tail' is for pr, not for mtl"):
        config(world, "mtl", training__conversation="through_tail")


def test_a_multitask_run_of_one_trait_is_not_served_as_one_of_all(world: Path) -> None:
    figures = train_run(config(world, "mtl", model__traits=["neuroticism"], training__max_steps=2), world / "single")
    assert figures["test"]["utterance"].keys() == {"neuroticism", "mean"}
    assert read_log(world / "single")[0]["dev"].keys() >= {"valence", "neuroticism"}
    with pytest.raises(BundleError, match="untrained"):
        load_bundle(world / "single" / "bundle")
    bundle = load_bundle(world / "single" / "bundle", allow_untrained=True)
    assert bundle.evidence is None
    card = (world / "single" / "bundle" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "it estimates neuroticism only" in card
    with pytest.raises(ConfigError, match=r"model\.traits is \['neuroticism', 'openness'\], allowed are one or more"):
        config(world, "mtl", model__traits=["neuroticism", "openness"])
    with pytest.raises(ConfigError, match=r"ser has model\.condition_on"):
        config(world, "ser", model__traits=["openness"])


def test_predicted_traits_condition_a_run(world: Path, pr: Path) -> None:
    run = config(
        world, traits__source="predicted", traits__run=str(pr), traits__setting="causal", training__max_steps=2
    )
    figures = train_run(run, world / "predicted")
    assert "valence" in figures["test"]
    rows = read_predictions(world / "predicted" / "predictions-test.jsonl")
    traits = {row.id: row.predicted.causal_traits for row in read_predictions(pr / "predictions-test.jsonl")}
    model = load_bundle(world / "predicted" / "bundle")
    item = next(item for item in load_manifest(world / "corpus" / "manifest.jsonl") if item.id == rows[3].id)
    given = traits[item.id]
    [answer] = model.analyze([Utterance(load_audio(item.path), np.zeros((0, 0), np.float16), given_traits=given)])
    assert rows[3].predicted.valence == pytest.approx(answer.valence, abs=1e-4)


def test_what_a_mixed_run_is_tested_with_is_what_its_bundle_serves(world: Path, pr: Path) -> None:
    run = config(world, traits__source="mixed", traits__run=str(pr), training__epochs=1)
    train_run(run, world / "mixed")
    model = assemble(load_parts({"personality": pr, "valence": world / "mixed"}), name="x")
    assert model.config.familiarity
    served = read_condition(heard_file(pr, "dev"))
    history: dict[str, np.ndarray] = {}
    items = {item.id: item for item in load_manifest(world / "corpus" / "manifest.jsonl")}
    for row in read_predictions(world / "mixed" / "predictions-dev.jsonl")[:6]:
        item = items[row.id]
        before = history.get(item.speaker, np.zeros((0, model.vector_size), np.float16))
        [answer] = model.analyze([Utterance(load_audio(item.path), before)])
        [condition] = served.of([item], pr)[0]
        np.testing.assert_allclose(present(answer.condition_traits), condition, atol=2e-3)
        assert row.predicted.valence == pytest.approx(answer.valence, abs=1e-3)
        history[item.speaker] = np.concatenate([before, answer.vector[None]])


def test_with_frozen_acoustics_only_the_reading_of_traits_learns(world: Path, pr: Path) -> None:
    plain = config(world, training__epochs=1, model__head_dropout=0.0)
    train_run(plain, world / "whole")
    run = changed(plain, {"model.start": str(world / "whole"), "model.keep_heads": True, "model.freeze": "acoustics"})
    run = changed(run, {"traits.source": "mixed", "traits.run": str(pr)})
    train_run(run, world / "reading")
    before, after = (load_bundle(world / name / "bundle") for name in ("whole", "reading"))
    audio = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    mean = cast(Traits, before.config.condition_centre)
    for traits, same in ((mean, True), ((6.0, 2.0, 6.0, 2.0, 6.0), False)):
        [a], [b] = (
            model.analyze([Utterance(audio, np.zeros((0, 0), np.float16), given_traits=traits)])
            for model in (before, after)
        )
        assert (abs(present(a.valence) - present(b.valence)) < 1e-5) == same


def test_early_stopping_and_a_run_that_is_finished(world: Path) -> None:
    run = config(world, training__head_learning_rate=1e-9, training__learning_rate=1e-9, training__patience=2)
    run = changed(run, {"training.epochs": 9, "training.weight_decay": 0.0})
    figures = train_run(run, world / "stopped")
    assert len(read_log(world / "stopped")) < 9
    before = (world / "stopped" / "log.jsonl").read_bytes()
    assert train_run(run, world / "stopped") == figures
    assert (world / "stopped" / "log.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match=r"other settings \(training\.seed\)"):
        train_run(changed(run, {"training.seed": 5}), world / "stopped")


def test_tensorboard_gets_what_the_log_gets(world: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    train_run(config(world, training__tensorboard=True, training__epochs=2), world / "board")
    events = EventAccumulator(str(world / "board" / "tensorboard"))
    events.Reload()
    log = read_log(world / "board")
    assert [point.step for point in events.Scalars("dev/valence")] == [line["step"] for line in log] == [6, 12]
    assert [point.value for point in events.Scalars("loss/ctc")] == pytest.approx([line["loss"]["ctc"] for line in log])


KILLED = """
import os, signal, sys
from pathlib import Path
from kibun.training.runs import loop
from kibun.training.runs.config import load_config
from kibun.training.runs.run import train_run

counted, send = 0, loop.send_to_device

def killed(batch, device):
    global counted
    counted += 1
    if counted == 59:  # 4 micro-batches a step, 6 steps an epoch: within a step of the third
        os.kill(os.getpid(), signal.SIGKILL)
    return send(batch, device)

loop.send_to_device = killed
train_run(load_config("pr", Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.timeout(400)  # starts a process, which is slow on a busy machine
def test_a_killed_run_continues_to_the_same_result(world: Path) -> None:
    # With dropout, so that the state of the random generators matters too.
    start = str(make_hubert(world / "dropping"))
    run = config(world, "pr", training__epochs=3, training__conversation_steps=20, model__start=start)
    reference = train_run(run, world / "undisturbed")
    out = world / "killed"
    write_config(run, world / "killed.toml")
    command = [sys.executable, "-c", KILLED, str(world / "killed.toml"), str(out)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert [line["step"] for line in read_log(out)] == [6, 12]
    assert train_run(run, out) == reference
    strip = [{key: value for key, value in line.items() if key != "seconds"} for line in read_log(out)]
    assert strip == [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_log(world / "undisturbed")
    ]
    for name, value in weights(world / "undisturbed").items():
        assert torch.equal(value, weights(out)[name]), name


@pytest.mark.timeout(400)  # starts processes, which is slow on a busy machine
def test_two_processes_give_what_one_gives(world: Path) -> None:
    run = config(world, training__epochs=1, training__evaluations_per_epoch=2, model__head_dropout=0.0)
    train_run(run, world / "one")
    write_config(run, world / "two.toml")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "kibun.client.main", "train", "ser"]
    done = subprocess.run(
        [*command, "--config", str(world / "two.toml"), "--out", str(world / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_log(world / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [3, 6]
    for a, b in zip(one, two, strict=True):
        assert a["dev"] == pytest.approx(b["dev"], abs=1e-4)
    other = weights(world / "two")
    for name, value in weights(world / "one").items():
        # Softmax does not see a key's bias: its gradient is rounding noise, of which Adam makes steps of full size.
        if not name.endswith(("k_proj.bias", "key.bias")):
            torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-3)


def test_a_loaded_run_is_the_one_that_was_trained(ser: Path) -> None:
    model = load_run(ser, "cpu")
    assert model.run.dimension == "valence"
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.kibun.trunk.parameters())
    with pytest.raises(ConfigError, match="not a run of `kibun train"):
        load_run(ser / "bundle")


def test_a_run_that_diverges_saves_no_bundle(world: Path) -> None:
    run = config(world, training__epochs=1, training__learning_rate=1e36, training__head_learning_rate=1e36)
    with pytest.raises(ValueError, match=r"has diverged by step \d+: .* holds NaN or infinity; lower the learning"):
        train_run(run, world / "diverged")
    assert not (world / "diverged" / "bundle").exists()


@pytest.mark.parametrize("name", ["ctc.safetensors", "figures.json", "bundle/config.json"])
def test_a_damaged_file_of_a_run_is_named(ser: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(ser, run)
    (run / name).write_bytes(b"{")
    with pytest.raises(ValueError, match=f"{run / name}: ") as caught:
        read_figures(run) if name == "figures.json" else load_run(run, "cpu")
    assert "\n" not in str(caught.value)


def test_cached_frames_train_what_computed_ones_train(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"training__epochs": 1, "training__evaluations_per_epoch": 2, "training__micro_batch": 1}
    run = config(world, **changes)
    kept, off = world / "frames" / "kept", world / "frames" / "off"
    figures = train_run(run, kept)
    assert "frames of the frozen trunk: 80 utterances" in capfd.readouterr().err
    computed = train_run(changed(run, {"training.trunk_cache": "off"}), off)
    assert "computed anew every epoch: training.trunk_cache is 'off'" in capfd.readouterr().err
    assert {line["trunk"] for line in read_log(kept)} == {"kept"}
    assert {line["trunk"] for line in read_log(off)} == {"training.trunk_cache is 'off'"}
    for a, b in zip(read_log(kept), read_log(off), strict=True):
        assert a["loss"] == b["loss"]
        assert a["dev"] == pytest.approx(b["dev"], abs=1e-4)
    assert figures["test"]["valence"] == pytest.approx(computed["test"]["valence"], abs=1e-4)
    # Micro-batches of one utterance have no padding, which would round the trunk's sums in another order.
    other = weights(off)
    assert all(torch.equal(value, other[name]) for name, value in weights(kept).items())


def test_the_command_reports_what_cannot_be_trained(world: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    for text, message in (
        ("", "manifest is missing"),
        ("manifest = 3", "manifest is"),
        ('manifest = "m.jsonl"', "dimension is None, allowed are valence, arousal"),
        ('manifest = "m.jsonl"\ndimension = "valence"', "m.jsonl: cannot be read"),
        ('manifest = "m.jsonl"\ndimension = "valence"\n[training]\nbatch = 5', "not a multiple of micro_batch"),
        ('manifest = "m.jsonl"\ndimension = "valence"\n[training]\nloss = "ccc"', "needs training.micro_batch >= 8"),
        ('manifest = "m.jsonl"\ndimension = "valence"\n[trainig]', "trainig is no setting"),
        ('manifest = "m.jsonl"\ndimension = "valence"\n[model]\nhead = "best"', "model.head is 'best', allowed are"),
        ('manifest = "m.jsonl"\ndimension = "valence"\n[traits]\nsource = "predicted"', "name the run"),
        (
            'manifest = "m.jsonl"\ndimension = "valence"\n[traits]\nsource = "none"\n[model]\nhead = "baseline"',
            "looks at traits (concat, ca, ticn-ca), not",
        ),
        (
            'manifest = "m.jsonl"\ndimension = "valence"\n[training]\ntrait_weight = -1',
            "training.trait_weight is -1.0, must be 0 or more",
        ),
        ("manifest = ", "is not TOML"),
    ):
        file.write_text(text)
        assert message in invoke(train_app, "ser", "--config", file, "--out", tmp_path / "run", code=2)
    file.write_text(f'manifest = "{world}/corpus/manifest.jsonl"\ndimension = "valence"')
    for settings, message in (
        (["--set", "model.start=/nowhere"], "no checkpoint found"),
        (["--set", "training.batch=128", "--set", f"model.start={world}/hubert"], "do not fill one batch of 128"),
        (["--set", "nothing"], "write it as section.name=value"),
    ):
        out = tmp_path / settings[1].replace("/", "_")
        assert message in invoke(train_app, "ser", "--config", file, "--out", out, *settings, code=2)
    assert set(TRAITS) == set(RunConfig("ser", Path("m"), dimension="arousal").model.condition_on)
