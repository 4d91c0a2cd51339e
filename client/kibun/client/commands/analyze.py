"""`kibun analyze`: files and folders into a table, JSON lines or CSV, a row per utterance."""

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kibun.client.audio_file import shown
from kibun.client.client import AsyncClient
from kibun.client.commands.audio_files import find_audio
from kibun.client.commands.connection import CaOption, Connection, TlsOption, TokenOption
from kibun.client.commands.failure import CommandError, UsageError
from kibun.client.commands.report import MODEL_WARNINGS, note, synthetic_banner
from kibun.client.commands.rows import CsvRows, FileStatus, JsonRows, Row, Rows, TableRows, row_of, row_without
from kibun.client.commands.streaming import Audio, channel_note, open_audio, run
from kibun.client.commands.traits_file import load_traits, match_files
from kibun.client.errors import AudioFileError, KibunError
from kibun.client.estimates import Traits
from kibun.client.events import PersonalityUpdate, StreamWarning, UtteranceResult
from kibun.client.options import Features
from kibun.client.pcm import CHUNK_MS
from kibun.client.server_process import ServerProcess
from kibun.client.standard_streams import silence_libraries


class OutputFormat(enum.StrEnum):
    """What rows are written as."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


def analyze(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Audio files; folders are searched; - is standard input.")
    ],
    output_format: Annotated[OutputFormat, typer.Option("-f", "--format", help="Form of the output.")] = (
        OutputFormat.TABLE
    ),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File to write; default: the terminal.")] = None,
    model: Annotated[
        str,
        typer.Option("--model", envvar="KIBUN_MODEL", help="Bundle (folder or name) to load, or a model of --server."),
    ] = "",
    server: Annotated[
        str,
        typer.Option("--server", "-s", envvar="KIBUN_SERVER", metavar="HOST:PORT", help="Default: start one."),
    ] = "",
    channel: Annotated[int | None, typer.Option(min=1, help="Channel to use; default: the mean of all.")] = None,
    traits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Known traits, 1..7: .csv or .jsonl with a row per file (its name) or speaker (its folder).",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, max=64, help="Files at a time.")] = 4,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
) -> None:
    """Analyse files and folders into a table, JSON lines or CSV, a row per utterance.

    Each file is a separate conversation with one speaker. One without speech, or that fails, has a row that says so,
    and the others go on.

    Exit codes: 0 all files were analysed; 1 one failed or was not whole; 2 called wrongly, or nothing to analyse; 130
    Ctrl-C.
    """
    silence_libraries()
    found = find_audio(paths)
    files = found.files
    if not server and not model:
        raise UsageError(
            "analyze needs a model: --model DIR for a bundle, --model demo-tiny to try the software (synthetic, tells "
            "you nothing about real people), or --server HOST:PORT of a server that runs"
        )
    for line in found.remarks():
        note(line)
    known = _traits(traits, files)
    batch = _Batch(files, channel, jobs, model if server else "", known)
    with _open_rows(output_format, output) as rows, _server(server, model) as target:
        run(_analyze(Connection(target, token, tls, ca), batch, rows))


def _traits(path: Path | None, files: list[Path]) -> dict[Path, Traits]:
    """Known traits by file; warns of rows that match no file, as a misspelt name would otherwise go unnoticed."""
    if path is None:
        return {}
    traits = load_traits(path, ("file", "path", "speaker", "participant"))
    matched = match_files(files, traits)
    if not matched:
        raise UsageError(
            f"{shown(path)}: none of its {len(traits)} rows is about one of the {len(files)} files: its column file "
            "has to hold their names, or its column speaker the names of their folders"
        )
    if without := [shown(file) for file in files if file not in matched]:
        note(f"{shown(path)} has no traits for {len(without)} of {len(files)} files, {without[0]} first")
    return matched


@dataclass(frozen=True)
class _Batch:
    files: list[Path]
    channel: int | None
    jobs: int
    model: str
    traits: Mapping[Path, Traits]


@dataclass
class _Outcome:
    """What became of one file: its rows, of which there is always one, and what to say about it."""

    path: Path
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # What is true of the model, and so the same for every file.
    model_notes: list[str] = field(default_factory=list)
    # Why the file failed, or what of it is missing.
    problem: str = ""


async def _analyze(connection: Connection, batch: _Batch, rows: Rows) -> None:
    console = Console(stderr=True)
    problems: list[_Outcome] = []
    shown_before: set[str] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with connection.client() as client:
        info = await client.service_info()  # fails early if the server cannot be used
        if banner := synthetic_banner(info, batch.model):
            console.print(f"[yellow]{banner}[/]", soft_wrap=True)
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
            contextlib.ExitStack() as at_the_end,
        ):
            # Also where Ctrl-C ends it: what is there is shown.
            at_the_end.callback(rows.finish)
            task = progress.add_task("files", total=len(batch.files))
            async for outcome in _outcomes(client, batch):
                rows.write(outcome.rows)
                notes = [f"{shown(outcome.path)}: {text}" for text in outcome.notes]
                for text in [*(text for text in outcome.model_notes if text not in shown_before), *notes]:
                    note(text, console)
                shown_before.update(outcome.model_notes)
                if outcome.problem:
                    problems.append(outcome)
                progress.advance(task)
            progress.stop()
    if problems:
        lines = "\n".join(f"  {shown(outcome.path)}: {outcome.problem}" for outcome in problems)
        raise CommandError(f"{len(problems)} of {len(batch.files)} files failed or are not whole:\n{lines}")


async def _outcomes(client: AsyncClient, batch: _Batch) -> AsyncIterator[_Outcome]:
    """Outcomes in the order of the files, `jobs` of them at work at a time."""
    gate = asyncio.Semaphore(batch.jobs)

    async def one(path: Path) -> _Outcome:
        async with gate:
            return await _analyze_file(client, path, batch)

    async with asyncio.TaskGroup() as group:
        for task in [group.create_task(one(path)) for path in batch.files]:
            yield await task


async def _analyze_file(client: AsyncClient, path: Path, batch: _Batch) -> _Outcome:
    outcome = _Outcome(path)
    try:
        audio = open_audio(path, batch.channel)
        await _stream(client, audio, batch, outcome)
    except AudioFileError as error:
        _fail(outcome, error.problem, error.reason)
    except KibunError as error:
        _fail(outcome, str(error), error.reason, error.message)
    except (CommandError, OSError) as error:
        _fail(outcome, str(error), "FILE_UNREADABLE")
    return outcome


def _fail(outcome: _Outcome, problem: str, reason: str, message: str = "") -> None:
    outcome.problem = problem
    outcome.rows = [row_without(outcome.path, FileStatus("failed", reason, message or problem))]


async def _stream(client: AsyncClient, audio: Audio, batch: _Batch, outcome: _Outcome) -> None:
    """Fills the outcome from one conversation of one turn."""
    finals: list[UtteranceResult] = []
    updates: list[PersonalityUpdate] = []
    conversation = client.conversation()
    async with conversation.turn(
        sample_rate_hz=audio.sample_rate_hz,
        encoding=audio.encoding,
        features=Features(eager_finals=False),  # nobody waits for the end of an utterance
        model=batch.model,
        given_personality=batch.traits.get(audio.path),
    ) as turn:
        turn.feed(audio.chunks(CHUNK_MS))
        async for event in turn:
            match event:
                case UtteranceResult(is_final=True):
                    finals.append(event)
                case PersonalityUpdate():
                    updates.append(event)
                case StreamWarning():
                    notes = outcome.model_notes if event.reason in MODEL_WARNINGS else outcome.notes
                    notes.append(f"{event.reason}: {event.message}")
    await conversation.delete(allow_missing=True)
    status = FileStatus("ok")
    if audio.incomplete:
        outcome.problem = f"{audio.incomplete}; the rest was analysed"
        status = FileStatus("incomplete", "FILE_INCOMPLETE", audio.incomplete)
    elif not finals:
        status = FileStatus("no_speech", "NO_SPEECH", "no utterance was found")
    if text := channel_note(audio):
        outcome.notes.append(text)
    outcome.rows = [
        row_of(audio.path, status, final, updates[index] if index < len(updates) else None, turn.started)
        for index, final in enumerate(finals)
    ] or [row_without(audio.path, status, turn.started)]


@contextlib.contextmanager
def _server(server: str, model: str) -> Iterator[str]:
    if server:
        yield server
        return
    process = ServerProcess(model)
    with Console(stderr=True).status("starting a server, loading the model …"):
        process.start()
    with process:
        yield process.target


@contextlib.contextmanager
def _open_rows(output_format: OutputFormat, path: Path | None) -> Iterator[Rows]:
    with contextlib.ExitStack() as stack:
        file = None
        if path is not None:
            try:
                file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
            except OSError as error:
                raise UsageError(
                    f"cannot write {shown(path)}: {error.strerror}: name a file in a folder that exists"
                ) from None
        match output_format:
            case OutputFormat.TABLE:
                yield TableRows(file)
            case OutputFormat.JSONL:
                yield JsonRows(file)
            case OutputFormat.CSV:
                yield CsvRows(file)
