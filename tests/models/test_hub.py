"""Bundles on the hub, against a stand-in of its protocol: pushed, pinned, cached, and one line where it fails."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kibun.models.bundle import BundleError, KibunModel, Utterance, load_bundle, resolve_bundle
from kibun.models.files import BUNDLES, CHECKSUMS, FILES, verify, write_checksums
from kibun.models.hub import fetch
from tests.support.hub import Hub, hub
from tests.support.programs import of_the_documentation

DEMO = BUNDLES / "demo-tiny"
NAME = "lab/demo"


def demo_files() -> dict[str, bytes]:
    return {name: (DEMO / name).read_bytes() for name in (*FILES, CHECKSUMS)}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty cache."""
    from huggingface_hub import constants

    with hub() as here:
        monkeypatch.setenv("HF_ENDPOINT", here.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield here


def environment(here: Hub, home: Path) -> dict[str, str]:
    return {**os.environ, "HF_ENDPOINT": here.url, "HF_HOME": str(home), "PYTHONPATH": ""}


def said(model: KibunModel) -> list[object]:
    audio = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    [answer] = model.analyze([Utterance(audio, np.zeros((0, model.vector_size), np.float16))])
    return [answer.valence, answer.arousal, answer.utterance_traits, answer.conversation_traits]


def test_a_pinned_bundle_is_loaded_and_then_needs_no_hub(there: Hub) -> None:
    first = there.commit(NAME, {**demo_files(), "README.md": b"a page", ".gitattributes": b""})
    there.commit(NAME, {"config.json": b"{}"})  # what main is now is of no concern
    pinned = f"{NAME}@{first}"
    model = load_bundle(pinned)
    assert said(model) == said(load_bundle(DEMO))
    folder = resolve_bundle(pinned)
    assert sorted(path.name for path in folder.iterdir()) == sorted((*FILES, CHECKSUMS))
    there.requests.clear()
    assert resolve_bundle(pinned) == folder
    assert there.requests == []


def test_a_bundle_with_the_hubs_page_beside_it_is_whole(tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "clone")
    (tmp_path / "clone" / "README.md").write_text("a page")
    (tmp_path / "clone" / ".gitattributes").touch()
    verify(tmp_path / "clone")


def test_a_licence_comes_with_its_bundle(there: Hub, tmp_path: Path) -> None:
    shutil.copytree(DEMO, tmp_path / "licensed")
    (tmp_path / "licensed" / "LICENSE").write_text("You may.")
    write_checksums(tmp_path / "licensed")
    commit = there.commit(NAME, {path.name: path.read_bytes() for path in (tmp_path / "licensed").iterdir()})
    folder = resolve_bundle(f"{NAME}@{commit}")
    verify(folder)
    assert (folder / "LICENSE").read_text() == "You may."


def test_what_is_loaded_from_the_hub_is_verified(there: Hub) -> None:
    other = there.commit(NAME, {**demo_files(), "expected_error.json": b'{"by_utterance_count": []}'})
    with pytest.raises(BundleError, match=r"expected_error\.json: does not match sha256"):
        load_bundle(f"{NAME}@{other}")


def test_from_pretrained_takes_a_revision(there: Hub) -> None:
    first = there.commit(NAME, demo_files())
    there.commit(NAME, {"MODEL_CARD.md": b"# another"})
    newest, before = KibunModel.from_pretrained(NAME), KibunModel.from_pretrained(NAME, revision=first)
    assert newest.card == "# another"
    assert before.card == (DEMO / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert said(newest) == said(before)


def test_all_files_are_of_one_commit_though_the_branch_moves(there: Hub) -> None:
    there.commit(NAME, demo_files())

    def push_meanwhile(request: str) -> None:
        if request.startswith("GET") and request.endswith("config.json"):
            there.commit(NAME, {"sha256": b"of another"})

    there.before = push_meanwhile
    assert (fetch(NAME) / "sha256").read_bytes() == (DEMO / "sha256").read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{NAME}@main", r"lab/demo@main: 'main' may change on the hub; pin the commit that it is now: lab/demo@{}$"),
        (f"{NAME}@{'0' * 40}", r"lab/demo@0+: the repository has no such commit, branch or tag$"),
        (f"{NAME}@v2", r"lab/demo@v2: the repository has no such commit, branch or tag$"),
        (
            f"lab/none@{'0' * 40}",
            r"the hub has no such repository, or hides it: correct the name or, if it is private,",
        ),
        ("lab/bert@{bert}", r"has no expected_error\.json, so this repository is not a kibun bundle$"),
        ("lab/demo", r"neither a folder, nor one of those .*, nor ORG/NAME@COMMIT of the hub"),
    ],
)
def test_what_cannot_be_had_is_told_in_one_line(there: Hub, name: str, message: str) -> None:
    first = there.commit(NAME, demo_files())
    bert = there.commit("lab/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""})
    with pytest.raises(BundleError, match=message.format(first)) as raised:
        resolve_bundle(name.format(bert=bert))
    assert "\n" not in str(raised.value)


def test_a_hub_that_is_away_is_told_in_one_line(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # between its retries
    with pytest.raises(BundleError, match=r"the cache lacks config\.json, and the hub cannot be reached") as raised:
        resolve_bundle(f"{NAME}@{'0' * 40}")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_the_program_of_the_page_on_training_runs(tmp_path: Path) -> None:
    (program,) = of_the_documentation("docs/training.md")
    (tmp_path / "my-bundle").mkdir()
    for name, content in demo_files().items():
        (tmp_path / "my-bundle" / name).write_bytes(content)
    with hub() as here:
        here.commit("lab/my-bundle", {".gitattributes": b""})
        commit = here.commit("lab/my-bundle", demo_files(), "v1")
        env = {**environment(here, tmp_path), "HF_TOKEN": "t"}
        command = [sys.executable, "-c", program.replace("COMMIT", commit)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert (here.files("lab/my-bundle", "main") or {}).keys() >= demo_files().keys()


def test_a_bundle_is_pushed_and_comes_back_the_same(tmp_path: Path) -> None:
    """As users do it, in processes of their own; the second has no network."""
    push = "from kibun.models.bundle import load_bundle; load_bundle('demo-tiny').push_to_hub('lab/demo', token='t')"
    with hub() as here:
        env = environment(here, tmp_path)
        done = subprocess.run([sys.executable, "-c", push], env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        pushed = here.files(NAME, "main") or {}
        assert pushed.keys() - demo_files().keys() == {".gitattributes", "README.md"}
        (tmp_path / "clone").mkdir()
        for name, content in pushed.items():
            (tmp_path / "clone" / name).write_bytes(content)
        assert said(load_bundle(tmp_path / "clone")) == said(load_bundle("demo-tiny"))
        command = [sys.executable, "-m", "kibun.client.main", "models", "show", f"{NAME}@{here.branches[NAME]['main']}"]
        shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert shown.returncode == 0, shown.stderr
    again = subprocess.run(command, env={**env, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=300)
    assert (again.returncode, again.stdout) == (0, shown.stdout)
    elsewhere = {**env, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")}
    missing = subprocess.run(command, env=elsewhere, capture_output=True, text=True, timeout=300)
    assert missing.returncode == 1
    assert "the cache lacks config.json, and the hub cannot be reached" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
