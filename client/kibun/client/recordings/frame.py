"""`analyze_files`: recordings into a DataFrame, from Python."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from kibun.client.checks import check_value
from kibun.client.client import AsyncClient, ClientOptions
from kibun.client.errors import ErrorDetails, InputError, InvalidRequestError
from kibun.client.estimates import Traits
from kibun.client.recordings.analysis import AnalysisOptions, Speakers, analyze, identity
from kibun.client.recordings.audio_files import find_audio
from kibun.client.recordings.formats import frame_of, need
from kibun.client.recordings.kept import KeptResults, default_folder
from kibun.client.recordings.rows import COLUMNS, FileResult
from kibun.client.recordings.traits_file import match_files
from kibun.client.recordings.turns_file import find_turns
from kibun.client.server_process import ServerProcess

if TYPE_CHECKING:
    import pandas

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True)
class AnalysisProgress:
    """How far `analyze_files` is."""

    # Files that are done, of how many.
    done: int
    total: int
    # The file that was done last, and its status as in the column of that name.
    file: Path
    status: str
    # An earlier run had analysed it.
    kept: bool


def analyze_files(
    paths: AnyPath | Iterable[AnyPath],
    *,
    model: str = "",
    server: str = "",
    channel: int | None = None,
    speakers: str = "one",
    turns: AnyPath | None = None,
    traits: Mapping[str, Traits] | None = None,
    jobs: int = 4,
    resume: bool = False,
    on_progress: Callable[[AnalysisProgress], object] | None = None,
    **client_options: Unpack[ClientOptions],
) -> "pandas.DataFrame":
    """Analyses recordings; folders are searched. Returns a row per utterance, and one for each file without any.

    The index is audformat's segmented one: file (string), start and end (timedelta64[ns]); a file without utterances
    has a row from 0 to NaT. The columns are those of `kibun analyze -f csv`: emotion 1..5, traits 1..7, seconds.

    model: a bundle (folder or name), for which a server is started; with `server` ("host:port"), the name of one of its
    models. speakers: "one", or "channels" for one in each. turns: who speaks when, a file or a folder with one per
    recording (JSON, RTTM, CSV, TextGrid). traits: known ones, by file name, folder or participant. jobs: files at a
    time. resume: take what an earlier call with the same options has analysed, as `--resume` does; what an interrupted
    call has analysed is kept for that. on_progress: called after each file, in the order of the files. Further options
    as of `AsyncClient`.

    May be called where an event loop runs, as in a notebook; it blocks it. Raises InputError for paths and options,
    KibunError where the server cannot be used, ServerStartError where none starts. A file that fails raises nothing:
    its row has the reason.
    """
    need("analyze_files", "pandas", "soundfile")
    for name, value, kind in (
        *(("model", model, str), ("server", server, str), ("channel", channel, int | None)),
        *(("jobs", jobs, int), ("resume", resume, bool)),
    ):
        check_value(name, value, kind)
    if not model and not server:
        raise _wrong("model", 'analyze_files needs model=, to load, or the server="host:port" of one that runs')
    if speakers not in tuple(Speakers):
        raise _wrong("speakers", f"speakers must be 'one' or 'channels', not {speakers!r}")
    if jobs < 1:
        raise _wrong("jobs", f"jobs must be 1 or more, not {jobs}")
    if turns is not None and speakers != Speakers.ONE:
        raise _wrong("turns", "turns say who speaks: leave out speakers='channels'")
    if channel is not None and speakers != Speakers.ONE:
        raise _wrong("channel", "speakers='channels' takes all channels: leave out channel")
    named = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = find_audio([Path(path) for path in named]).files
    options = AnalysisOptions(
        model=model if server else "",
        channel=channel,
        speakers=Speakers(speakers),
        turns=None if turns is None else find_turns(Path(turns), files),
        traits=match_files(files, traits or {}),
        traits_of_participant=traits or {},
        jobs=jobs,
    )
    results: list[FileResult] = []

    def on_result(result: FileResult) -> None:
        results.append(result)
        if on_progress is not None:
            on_progress(AnalysisProgress(len(results), len(files), result.path, result.status.status, result.kept))

    async def work(target: str) -> None:
        async with AsyncClient(target, **client_options) as client:
            who = identity(await client.service_info(), options.model)
            kept = KeptResults(default_folder(), who, reuse=resume)
            await analyze(client, files, options, kept, on_result)
            if not resume and not any(result.problem for result in results):
                kept.forget()

    with _server(server, model) as target:
        _run(work, target)
    return segmented(results)


def segmented(results: Iterable[FileResult]) -> "pandas.DataFrame":
    """Rows of results with audformat's segmented index in place of the columns file, start_s and end_s."""
    import pandas

    rows = [row for result in results for row in result.rows]
    whole = frame_of(rows, COLUMNS)
    starts, ends = (
        pandas.to_timedelta(whole.pop(name), unit="s").astype("timedelta64[ns]") for name in ("start_s", "end_s")
    )
    levels = [whole.pop("file").astype("string"), starts.fillna(pandas.Timedelta(0)), ends]
    whole.index = pandas.MultiIndex.from_arrays(levels, names=["file", "start", "end"])
    return whole


@contextlib.contextmanager
def _server(server: str, model: str) -> Iterator[str]:
    if server:
        yield server
        return
    with ServerProcess(model) as process:
        yield process.target


def _run(work: Callable[[str], Any], target: str) -> None:
    """Runs `work`, in a thread of its own where an event loop runs in this one; Ctrl-C ends it either way."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work(target))
        return
    failures: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[None]]] = []

    async def watched() -> None:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        await work(target)

    def run() -> None:
        try:
            asyncio.run(watched())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="kibun-analyze-files")
    thread.start()
    try:
        thread.join()
    except BaseException:
        for loop, task in running:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if failures:
        raise failures[0]


def _wrong(name: str, message: str) -> InvalidRequestError:
    return InputError(message, ErrorDetails(reason="INVALID_OPTION", fields={name: message}))
