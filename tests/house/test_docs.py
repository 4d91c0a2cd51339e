"""What the documentation points to is there: links, files, modules."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.programs import of_the_documentation

DOCS = sorted(path for path in ROOT.rglob("*.md") if not {".venv", ".git"} & set(path.relative_to(ROOT).parts))
ARCHITECTURE = ROOT / "docs" / "architecture.md"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_documents_to_check() -> None:
    assert {"README.md", "docs/architecture.md", "docs/performance.md"} <= set(map(name, DOCS))


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCS, ids=name)
def test_modules_exist(path: Path) -> None:
    """`kibun.a.b`, or a name in such a module."""
    dotted = set(re.findall(r"`(kibun(?:\.\w+)+)", path.read_text(encoding="utf-8")))
    dotted = {name for name in dotted if not name.startswith("kibun.v1.")}  # names of the contract, not of Python
    assert not [name for name in dotted if not exists(name)]


# Programs that a reader copies, and what runs them.
RUN_BY = {
    "README.md": "house/test_readme.py",
    "docs/corpora.md": "training/corpora/test_iemocap.py",
    "docs/dialogue.md": "house/test_site.py",
    "docs/files.md": "client/test_users_program.py",
    "docs/research.md": "house/test_site.py",
    "docs/robot.md": "house/test_site.py",
    "docs/sdk.md": "client/test_users_program.py",
    "docs/training.md": "models/test_hub.py",
    "examples/android_agent.py": "client/test_android_agent.py",
    "examples/reflection_client.py": "contract/test_other_languages.py",
}


def test_every_program_that_a_reader_copies_is_run_by_a_test() -> None:
    pages = {name(path) for path in DOCS if of_the_documentation(name(path))}
    assert pages | {name(path) for path in (ROOT / "examples").glob("*.py")} == RUN_BY.keys()
    for page, test in RUN_BY.items():
        named = page if page.endswith(".md") else Path(page).stem
        assert named in (ROOT / "tests" / test).read_text(encoding="utf-8"), f"{test} does not run {page}"


def exists(dotted: str) -> bool:
    """Whether there is a module of this name, or one above it in whose source the rest stands."""
    parts = dotted.split(".")
    for n in range(len(parts), 1, -1):
        try:
            spec = find_spec(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        if spec is not None:
            source = Path(spec.origin).read_text() if spec.origin else ""
            return all(re.search(rf"\b{part}\b", source) for part in parts[n:])
    return False


def test_the_walk_names_files_and_functions_that_exist() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    walk = text[text.index("## One chunk") : text.index("## Glossary")]
    server = ROOT / "server" / "kibun" / "server"
    files = [path for path in re.findall(r"`([\w/]+\.py)`", walk) if not list(server.rglob(path))]
    assert not files
    sources = [path.read_text() for path in server.rglob("*.py")]
    contract = (ROOT / "protos" / "kibun" / "v1" / "speech_analysis.proto").read_text()
    named = re.findall(r"`(?:([A-Z]\w+)\.)?([a-z_]+)`", walk)
    assert len(named) > 10
    for owner, name in named:
        defined = rf"class {owner}\b.*?def {name}\(" if owner else rf"def {name}\("
        found = any(re.search(defined, source, re.DOTALL) for source in sources)
        assert found or re.search(rf"\b{name} = \d", contract), f"{owner}.{name}: no such function, no such field"
