"""`kibun demo`: the bundled dialogue through a real server in a separate process."""

import asyncio
import webbrowser
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kibun.client.audio_file import AudioFile
from kibun.client.commands.connection import Connection, JsonOption
from kibun.client.commands.report import SYNTHETIC_BANNER, JsonLines, LiveTable, summary_table
from kibun.client.commands.streaming import StreamingOptions, stream_turns
from kibun.client.recordings.turns_file import load_turns
from kibun.client.resources import ConversationState
from kibun.client.server_process import ServerProcess

DIALOGUE = Path(__file__).resolve().parent.parent / "demo" / "dialogue.flac"
MODEL = "demo-tiny"
CONVERSATION = "demo"


def demo(
    realtime: Annotated[bool, typer.Option("--realtime", help="Stream in real time.")] = False,
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
    # Some of the generated voices are no speech to the default detector, which was made for people's.
    server = ServerProcess(MODEL, ["--reflection", "--vad", "webrtc"])
    with console.status("starting the server, loading the model …"):
        server.start()
    with server:
        if in_browser:
            _serve_console(server.target, port)
            return
        asyncio.run(_demo(server.target, StreamingOptions(realtime=realtime), console, as_json))


def _serve_console(target: str, port: int) -> None:
    from kibun.client.commands import bridge  # needs the extra console

    made = bridge.make(Connection(target), port=port, page=True, demo=True)
    address = f"http://{bridge.address(bridge.DEFAULT_HOST, made.port)}/#demo"
    typer.echo(f"kibun demo: {address} plays the dialogue; Ctrl-C stops it")
    webbrowser.open(address)
    asyncio.run(made.run())


async def _demo(target: str, options: StreamingOptions, console: Console, as_json: bool) -> None:
    audio = AudioFile(DIALOGUE)
    length_s = audio.duration_s or 0.0
    turns = load_turns(DIALOGUE.with_suffix(".json"), length_s)
    async with Connection(target).client() as client:
        conversation = client.conversation(CONVERSATION)
        if as_json:
            lines = JsonLines()
            await stream_turns(conversation, audio, turns, options, lines)
            lines.write(await client.get_conversation_proto(CONVERSATION))
            return
        speakers = list(dict.fromkeys(turn.participant_id for turn in turns))
        console.print(
            f"[bold]kibun demo[/]: {len(turns)} turns of {' and '.join(speakers)}, {length_s:.1f} s of audio, "
            f"one stream each, to {MODEL} at {target}"
        )
        with LiveTable(console, SYNTHETIC_BANNER) as table:
            await stream_turns(conversation, audio, turns, options, table)
        state: ConversationState = await conversation.get()
        console.print(summary_table(state))
        console.print(f"[yellow]{SYNTHETIC_BANNER}[/]")
