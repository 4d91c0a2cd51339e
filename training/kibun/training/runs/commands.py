"""`kibun train pr|ser|mtl`: one run each. Heavy imports happen inside the command."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from kibun.training.errors import fail
from kibun.training.runs.config import SettingFlag, Task, load_config, setting_flags

Config = Annotated[Path | None, typer.Option(help="TOML file of settings, or none: give them as flags.")]
Out = Annotated[Path, typer.Option(help="Run folder. An interrupted run continues; a finished one is only read.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting on top of file and flags: training.seed=1. Repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object and nothing else.")]

TASK_HELP: dict[Task, str] = {
    "pr": "Train personality recognition: settings 1, 2 and 3, whole and causal.",
    "ser": "Train recognition of valence or arousal, conditioned on traits or not.",
    "mtl": "Train personality and one emotion dimension on one tail (multi-task).",
}


def add_fit_commands(app: typer.Typer) -> None:
    """Add pr, ser and mtl, each with a flag for every setting."""
    for task, text in TASK_HELP.items():
        app.command(task, help=text)(_fit_command(task))


def _fit_command(task: Task) -> Callable[..., None]:
    """A command with the options below and those of `setting_flags`, which have the settings' names."""
    flags = {flag.name.replace(".", "_"): flag for flag in setting_flags()}

    def command(
        out: Out, config: Config = None, settings: Settings = None, as_json: JsonOption = False, **given: str | None
    ) -> None:
        values = {flags[key].name: flags[key].value(text) for key, text in given.items() if text is not None}
        _train(task, config, out, settings or [], values, as_json)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "given"]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *map(_option, flags, flags.values())]
    typed: Any = command  # typer reads its options from the signature and the annotations
    typed.__signature__ = inspect.Signature(parameters)
    typed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _option(key: str, flag: SettingFlag) -> inspect.Parameter:
    words = {int: "N", float: "X", bool: "BOOL", Path: "PATH", str: "TEXT"}
    metavar = words.get(flag.hint) or ("A,B,…" if get_origin(flag.hint) is tuple else "WORD")
    text = f"{flag.help}."
    if get_origin(flag.hint) is Literal:
        text += f" Allowed: {', '.join(get_args(flag.hint))}."
    if flag.default is not None:
        default = ", ".join(flag.default) if isinstance(flag.default, tuple) else str(flag.default)
        text += f" Default: {default.lower() if flag.hint is bool else default}."
    section = flag.name.rpartition(".")[0]
    panel = f"Settings: {section}" if section else "Settings"
    option = typer.Option(f"--{flag.name}", metavar=metavar, help=text, rich_help_panel=panel)
    return inspect.Parameter(
        key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]
    )


def _train(
    task: Task, config: Path | None, out: Path, settings: list[str], flags: dict[str, Any], as_json: bool
) -> None:
    from kibun.training.runs.run import train_run

    try:
        figures = train_run(load_config(task, config, settings, flags), out)
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
