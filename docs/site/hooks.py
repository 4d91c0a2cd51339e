"""What mkdocs runs while it builds the site: adds the pages that are made of code, and those above `docs`."""

from __future__ import annotations

import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Pages that lie above `docs`, by their name on the site.
ABOVE = {"index.md": ROOT / "README.md"} | {
    name: ROOT / name for name in ("DEPLOYER.md", "CONTRIBUTING.md", "CHANGELOG.md")
}
#: Cards of the models that come with the repository.
ABOVE |= {f"card-{path.parent.name}.md": path for path in ROOT.glob("models/**/bundles/*/MODEL_CARD.md")}
#: What pages are made of: a link to it leads to the page.
MADE_OF = {
    "protocol.md": ROOT / "protos" / "kibun" / "v1" / "speech_analysis.proto",
    "errors.md": DOCS / "site" / "reasons.py",
    "python.md": ROOT / "client" / "kibun" / "client" / "__init__.py",
    "quickstart.md": DOCS / "quickstart.ipynb",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    sys.path.insert(0, str(ROOT))  # mkdocs loads this file alone, from wherever it is started
    try:
        from docs.site import contract, python_api, reasons
    finally:
        sys.path.pop(0)
    made = {"protocol.md": contract.page(), "errors.md": reasons.page(), "python.md": python_api.page()}
    made["quickstart.md"] = notebook(MADE_OF["quickstart.md"])
    made |= {name: path.read_text(encoding="utf-8") for name, path in ABOVE.items()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def notebook(path: Path) -> str:
    """A notebook in markdown, without what its cells print."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text("utf-8"))["cells"]]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in cells)


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Makes links of the repository links of the site. One to what the site does not hold becomes its text.

    Names of files, as the text of a link, become titles of pages.
    """
    here = page.file.src_uri
    if here.startswith("appendix/") or here == "CHANGELOG.md":
        page.meta["search"] = {"boost": 0.5}  # found, but below the pages that say what to do
    elif here in ("faq.md", "errors.md", "dialogue.md"):
        page.meta["search"] = {"boost": 2}
    source = ABOVE.get(here, DOCS / here)

    def link(found: re.Match[str]) -> str:
        image, label, target, anchor = found[1], found[2], found[3], found[4] or ""
        if "://" in target or target.startswith("mailto:"):
            return found[0]
        path = (source.parent / target).resolve()
        names = [name for name, whole in (ABOVE | MADE_OF).items() if whole == path]
        if not names and not path.is_relative_to(DOCS):
            return label
        name = names[0] if names else path.relative_to(DOCS).as_posix()
        if label.endswith((".md", ".ipynb")) and (linked := files.get_file_from_path(name)) and linked.page:
            label = linked.page.title
        return f"{image}[{label}]({posixpath.relpath(name, posixpath.dirname(here) or '.')}{anchor})"

    return _LINK.sub(link, markdown)
