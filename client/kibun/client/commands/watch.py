"""`kibun watch`: a conversation that others speak into, shown as it goes on."""

from typing import Annotated

import typer
from rich.console import Console

from kibun.client.commands.connection import (
    DEFAULT_SERVER,
    CaOption,
    CertOption,
    Connection,
    JsonOption,
    KeyOption,
    ServerOption,
    TlsOption,
    TokenOption,
)
from kibun.client.commands.report import Display, JsonLines, note, synthetic_banner
from kibun.client.commands.streaming import run
from kibun.client.events import WatchEnded, WatchGap, WatchStarted
from kibun.client.resources import ConversationState
from kibun.client.standard_streams import silence_libraries
from kibun.client.watch import AsyncWatch


def watch(
    conversation: Annotated[str, typer.Argument(metavar="ID", help="The conversation's id.")],
    server: ServerOption = DEFAULT_SERVER,
    past: Annotated[bool, typer.Option("--past", help="Show first what the server has stored of it.")] = False,
    as_json: JsonOption = False,
    token: TokenOption = None,
    tls: TlsOption = False,
    ca: CaOption = None,
    cert: CertOption = None,
    key: KeyOption = None,
) -> None:
    """Watch a conversation that others speak into.

    One that nobody has spoken in yet is waited for. Ctrl-C ends the watch; the conversation goes on.

    Exit codes: 0 the conversation was completed or deleted; 1 it failed; 2 called wrongly; 130 Ctrl-C.
    """
    silence_libraries()
    run(_watch(Connection(server, token, tls, ca, cert, key), conversation, past, as_json))


async def _watch(connection: Connection, conversation_id: str, past: bool, as_json: bool) -> None:
    async with connection.client() as client, client.conversation(conversation_id).watch(include_past=past) as watching:
        if as_json:
            await _print_lines(watching)
        else:
            await _show(watching, conversation_id, synthetic_banner(await client.service_info(), ""))


async def _print_lines(watching: AsyncWatch) -> None:
    lines = JsonLines()
    async for watched in watching:
        if watched.response is not None:
            lines.write(watched.response)


async def _show(watching: AsyncWatch, conversation_id: str, banner: str) -> None:
    console = Console()
    with Display(console, banner) as display:
        async for watched in watching:
            match watched.event:
                case WatchStarted(conversation=known, reconnects=reconnects):
                    if reconnects:
                        note("the connection was lost, and is there again: interims meanwhile are missing")
                    elif known is None:
                        note(f"nobody has spoken in {conversation_id} yet: waiting (Ctrl-C ends)")
                    if known is not None:
                        display.know(known, concluded=False)
                case WatchGap():
                    note(f"{watched.event.reason}: {watched.event.message}")
                case WatchEnded(conversation=None):
                    note(f"{conversation_id} was deleted")
                case WatchEnded(conversation=ConversationState() as conversation):
                    display.know(conversation)
                case _:
                    display.on_event(watched.event, watched.participant_id)
