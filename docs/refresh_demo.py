"""After a new demo-tiny or dialogue: the demo's expected output, its text in the README and its picture, made anew.

    python docs/refresh_demo.py

Look at what changed before you commit it: the tests hold the demo to these files from then on.
"""

import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "client" / "kibun" / "client" / "demo" / "expected.jsonl"
COLUMNS = 110


def demo(*options: str, **environment: str) -> str:
    command = [sys.executable, "-m", "kibun.client.main", "demo", *options]
    done = subprocess.run(
        command, env={**os.environ, "COLUMNS": str(COLUMNS), **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout


def main() -> None:
    EXPECTED.write_text(demo("--json"))
    coloured = re.sub(
        r" at (\x1b\[[\d;]*m)*127\.0\.0\.1(\x1b\[[\d;]*m|:|\d)*", "", demo(FORCE_COLOR="1", TTY_INTERACTIVE="0")
    )
    text = Text.from_ansi(coloured)
    recorder = Console(record=True, width=max(map(len, text.plain.splitlines())) + 1, file=StringIO())
    recorder.print(text)
    picture = recorder.export_svg(title="kibun demo")
    # The reader's own monospace: a picture in a README should ask no other site for a font.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL).replace(
        "Fira Code", "DejaVu Sans Mono, Menlo"
    )
    (ROOT / "docs" / "demo.svg").write_text(picture)
    plain = "\n".join(line.rstrip() for line in text.plain.strip().splitlines())
    readme = ROOT / "README.md"
    block = f"<!-- demo -->\n```\n{plain}\n```\n<!-- /demo -->"
    new, count = re.subn(r"<!-- demo -->.*?<!-- /demo -->", lambda _: block, readme.read_text(), flags=re.DOTALL)
    if count != 1:
        sys.exit("README.md has no place for the demo's output, <!-- demo --> … <!-- /demo -->")
    readme.write_text(new)


if __name__ == "__main__":
    main()
