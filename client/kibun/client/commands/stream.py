"""`kibun stream`: audio files, standard input or a microphone to a server, results as they arrive."""

import asyncio
import contextlib
import math
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kibun.client.audio_file import AudioFile
from kibun.client.commands.connection import (
    DEFAULT_SERVER,
    CaOption,
    CertOption,
    Connection,
    JsonOption,
    KeyOption,
    ModelOption,
    ServerOption,
    TlsOption,
    TokenOption,
)
from kibun.client.commands.failure import CommandError, UsageError
from kibun.client.commands.mic import Microphone
from kibun.client.commands.pipe import STANDARD_INPUT, RawSamples, is_pipe
from kibun.client.commands.report import Display, JsonLines, conclude, note, synthetic_banner
from kibun.client.commands.streaming import (
    INTERRUPTED,
    Audio,
    Interruption,
    StreamingOptions,
    open_audio,
    run,
    stream_turns,
)
from kibun.client.errors import AudioFileError
from kibun.client.estimates import Traits
from kibun.client.options import Encoding, Features
from kibun.client.pcm import CHUNK_MS
from kibun.client.recordings.analysis import channel_note
from kibun.client.recordings.traits_file import SUFFIXES, load_traits, parse_traits
from kibun.client.recordings.turns_file import TurnSpan, load_turns
from kibun.client.standard_streams import silence_libraries


def stream(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE|-|mic[:ID]", help="Audio files, standard input, or a microphone.")
    ],
    server: ServerOption = DEFAULT_SERVER,
    turns: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who speaks when, in one FILE: json, rttm, csv, TextGrid.")
    ] = None,
    conversation: Annotated[str, typer.Option(help="Conversation to continue; default: a new one.")] = "",
    participant: Annotated[str, typer.Option(help="Participant id, unless --turns gives it.")] = "user",
    realtime: Annotated[bool, typer.Option("--realtime", help="Stream in real time.")] = False,
    chunk_ms: Annotated[int, typer.Option(min=10, max=2000, help="Audio per message.")] = CHUNK_MS,
    channel: Annotated[int | None, typer.Option(min=1, help="Channel to send; default: the mean of all.")] = None,
    rate: Annotated[
        int | None, typer.Option("--rate", min=1, metavar="HZ", help="For raw samples on standard input: their rate.")
    ] = None,
    encoding: Annotated[
        Encoding | None, typer.Option("--encoding", help="For raw samples: their kind; default: linear16.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", min=1, max=64, help="For raw samples: interleaved; default: 1.")
    ] = None,
    interim: Annotated[bool, typer.Option("--interim", help="Estimates while an utterance is spoken.")] = False,
    eager: Annotated[
        bool | None,
        typer.Option(
            "--eager/--no-eager",
            help="Analyse in the silence that may end an utterance: same finals, sooner. Default: unless files are "
            "sent faster than real time.",
        ),
    ] = None,
    model: ModelOption = "",
    traits: Annotated[
        str,
        typer.Option(
            metavar="O,C,E,A,N|FILE",
            help="Known traits, 1..7: of --participant, or a .csv/.jsonl file with a row per participant.",
        ),
    ] = "",
    as_json: JsonOption = False,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
) -> None:
    """Stream audio files, standard input or a microphone to a server.

    Without --turns, each FILE is one turn of --participant.

    With --turns, one FILE holds a dialogue, sent as one stream per turn.

    - is WAV (or another format) from a pipe, or raw samples with --rate. Ctrl-C ends the turn, and shows its results.

    Exit codes: 0 done; 1 it failed, or a file was not whole; 2 called wrongly, or nothing to read; 130 Ctrl-C before
    the end.
    """
    silence_libraries()
    connection = Connection(server, token, tls, ca, cert, key)
    known = _traits(traits, participant, dialogue=turns is not None)
    microphone = any(source == "mic" or source.startswith("mic:") for source in sources)
    if eager is None:
        eager = realtime or microphone or any(is_pipe(Path(source)) for source in sources)
    features = Features(interim_results=interim, eager_finals=eager)
    options = StreamingOptions(chunk_ms, realtime, features, model, known)
    speaker = _Speaker(conversation, participant)
    console = Console(stderr=True) if as_json else Console()
    raw = _raw(rate, encoding, channels)
    if raw is not None and sources != ["-"]:
        raise UsageError("--rate, --encoding and --channels describe raw samples on standard input: name - as source")
    if microphone:
        if len(sources) > 1 or turns is not None or realtime:
            raise UsageError("mic cannot be combined with files, --turns or --realtime")
        device = sources[0].removeprefix("mic").removeprefix(":")
        work = _from_microphone(connection, device, speaker, options, console, as_json)
    else:
        paths = [Path(source) for source in sources]
        if paths.count(STANDARD_INPUT) > 1:
            raise UsageError("standard input can be read once only: name - once")
        if any(is_pipe(path) for path in paths) and (turns is not None or realtime):
            raise UsageError(
                "--turns and --realtime need a file, not a pipe: write it to one first, or let the pipe set the pace "
                "(`ffmpeg -re …`)"
            )
        jobs = _jobs(paths, turns, participant, channel, raw)
        _note_unmatched(known, jobs)
        work = _from_files(connection, jobs, speaker, options, console, as_json)
    run(work)


def _raw(rate_hz: int | None, encoding: Encoding | None, channels: int | None) -> RawSamples | None:
    if rate_hz is None:
        if encoding is not None or channels is not None:
            raise UsageError("--encoding and --channels describe raw samples, which need --rate HZ as well")
        return None
    return RawSamples(rate_hz, encoding or "linear16", channels or 1)


def _traits(text: str, participant_id: str, *, dialogue: bool) -> dict[str, Traits]:
    """Known traits by participant."""
    if not text:
        return {}
    if text.lower().endswith(SUFFIXES):
        return load_traits(Path(text), ("participant", "speaker"))
    if dialogue:
        raise UsageError("--turns names several participants: give --traits a .csv or .jsonl file with a row for each")
    return {participant_id: parse_traits(text)}


def _note_unmatched(traits: Mapping[str, Traits], jobs: list[tuple[Audio, list[TurnSpan]]]) -> None:
    """Warns of names that do not match, as a misspelt one would otherwise go unnoticed."""
    speakers = list(dict.fromkeys(turn.participant_id for _, turns in jobs for turn in turns))
    if not traits:
        return
    if without := [speaker for speaker in speakers if speaker not in traits]:
        note(f"--traits has none for {', '.join(without)}")
    if unused := [name for name in traits if name not in speakers]:
        note(f"--traits names {', '.join(unused)}, who does not speak here")


@dataclass(frozen=True)
class _Speaker:
    conversation_id: str
    participant_id: str


def _jobs(
    paths: list[Path], turns: Path | None, participant_id: str, channel: int | None, raw: RawSamples | None
) -> list[tuple[Audio, list[TurnSpan]]]:
    """Each recording with its turns; everything that can be checked before the first byte is sent is checked here."""
    files = [open_audio(path, channel, raw) for path in paths]
    if turns is not None:
        if len(files) != 1:
            raise UsageError("--turns describes one recording: name exactly one FILE")
        return [(files[0], load_turns(turns, _duration_s(files[0])))]
    # Ids are the server's: a conversation that is continued may know "turn-1" already.
    return [(file, [TurnSpan("", participant_id, 0.0, math.inf)]) for file in files]


def _duration_s(audio: Audio) -> float:
    if isinstance(audio, AudioFile) and audio.duration_s is not None:
        return audio.duration_s
    raise UsageError(f"--turns needs to know how long {audio.name} is, and its header does not say: convert it")


async def _from_files(
    connection: Connection,
    jobs: list[tuple[Audio, list[TurnSpan]]],
    speaker: _Speaker,
    options: StreamingOptions,
    console: Console,
    as_json: bool,
) -> None:
    interruption = Interruption()
    problems: list[str] = []
    async with connection.client() as client:
        info = await client.service_info()  # fails early if the server cannot be used
        conversation = client.conversation(speaker.conversation_id or None)
        with _sink(console, synthetic_banner(info, options.model), as_json) as sink, interruption.watch():
            for file, turns in jobs:
                try:
                    await stream_turns(conversation, file, turns, options, sink, interruption)
                except AudioFileError as error:  # found while it was read
                    raise CommandError(str(error)) from error
                if text := channel_note(file):
                    note(f"{file.name}: {text}")
                if file.incomplete:
                    problems.append(f"{file.name} {file.incomplete}; the rest was analysed")
            await conclude(client, conversation, sink)
    live = all(is_pipe(file.path) for file, _ in jobs)
    if interruption.happened and not live:  # what arrives live is ended in no other way
        raise SystemExit(INTERRUPTED)
    if problems:
        raise CommandError("\n".join(problems))


async def _from_microphone(
    connection: Connection,
    device: str,
    speaker: _Speaker,
    options: StreamingOptions,
    console: Console,
    as_json: bool,
) -> None:
    microphone = Microphone(device, options.chunk_ms)
    async with connection.client() as client:
        info = await client.service_info()
        conversation = client.conversation(speaker.conversation_id or None)
        turn = conversation.turn(
            None,
            speaker.participant_id,
            sample_rate_hz=microphone.sample_rate_hz,
            features=options.features,
            model=options.model,
            given_personality=options.traits.get(speaker.participant_id),
        )
        console.print(
            f"listening to {microphone.name} ({microphone.sample_rate_hz} Hz): Ctrl-C ends the turn", markup=False
        )
        with _sink(console, synthetic_banner(info, options.model), as_json) as sink:
            async with microphone, turn:
                with contextlib.suppress(NotImplementedError):  # no signal handlers on this platform: Ctrl-C aborts
                    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, microphone.stop)
                turn.feed(microphone.chunks())
                async for event in turn:
                    sink.on_event(event, speaker.participant_id)
            await conclude(client, conversation, sink)
        if microphone.dropped_chunks:
            note(f"{microphone.dropped_chunks} chunks of {options.chunk_ms} ms were dropped: the network was too slow")


@contextlib.contextmanager
def _sink(console: Console, banner: str, as_json: bool) -> Iterator[Display | JsonLines]:
    if as_json:
        yield JsonLines()
        return
    with Display(console, banner) as display:
        yield display
