"""After a new demo-tiny or dialogue: the demo's expected output, its text in the README and its picture, made anew.

    python docs/refresh_demo.py

Look at what changed before you commit it: the tests hold the demo to these files from then on.
"""

import asyncio
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from kibun.client.commands.demo import MODEL, SERVER_OPTIONS, play
from kibun.client.commands.growth import SYNTHETIC_BANNER, Growth
from kibun.client.commands.streaming import StreamingOptions
from kibun.client.options import Features
from kibun.client.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "client" / "kibun" / "client" / "demo" / "expected.jsonl"
COLUMNS = 80
# Readable on white and on black pages.
_COLOURS = [
    (22, 27, 34),
    (255, 123, 114),
    (63, 185, 80),
    (227, 179, 65),
    (88, 166, 255),
    (188, 140, 255),
    (86, 212, 221),
]
THEME = TerminalTheme((22, 27, 34), (230, 237, 243), [*_COLOURS, (177, 186, 196)])


def main() -> None:
    command = [sys.executable, "-m", "kibun.client.main", "demo", "--json"]
    EXPECTED.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # At the pace of speech, as interims come at no other.
    growth = Growth(SYNTHETIC_BANNER)
    options = StreamingOptions(realtime=True, features=Features(interim_results=True))
    with ServerProcess(MODEL, SERVER_OPTIONS) as server:
        asyncio.run(play(server.target, options, growth))
    recorder = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="standard")
    recorder.print(growth)
    recorder.print()
    picture = recorder.export_svg(title="kibun demo --realtime", clear=False, theme=THEME)
    # The reader's own monospace: a picture in a README should ask no other site for a font.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL).replace(
        "Fira Code", "DejaVu Sans Mono, Menlo"
    )
    (ROOT / "docs" / "demo.svg").write_text(picture)
    plain = "\n".join(line.rstrip() for line in recorder.export_text().strip().splitlines())
    readme = ROOT / "README.md"
    block = f"<!-- demo -->\n```\n{plain}\n```\n<!-- /demo -->"
    new, count = re.subn(r"<!-- demo -->.*?<!-- /demo -->", lambda _: block, readme.read_text(), flags=re.DOTALL)
    if count != 1:
        sys.exit("README.md has no place for the demo's output, <!-- demo --> … <!-- /demo -->")
    readme.write_text(new)


if __name__ == "__main__":
    main()
