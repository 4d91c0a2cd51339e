"""`kibun demo`: the bundled dialogue through a real server in a separate process."""

import asyncio
import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kibun.client.audio_file import AudioFile
from kibun.client.commands.connection import Connection, JsonOption
from kibun.client.commands.growth import SYNTHETIC_BANNER, Growth
from kibun.client.commands.report import Display, JsonLines, conclude
from kibun.client.commands.streaming import StreamingOptions, stream_turns
from kibun.client.options import Features
from kibun.client.recordings.turns_file import TurnSpan, load_turns
from kibun.client.server_process import ServerProcess

DIALOGUE = Path(__file__).resolve().parent.parent / "demo" / "dialogue.flac"
MODEL = "demo-tiny"
CONVERSATION = "demo"
# Some of the generated voices are no speech to the default detector, which was made for people's.
SERVER_OPTIONS = ("--vad", "webrtc")


def demo(
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Stream in real time, on a terminal with interims.")
    ] = False,
    as_json: JsonOption = False,
    in_browser: Annotated[
        bool, typer.Option("--console", help="Serve the console, which plays the dialogue in the browser.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of --console; 0: any.")] = 8080,
) -> None:
    """Watch a bundled dialogue being analysed by a real server.

    The server runs in a separate process, on a free port of this machine.

    Its model was trained on generated speech and tells you nothing about real people.
    """
    console = Console(stderr=as_json)
    server = ServerProcess(MODEL, ["--reflection", *SERVER_OPTIONS])
    with console.status("starting the server, loading the model …"):
        server.start()
    with server:
        if in_browser:
            _serve_console(server.target, port)
            return
        asyncio.run(_demo(server.target, realtime, console, as_json))


def _serve_console(target: str, port: int) -> None:
    from kibun.client.commands import bridge  # needs the extra console

    made = bridge.make(Connection(target), port=port, page=True, demo=True)
    address = f"http://{bridge.address(bridge.DEFAULT_HOST, made.port)}/#demo"
    typer.echo(f"kibun demo: {address} plays the dialogue; Ctrl-C stops it")
    # Beside the bridge: some browsers, such as those in the terminal, return only once they are closed.
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    asyncio.run(made.run())


async def _demo(target: str, realtime: bool, console: Console, as_json: bool) -> None:
    if as_json:
        await play(target, StreamingOptions(realtime=realtime), JsonLines())
        return
    turns = _turns()
    speakers = " and ".join(dict.fromkeys(turn.participant_id for turn in turns))
    console.print(f"[bold]kibun demo[/]: {len(turns)} turns of {speakers}, {_audio_s():.1f} s, to {MODEL} at {target}")
    with Display(console, SYNTHETIC_BANNER) as display:
        await play(target, StreamingOptions(realtime=realtime, features=Features(interim_results=True)), display)


async def play(target: str, options: StreamingOptions, sink: Display | Growth | JsonLines) -> None:
    """Streams the dialogue to the server at `target`."""
    async with Connection(target).client() as client:
        conversation = client.conversation(CONVERSATION)
        await stream_turns(conversation, AudioFile(DIALOGUE), _turns(), options, sink)
        await conclude(client, conversation, sink)


def _audio_s() -> float:
    return AudioFile(DIALOGUE).duration_s or 0.0


def _turns() -> list[TurnSpan]:
    return load_turns(DIALOGUE.with_suffix(".json"), _audio_s())
