"""`kibun train prepare …`: a manifest made from a corpus on disk. Heavy imports happen inside the commands."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kibun.training.corpora.public_corpora import PUBLIC, PublicCorpus
from kibun.training.errors import fail

if TYPE_CHECKING:
    from kibun.training.corpora.report import CorpusReport, Progress

prepare_app = typer.Typer(
    help="Make a manifest of a corpus: checked, counted, ready to train on.", no_args_is_help=True
)

Out = Annotated[Path, typer.Option(help="The manifest to write; its report lies beside it, as NAME.report.json.")]
Decode = Annotated[bool, typer.Option("--decode", help="Read all audio in full, not only headers; slower.")]
SplitSpeakers = Annotated[
    str | None,
    typer.Option(
        metavar="TRAIN,DEV,TEST", help="Split at random by speaker, with these shares of utterances: .8,.1,.1"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random split.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report, or all problems, as JSON.")]


@prepare_app.command()
def iemocap(
    iemocap: Annotated[Path, typer.Option(help="The copy of IEMOCAP: the folder that holds Session1 to Session5.")],
    tipi: Annotated[Path, typer.Option(help="PA-IEMOCAP's tipi_labels.csv: ten items from six raters.")],
    ocean: Annotated[Path, typer.Option(help="PA-IEMOCAP's ocean.csv: the published traits.")],
    out: Out,
    session: Annotated[list[int] | None, typer.Option(help="Take only this session; may be repeated.")] = None,
    decode: Decode = False,
    as_json: JsonOption = False,
) -> None:
    """IEMOCAP with the traits of PA-IEMOCAP: 10,039 utterances, 151 dialogues, 302 profiles."""
    from kibun.training.corpora.iemocap import prepare_iemocap

    with _watched("reading IEMOCAP", as_json) as progress:
        report = prepare_iemocap(iemocap, tipi, ocean, out, session, decode, progress)
    _show(report, as_json)


@prepare_app.command()
def folder(
    table: Annotated[Path, typer.Option(help=".csv, .tsv or .jsonl; audio paths are relative to its folder.")],
    out: Out,
    emotion_scale: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Scale of valence and arousal, if not 1,5.")
    ] = None,
    trait_scale: Annotated[
        str | None, typer.Option(metavar="LOW,HIGH", help="Scale of the traits, if not 1,7.")
    ] = None,
    split_speakers: SplitSpeakers = None,
    seed: Seed = 0,
    decode: Decode = False,
    as_json: JsonOption = False,
) -> None:
    """Your own corpus: a table with the columns path, speaker, dialogue.

    Known besides: id, text, valence, arousal, gender, split, emotion, corpus, license, and the traits
    openness … neuroticism, or OP CO EX AG NE.
    Within a dialogue, lines come in the order in which they were spoken.
    """
    from kibun.training.corpora.folder import FolderOptions, prepare_folder

    with _watched("reading the corpus", as_json) as progress:
        options = FolderOptions(
            _numbers("--emotion-scale", emotion_scale, "LOW,HIGH"),
            _numbers("--trait-scale", trait_scale, "LOW,HIGH"),
            _numbers("--split-speakers", split_speakers, "TRAIN,DEV,TEST"),
            seed,
            decode,
        )
        report = prepare_folder(table, out, options, progress)
    _show(report, as_json)


def _add_public(corpus: PublicCorpus) -> None:
    """The command that prepares one public corpus."""

    @prepare_app.command(
        corpus.name,
        help=f"{corpus.title}, licence {corpus.license}: files like {corpus.example}, from {corpus.homepage}.",
    )
    def public(
        root: Annotated[Path, typer.Option(help="The folder with a copy of the corpus, at any depth.")],
        out: Out = Path(f"{corpus.name}.jsonl"),
        dev: Annotated[
            list[str] | None, typer.Option(help="A speaker of the split dev; may be repeated. Others are in train.")
        ] = None,
        test: Annotated[list[str] | None, typer.Option(help="A speaker of the split test; may be repeated.")] = None,
        split_speakers: SplitSpeakers = None,
        seed: Seed = 0,
        decode: Decode = False,
        skip_unusable: Annotated[
            bool, typer.Option("--skip-unusable", help="Leave out recordings that cannot be used, such as stereo ones.")
        ] = False,
        as_json: JsonOption = False,
    ) -> None:
        from kibun.training.corpora.public import PublicOptions, prepare_public

        with _watched(f"reading {corpus.title}", as_json) as progress:
            shares = _numbers("--split-speakers", split_speakers, "TRAIN,DEV,TEST")
            options = PublicOptions(tuple(dev or ()), tuple(test or ()), shares, seed, decode, skip_unusable)
            report = prepare_public(corpus, root, out, options, progress)
        _show(report, as_json)


for _corpus in PUBLIC.values():
    _add_public(_corpus)


def _numbers(option: str, value: str | None, names: str) -> Any:
    """As many numbers as there are names, separated by commas; None for an option that was not given."""
    if value is None:
        return None
    try:
        numbers = tuple(float(part) for part in value.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != len(names.split(",")):
        raise ValueError(f"{option} must be {names} as numbers, is {value!r}")
    return numbers


@contextlib.contextmanager
def _watched(what: str, as_json: bool) -> "Iterator[Progress]":
    """Show a progress bar on stderr; problems with the corpus end the command, which lists all of them."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    from kibun.training.errors import CorpusError

    try:
        with Bar(console=Console(stderr=True), disable=as_json, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    except CorpusError as error:
        if as_json:
            typer.echo(json.dumps({"problems": error.problems}))
        fail(str(error))
    except (ValueError, OSError) as error:
        fail(str(error))


def _show(report: "CorpusReport", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report)))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "utterances", "dialogues", "profiles", title=f"{report.corpus}: {report.manifest}")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, group in report.groups.items():
        table.add_row(name, *(f"{group[field]:,}" for field in ("utterances", "dialogues", "conversations")))
    table.add_section()
    table.add_row("all", f"{report.utterances:,}", f"{report.dialogues:,}", f"{report.conversations:,}")
    console = Console()
    console.print(table)
    speech = f"{report.hours:.2f} h of {report.speakers} speakers, utterances of {report.shortest_s:.2f}"
    console.print(f"{speech} to {report.longest_s:.2f} s", highlight=False)
    labels = ", ".join(f"{name} {number:,}" for name, number in report.labelled.items())
    console.print(f"utterances with {labels}", highlight=False)
    for name, value in report.found.items():
        text = ", ".join(f"{key} {number:,}" for key, number in value.items()) if isinstance(value, dict) else value
        console.print(f"{name.replace('_', ' ')}: {text}", highlight=False)
    if report.ignored:
        first = f"{len(report.ignored)} files ignored, such as {report.ignored[0]}"
        console.print(first, highlight=False, markup=False, soft_wrap=True)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
