"""The training loop on a model of a few weights: accumulation, checkpoints, patience, the log."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kibun.training.runs.folder import CHECKPOINT, read_log
from kibun.training.runs.loop import Plan, new_accelerator, train

X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([1.0, -2.0, 0.5])


class Line(nn.Module):
    """y = wx, with dropout, so that the state of the random generator matters."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out = nn.Linear(3, 1)
        self.dropout = nn.Dropout(dropout)
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        estimate = self.out(self.dropout(x))[:, 0]  # (B,)
        self.dtypes.add(estimate.dtype)
        loss = (estimate.float() - y).square().mean()
        return {"loss": loss, "half": loss.detach() / 2}


def plan(model: Line, saved: list[Tensor] | None = None, per_step: int = 2, size: int = 2, **changes: Any) -> Plan:
    rows = torch.arange(48).view(2, 24).T.reshape(-1, size)  # micro-batches of B = size, 24 apart

    def evaluate() -> dict[str, float]:
        assert not model.training
        return {"score": -float((model.out(X)[:, 0] - Y).detach().square().mean())}

    settings: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "batch": lambda number: {"x": X[rows[number]], "y": Y[rows[number]]},
        "per_step": per_step,
        "steps": 24 // per_step,
        "evaluate_every": 4,
        "evaluate": evaluate,
        "save": lambda: saved.append(model.out.weight.detach().clone()) if saved is not None else None,
    }
    return Plan(**(settings | changes))


def trained(folder: Path, model: Line, loaded: Callable[[], None] = lambda: None, **changes: Any) -> Tensor:
    folder.mkdir(exist_ok=True)
    train(plan(model, **changes), folder, new_accelerator(), loaded)
    return model.out.weight.detach().clone()


def test_the_best_is_saved_and_every_evaluation_logged(tmp_path: Path) -> None:
    saved: list[Tensor] = []
    trained(tmp_path, Line(), saved=saved, steps_per_epoch=6, notes={"trunk": "kept"})
    log = read_log(tmp_path)
    assert [(line["step"], line["epoch"], line["trunk"]) for line in log] == [
        (4, 0.667, "kept"),
        (8, 1.333, "kept"),
        (12, 2.0, "kept"),
    ]
    assert all(line["loss"]["half"] == pytest.approx(line["loss"]["loss"] / 2, abs=2e-5) for line in log)
    scores = [line["dev"]["score"] for line in log]
    assert len(saved) == sum(score == max(scores[: at + 1]) for at, score in enumerate(scores))


def test_micro_batches_add_up_to_their_batch(tmp_path: Path) -> None:
    many = trained(tmp_path / "many", Line(dropout=0.0), per_step=2, steps=6)
    one = trained(tmp_path / "one", Line(dropout=0.0), per_step=1, steps=6, size=4)
    torch.testing.assert_close(many, one)


def test_a_run_continues_from_its_last_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = trained(tmp_path / "undisturbed", Line())
    save, written = torch.save, list[int]()

    def killed(state: dict[str, Any], file: Path) -> None:
        written.append(state["step"])
        if state["step"] == 8:
            Path(file).write_bytes(b"half")
            raise KeyboardInterrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", Line())
    monkeypatch.undo()
    assert written == [4, 8]
    assert [line["step"] for line in read_log(tmp_path / "killed")] == [4, 8]
    assert torch.load(tmp_path / "killed" / CHECKPOINT)["step"] == 4

    model, loaded = Line(), list[Tensor]()
    resumed = trained(tmp_path / "killed", model, lambda: loaded.append(model.out.weight.detach().clone()))
    assert not torch.equal(loaded[0], Line().out.weight), "called once the checkpoint's weights are there"
    assert torch.equal(resumed, undisturbed)
    for name in ("killed", "undisturbed"):
        assert [line["step"] for line in read_log(tmp_path / name)] == [4, 8, 12]
    drop = [{key: line[key] for key in ("step", "loss", "dev")} for line in read_log(tmp_path / "killed")]
    assert drop == [{key: line[key] for key in ("step", "loss", "dev")} for line in read_log(tmp_path / "undisturbed")]
    assert torch.equal(trained(tmp_path / "killed", Line()), Line().out.weight), "nothing is left to train"


@pytest.mark.parametrize("content", [b"", b"cut", {"step": "4"}, {"step": 4}, [4], {"step": 4, "model": {"a": X}}])
def test_a_damaged_checkpoint_is_named_with_the_fix(tmp_path: Path, content: Any) -> None:
    file = tmp_path / CHECKPOINT
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=f"{file}: damaged, or not of this run .*: remove it") as caught:
        trained(tmp_path, Line())
    assert "\n" not in str(caught.value)


def test_training_stops_when_dev_no_longer_gets_better(tmp_path: Path) -> None:
    scores = iter([0.5, 0.4, 0.3, 0.9])
    saved: list[Tensor] = []
    changes: dict[str, Any] = {"evaluate": lambda: {"score": next(scores)}, "evaluate_every": 1, "patience": 2}
    trained(tmp_path, Line(), saved=saved, **changes)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3]
    assert len(saved) == 1
    trained(tmp_path, Line(), saved=saved, **changes)
    assert next(scores) == 0.9, "started again, it sees that it has stopped"


def test_bf16_is_for_the_forward_in_training(tmp_path: Path) -> None:
    model = Line()
    trained(tmp_path, model, bf16=True)
    assert model.dtypes == {torch.bfloat16}
    assert model.out.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("linear", [0.05, 0.1, 0.05, 0.0]), ("constant", [0.05, 0.1, 0.1, 0.1]), ("cosine", [0.05, 0.1, 0.05, 0.0])],
)
def test_the_learning_rate_rises_and_falls(tmp_path: Path, schedule: str, rates: list[float]) -> None:
    model, seen = Line(), list[float]()
    some = plan(model, steps=4, schedule=schedule, warmup=0.5, evaluate_every=1)
    optimizer = some.optimizer
    evaluate = some.evaluate

    def noted() -> dict[str, float]:
        seen.append(optimizer.param_groups[0]["lr"])
        return evaluate()

    train(
        plan(model, optimizer=optimizer, steps=4, schedule=schedule, warmup=0.5, evaluate_every=1, evaluate=noted),
        tmp_path,
        new_accelerator(),
    )
    assert seen == pytest.approx(rates)


def test_processes_that_cannot_share_a_step_are_refused(tmp_path: Path) -> None:
    accelerator = new_accelerator()

    class Two:
        num_processes = 2

    with pytest.raises(
        ValueError, match=r"2 processes cannot share 3 micro-batches a step evenly: make training\.batch"
    ):
        train(plan(Line(), per_step=3), tmp_path, Two())
    assert accelerator.num_processes == 1
