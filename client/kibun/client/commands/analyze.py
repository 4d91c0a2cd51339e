"""`kibun analyze`: files and folders into tables, annotations and figures, a row per utterance, speaker or file."""

import contextlib
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kibun.client.audio_file import shown
from kibun.client.commands.connection import CaOption, CertOption, Connection, KeyOption, TlsOption, TokenOption
from kibun.client.commands.failure import CommandError, UsageError
from kibun.client.commands.report import note, synthetic_banner
from kibun.client.commands.streaming import open_audio, run
from kibun.client.commands.table import Tables
from kibun.client.errors import InputError
from kibun.client.recordings.analysis import AnalysisOptions, RecordedAudio, Speakers, identity
from kibun.client.recordings.analysis import analyze as analyze_all
from kibun.client.recordings.annotations import FilePerRecording, LabelStudioTasks, RttmRows
from kibun.client.recordings.audio_files import find_audio
from kibun.client.recordings.formats import CsvRows, JsonRows, ParquetRows, ResultOutput, need
from kibun.client.recordings.kept import KeptResults, default_folder
from kibun.client.recordings.plot import Plots
from kibun.client.recordings.rows import FileResult, RowsBy
from kibun.client.recordings.traits_file import load_traits, match_files
from kibun.client.recordings.turns_file import find_turns
from kibun.client.server_process import ServerProcess
from kibun.client.standard_streams import silence_libraries


class OutputFormat(enum.StrEnum):
    """What rows are written as."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"
    TEXTGRID = "textgrid"
    EAF = "eaf"
    RTTM = "rttm"
    LABELSTUDIO = "labelstudio"


# Which have no rows of speakers or files, and which are a file per recording.
_ANNOTATIONS = (OutputFormat.TEXTGRID, OutputFormat.EAF, OutputFormat.RTTM, OutputFormat.LABELSTUDIO)
_SUFFIXES = {OutputFormat.TEXTGRID: ".TextGrid", OutputFormat.EAF: ".eaf"}


def analyze(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Audio files; folders are searched; - is standard input.")
    ],
    output_format: Annotated[OutputFormat, typer.Option("-f", "--format", help="Form of the output.")] = (
        OutputFormat.TABLE
    ),
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write; for textgrid and eaf a folder. Default: the terminal."),
    ] = None,
    by: Annotated[RowsBy, typer.Option("--by", help="What has a row.")] = RowsBy.UTTERANCE,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw each recording over time: .png, .svg or .pdf."),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", envvar="KIBUN_MODEL", help="Bundle (folder or name) to load, or a model of --server."),
    ] = "",
    server: Annotated[
        str,
        typer.Option("--server", "-s", envvar="KIBUN_SERVER", metavar="HOST:PORT", help="Default: start one."),
    ] = "",
    channel: Annotated[int | None, typer.Option(min=1, help="Channel to use; default: the mean of all.")] = None,
    speakers: Annotated[
        Speakers, typer.Option("--speakers", help="One in a recording, or one in each of its channels.")
    ] = Speakers.ONE,
    turns: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Who speaks when: rttm, TextGrid, csv or json for all, or one per recording."
        ),
    ] = None,
    traits: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Known traits, 1..7: .csv or .jsonl with a row per file (its name) or speaker (its folder, or as in "
            "--turns).",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take what earlier runs have analysed; keep what this one does.")
    ] = False,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, max=64, help="Files at a time.")] = 4,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
) -> None:
    """Analyse files and folders into tables, annotations and figures.

    Each file is a separate conversation, with one speaker unless --speakers or --turns says otherwise. One without
    speech, or that fails, has a row that says so, and the others go on.

    Exit codes: 0 all files were analysed; 1 one failed or was not whole; 2 called wrongly, or nothing to analyse; 130
    Ctrl-C: what was done by then is written, and --resume goes on from there.
    """
    silence_libraries()
    found = find_audio(paths)
    files = found.files
    if not server and not model:
        raise UsageError(
            "analyze needs a model: --model DIR for a bundle, --model demo-tiny to try the software (synthetic, tells "
            "you nothing about real people), or --server HOST:PORT of a server that runs"
        )
    if speakers is Speakers.CHANNELS and (turns is not None or channel is not None):
        raise UsageError(
            f"--speakers channels takes each channel for a speaker: leave out {'--turns' if turns else '--channel'}"
        )
    if output_format in _ANNOTATIONS and by is not RowsBy.UTTERANCE:
        raise UsageError(f"--by {by} has rows for -f table, jsonl, csv, tsv or parquet, not for -f {output_format}")
    for line in found.remarks():
        note(line)
    options = AnalysisOptions(
        model=model if server else "",
        channel=channel,
        speakers=speakers,
        turns=None if turns is None else find_turns(turns, files),
        jobs=jobs,
        open=_open,
    )
    options = _with_traits(options, traits, files)
    with _open_output(output_format, output, by, plot, files) as written, _server(server, model) as target:
        batch = _Batch(files, options, written, resume)
        connection = Connection(server, token, tls, ca, cert, key) if server else Connection(target)
        run(_analyze(connection, batch))


def _open(path: Path, channel: int | None) -> RecordedAudio:
    try:
        return open_audio(path, channel)
    except CommandError as error:  # of a pipe
        raise InputError(str(error)) from error


def _with_traits(options: AnalysisOptions, path: Path | None, files: list[Path]) -> AnalysisOptions:
    """Known traits; warns of rows that match no file, as a misspelt name would otherwise go unnoticed."""
    if path is None:
        return options
    traits = load_traits(path, ("file", "path", "speaker", "participant"))
    several = options.turns is not None or options.speakers is Speakers.CHANNELS
    if several:
        if options.turns is not None:
            speakers = {turn.participant_id for turns in options.turns.values() for turn in turns}
            if not speakers & traits.keys():
                raise UsageError(f"{shown(path)}: none of its {len(traits)} rows is about a speaker of --turns")
        return replace(options, traits_of_participant=traits)
    matched = match_files(files, traits)
    if not matched:
        raise UsageError(
            f"{shown(path)}: none of its {len(traits)} rows is about one of the {len(files)} files: its column file "
            "has to hold their names, or its column speaker the names of their folders"
        )
    if without := [shown(file) for file in files if file not in matched]:
        note(f"{shown(path)} has no traits for {len(without)} of {len(files)} files, {without[0]} first")
    return replace(options, traits=matched)


@dataclass
class _Batch:
    """One run: what is to be analysed, where it goes, and what has become of it so far."""

    files: list[Path]
    options: AnalysisOptions
    output: list[ResultOutput]
    resume: bool
    done: list[FileResult] = field(default_factory=list)

    @property
    def problems(self) -> list[FileResult]:
        return [result for result in self.done if result.problem]


async def _analyze(connection: Connection, batch: _Batch) -> None:
    console = Console(stderr=True)
    told: set[str] = set()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    async with connection.client() as client:
        info = await client.service_info()  # fails early if the server cannot be used
        if banner := synthetic_banner(info, batch.options.model):
            console.print(f"[yellow]{banner}[/]", soft_wrap=True)
        kept = KeptResults(default_folder(), identity(info, batch.options.model), reuse=batch.resume)
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
            contextlib.ExitStack() as at_the_end,
        ):
            # Also where Ctrl-C ends it: what is there is shown.
            for output in batch.output:
                at_the_end.callback(output.finish)
            task = progress.add_task("files", total=len(batch.files))

            def on_result(result: FileResult) -> None:
                batch.done.append(result)
                for output in batch.output:
                    output.write(result)
                notes = [f"{shown(result.path)}: {text}" for text in result.notes]
                for text in [*(text for text in result.model_notes if text not in told), *notes]:
                    note(text, console)
                told.update(result.model_notes)
                progress.advance(task)

            try:
                await analyze_all(client, batch.files, batch.options, kept, on_result)
            except BaseException:
                progress.stop()
                _tell_how_to_go_on(batch, kept, console)
                raise
            progress.stop()
    _close(batch, kept, console)


def _close(batch: _Batch, kept: KeptResults, console: Console) -> None:
    """Says what failed and what was not done anew."""
    if earlier := sum(result.kept for result in batch.done):
        note(f"{earlier} of {len(batch.files)} files had been analysed before", console)
    if batch.resume and kept.problem:
        note(f"what was analysed could not be kept for --resume: {kept.problem}", console)
    if not batch.problems and not batch.resume:
        kept.forget()
    if problems := batch.problems:
        lines = "\n".join(f"  {shown(result.path)}: {result.problem}" for result in problems)
        raise CommandError(f"{len(problems)} of {len(batch.files)} files failed or are not whole:\n{lines}")


def _tell_how_to_go_on(batch: _Batch, kept: KeptResults, console: Console) -> None:
    """After Ctrl-C, or an error that ended the run."""
    text = f"stopped: {len(batch.done)} of {len(batch.files)} files are done and written"
    if kept.problem:
        text += f"; they cannot be kept for --resume: {kept.problem}"
    elif batch.done:
        text += "; to go on, run the same command with --resume" if not batch.resume else "; run it again to go on"
    note(text, console)


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
def _open_output(
    kind: OutputFormat, path: Path | None, by: RowsBy, plot: Path | None, files: list[Path]
) -> Iterator[list[ResultOutput]]:
    """Where results go. All that is wrong with it is found here, before anything is sent."""
    outputs: list[ResultOutput] = []
    if plot is not None:
        need("--plot", "matplotlib")
        outputs.append(Plots(plot, files))
    if kind in _SUFFIXES:
        need(f"-f {kind}", "pympi")
        if path is None:
            raise UsageError(f"-f {kind} writes a file per recording: name a folder for them with -o FOLDER")
        per_recording = FilePerRecording(path, _SUFFIXES[kind], files)
        yield [per_recording, Tables(None, RowsBy.SPEAKER), *outputs]
        return
    if kind is OutputFormat.PARQUET:
        need("-f parquet", "pandas", "pyarrow")
        if path is None:
            raise UsageError("-f parquet is not for a terminal: name a file with -o FILE")
        if not path.parent.is_dir():
            raise UsageError(f"cannot write {shown(path)}: name a file in a folder that exists")
        yield [ParquetRows(path, by), *outputs]
        return
    with contextlib.ExitStack() as stack:
        file = None
        if path is not None:
            try:
                file = stack.enter_context(path.open("w", encoding="utf-8", newline=""))
            except OSError as error:
                raise UsageError(
                    f"cannot write {shown(path)}: {error.strerror}: name a file in a folder that exists"
                ) from None
        yield [_of_text(kind, file, by), *outputs]


def _of_text(kind: OutputFormat, file: TextIO | None, by: RowsBy) -> ResultOutput:
    match kind:
        case OutputFormat.JSONL:
            return JsonRows(file, by)
        case OutputFormat.CSV:
            return CsvRows(file, by)
        case OutputFormat.TSV:
            return CsvRows(file, by, "\t")
        case OutputFormat.RTTM:
            return RttmRows(file)
        case OutputFormat.LABELSTUDIO:
            return LabelStudioTasks(file)
        case _:
            return Tables(file, by)
