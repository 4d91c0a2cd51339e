"""`kibun train pr|ser|mtl`: one run each. Heavy imports happen inside the command."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kibun.training.errors import fail

if TYPE_CHECKING:
    from kibun.training.runs.config import Task

Config = Annotated[Path, typer.Option(help="TOML file of settings; docs/training.md lists them.")]
Out = Annotated[Path, typer.Option(help="Run folder. An interrupted run continues; a finished one is only read.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting on top of the file: training.seed=1. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object and nothing else.")]


def add_fit_commands(app: typer.Typer) -> None:
    """Add pr, ser and mtl."""

    @app.command()
    def pr(config: Config, out: Out, settings: Settings = None, as_json: JsonOption = False) -> None:
        """Train personality recognition: settings 1, 2 and 3, whole and causal."""
        _train("pr", config, out, settings or [], as_json)

    @app.command()
    def ser(config: Config, out: Out, settings: Settings = None, as_json: JsonOption = False) -> None:
        """Train recognition of valence or arousal, conditioned on traits or not."""
        _train("ser", config, out, settings or [], as_json)

    @app.command()
    def mtl(config: Config, out: Out, settings: Settings = None, as_json: JsonOption = False) -> None:
        """Train personality and one emotion dimension on one tail (multi-task)."""
        _train("mtl", config, out, settings or [], as_json)


def _train(task: "Task", config: Path, out: Path, settings: list[str], as_json: bool) -> None:
    from kibun.training.runs.config import load_config
    from kibun.training.runs.run import train_run

    try:
        figures = train_run(load_config(task, config, settings), out)
    except ValueError as error:  # of settings, corpus, bundle or predictions
        fail(str(error))
    if not figures:
        return  # another process of this run prints them
    if as_json:
        typer.echo(json.dumps({"run": str(out), **figures}))
        return
    for warning in figures["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    for split in ("dev", "test"):
        typer.echo(f"{split}: " + ", ".join(_described(figures[split])))
    typer.echo(f"wrote {out}")


def _described(figures: dict[str, float | dict[str, float]]) -> list[str]:
    words = []
    for name, value in figures.items():
        if isinstance(value, dict):
            words.append(f"traits ({name}) {value['mean']:.3f}")
        else:
            words.append(f"WER {value:.1%}" if name == "wer" else f"{name} CCC {value:.3f}")
    return words
