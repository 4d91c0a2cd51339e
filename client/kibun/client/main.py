"""The command `kibun`: finds the package that implements a command, and imports that package only.

`kibun --help` thus needs neither torch nor grpc, and a machine that has only the client's packages can use the
client's commands.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn

from kibun.client import standard_streams
from kibun.client.commands import proto
from kibun.client.commands.failure import CommandError
from kibun.client.errors import InvalidRequestError, KibunError
from kibun.client.installation import EXTRA_OF, install_command, is_installed
from kibun.client.server_process import ServerStartError
from kibun.client.standard_streams import printable

if TYPE_CHECKING:
    import typer


@dataclass(frozen=True)
class Command:
    """Where a command is implemented: a function, or a typer application with subcommands."""

    module: str
    attribute: str
    help: str
    # What to install when a package is missing.
    extra: str
    # What to call with the command's arguments before its module is imported: "module:function".
    prelude: str = ""


COMMANDS = {
    "demo": Command(
        "kibun.client.commands.demo", "demo", "Watch a bundled dialogue being analysed by a real server.", "server"
    ),
    "serve": Command(
        "kibun.server.main",
        "serve",
        "Run the analysis server.",
        "server",
        "kibun.server.inference.worker_start:start_early",
    ),
    "stream": Command(
        "kibun.client.commands.stream", "stream", "Stream audio files or a microphone to a server.", "cli"
    ),
    "watch": Command("kibun.client.commands.watch", "watch", "Watch a conversation that others speak into.", "cli"),
    "analyze": Command(
        "kibun.client.commands.analyze",
        "analyze",
        "Analyse files and folders into tables, annotations and figures.",
        "cli",
    ),
    "console": Command(
        "kibun.client.commands.bridge", "console", "Serve a page that shows what the server hears.", "console"
    ),
    "bridge": Command(
        "kibun.client.commands.bridge", "bridge", "Serve the contract to browsers, as a WebSocket.", "console"
    ),
    "models": Command("kibun.models.building.commands", "app", "List, show, verify and build model bundles.", "server"),
    "train": Command("kibun.training.commands", "train_app", "Prepare corpora and train models.", "train"),
    "eval": Command("kibun.training.eval_commands", "eval_app", "Compute the paper's tables.", "train"),
    "plot": Command(
        "kibun.training.plot_commands", "plot_app", "Draw the paper's figures, and the curves of a run.", "train"
    ),
    "bench": Command(
        "kibun.bench.commands",
        "bench_app",
        "Measure speed, exactness and reliability, and models on simulated data.",
        "train",
    ),
    "synth": Command("kibun.training.commands", "synth_app", "Make synthetic training data.", "train"),
    "proto": Command("kibun.client.commands.proto", "proto", "Print the path of the contract, a .proto file.", "cli"),
    "doctor": Command("kibun.client.commands.doctor", "doctor", "Check this machine and this installation.", "cli"),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `kibun` with `arguments` (by default those of the process) and exits.

    Exit code 0: done; 1: it failed, or nobody takes its output; 2: it was called in a wrong way, or something must be
    installed first.
    """
    standard_streams.prepare()
    # Before grpc is imported: its core writes lines of its own to stderr, and what they mean is in our messages.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        _run(arguments)
    finally:
        if (error := standard_streams.output_error()) is not None:
            if isinstance(error, BrokenPipeError):  # its reader has had enough, as in `kibun … | head`
                sys.exit(1)
            _fail(f"cannot write to standard output: {error.strerror}", 1)


def _run(arguments: Sequence[str] | None) -> NoReturn:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments[0] if arguments else ""
    if arguments == ["proto"]:  # also without typer: the base installation has the contract
        proto.proto()
        sys.exit(0)
    try:
        if name in COMMANDS and (prelude := COMMANDS[name].prelude):
            module, _, function = prelude.partition(":")
            getattr(import_module(module), function)(arguments[1:])
        _application(name)(arguments, prog_name="kibun")
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        _fail(f"this command needs: {install_command(_widest(extra, name))}", 2)
    except CommandError as error:
        _fail(str(error), error.exit_code)
    except ServerStartError as error:
        _fail(str(error), 1)
    except KibunError as error:
        _fail(str(error), 2 if isinstance(error, InvalidRequestError) and not error.code else 1)
    sys.exit(0)


def version_text() -> str:
    """Version of the installed distribution."""
    try:
        return version("kibun")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _application(name: str) -> "Callable[..., Any]":
    """The typer application: with the command `name` alone if there is one, else with the help texts of all that are
    installed.
    """
    import typer

    absent = {} if name in COMMANDS else _absent()
    app = typer.Typer(
        epilog="\n\n".join(
            f"Not installed here: {', '.join(names)}; {_shown_command(extra)}" for extra, names in absent.items()
        ),
        help="Emotion and apparent personality from speech, while it is spoken.",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(
        show_version: bool = typer.Option(
            False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ) -> None:
        """Options of `kibun` itself."""

    if name in COMMANDS:
        _add(app, name, COMMANDS[name])
    else:
        for other, command in COMMANDS.items():
            if other not in absent.get(command.extra, ()):
                app.command(other, help=command.help)(_placeholder)
    return app


def _shown_command(extra: str) -> str:
    return "add with: " + install_command(extra).replace("[", "\\[")  # rich would take '.[server]' for markup


def _absent() -> dict[str, list[str]]:
    """The commands whose packages are missing, by the extra that they need."""
    absent: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        if not is_installed(command.extra):
            absent.setdefault(command.extra, []).append(name)
    return absent


def _add(app: "typer.Typer", name: str, command: Command) -> None:
    target = getattr(import_module(command.module), command.attribute)
    epilog = None if is_installed(command.extra) else f"Not installed here; {_shown_command(command.extra)}"
    if hasattr(target, "registered_commands"):
        app.add_typer(target, name=name, help=command.help, epilog=epilog)
    else:
        # `python -OO` strips docstrings.
        app.command(name, help=target.__doc__ or command.help, epilog=epilog)(target)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"kibun {version_text()}")
        sys.exit(0)


def _placeholder() -> None:
    """Stands for a command in the list of commands."""


def _widest(extra: str, name: str) -> str:
    """The extra that a command needs as a whole, where that is more than the missing package alone."""
    needed = COMMANDS[name].extra if name in COMMANDS else extra
    return extra if extra in ("mic", "console") or needed == "cli" else needed


def _fail(message: str, code: int) -> NoReturn:
    # What others wrote, such as a file's name or a server's text, must not control the terminal.
    print("kibun:", "\n".join(map(printable, message.splitlines())), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
