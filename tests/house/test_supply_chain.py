"""What a server image is made of: the lock, the bill of materials, the Dockerfile."""

import ast
import json
import re
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from deploy import lock, sbom
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
LOCKED = lock.read_lock(lock.LOCK)


def test_the_lock_fits_pyproject_and_constraints() -> None:
    assert lock.problems(LOCKED) == []
    reached = {name for name in reachable() if not lock.NOT_LOCKED.match(name)}
    assert reached == LOCKED.keys(), "all that is needed on any Python and processor, and nothing else"
    assert {"grpcio", "protobuf", "numpy", "transformers", "safetensors", "redis", "webrtcvad-wheels"} <= LOCKED.keys()
    assert "torch" not in LOCKED, "locked by itself"


def reachable() -> set[str]:
    """Names of the server's requirements and of all that they require, as their installed versions say it."""
    places = [{"python_version": p, "platform_machine": m} for p in lock.PYTHONS for m in lock.MACHINES]
    waiting = [(lock.name_of(line), "") for line in lock.requirements()]
    found: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker is None or any(wanted.marker.evaluate({**place, "extra": extra}) for place in places):
                waiting += [(lock.normal(wanted.name), asked) for asked in ("", *wanted.extras)]
    return {name for name, _ in found}


def test_a_lock_that_does_not_fit_is_found_out() -> None:
    version, hashes = LOCKED["grpcio"]
    wrong = {**LOCKED, "grpcio": ("1.0.0", hashes), "soxr": (LOCKED["soxr"][0], set())}
    del wrong["redis"]
    assert lock.problems(wrong) == [
        "redis is not in it",
        f"grpcio==1.0.0, but constraints.txt has {version}",
        "soxr has no hash",
    ]


def test_every_line_is_pinned_and_hashed_and_names_no_index() -> None:
    text = lock.LOCK.read_text()
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[^\s;]+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line
    assert not re.search(r"https?:|index-url|find-links|file:", text)
    # A package with compiled parts has a file for each Python and processor, unless one serves several Pythons.
    for name in ("grpcio", "numpy", "pydantic-core"):
        assert len(LOCKED[name][1]) == len(lock.PYTHONS) * len(lock.MACHINES)


def test_requirements_are_those_of_the_extras_and_of_what_they_include() -> None:
    names = {lock.name_of(line) for line in lock.requirements()}
    assert {"grpcio", "typer", "torch", "redis", "prometheus-client", "opentelemetry-sdk"} <= names
    assert "kibun" not in names
    assert "pytest" not in names


def test_the_lock_command_says_whether_it_fits() -> None:
    done = subprocess.run([sys.executable, str(DEPLOY / "lock.py"), "--check"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_dockerfile_installs_only_what_is_hashed_and_runs_as_nobody() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    instructions = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    for install in re.findall(r"pip install ([^&\n]+)", instructions):
        assert "--no-deps" in install
        assert "--require-hashes" in install or "--no-index" in install
    (user,) = re.findall(r"^USER (\S+)$", instructions, re.MULTILINE)
    assert user.split(":")[0] not in ("0", "root")
    assert instructions.index("USER ") > instructions.rindex("COPY ")
    assert "HEALTHCHECK" in instructions
    copied = re.findall(r"(deploy/\S+)", instructions)
    assert {"deploy/requirements.txt", "deploy/requirements-torch.txt"} == set(copied)
    options = set(re.findall(r"KIBUN_\w+", instructions))
    served = (ROOT / "server/kibun/server/main.py").read_text()
    observed = (ROOT / "server/kibun/server/observability/setup.py").read_text()
    assert all(name in served + observed for name in options)


def bill() -> dict[str, Any]:
    return {
        "components": [
            {"name": "grpcio", "version": LOCKED["grpcio"][0]},
            {"name": "typing_extensions", "version": LOCKED["typing-extensions"][0]},
            {"name": "numpy", "version": "1.0", "externalReferences": [{"url": "file:///srv/x"}, {"url": "https://x"}]},
            {"name": "left-pad", "version": "1.3"},
            {"name": "torch", "version": "2.13.0+cpu"},
        ]
    }


def test_a_bill_of_materials_is_held_to_the_lock() -> None:
    found = bill()
    differs = sbom.complete(found, LOCKED)
    assert f"numpy is 1.0, the lock has {LOCKED['numpy'][0]}" in differs
    assert "left-pad 1.3 is not in the lock" in differs
    assert "redis is in the lock and not installed" in differs
    assert not any(line.startswith(("grpcio ", "typing-extensions ", "torch ")) for line in differs)
    components = {c["name"]: c for c in found["components"]}
    assert components["numpy"]["externalReferences"] == [{"url": "https://x"}]
    (only,) = LOCKED["typing-extensions"][1]
    assert components["typing_extensions"]["hashes"] == [{"alg": "SHA-256", "content": only}]
    assert "hashes" not in components["grpcio"], "one file of several, and it is unknown which"


@pytest.mark.slow
def test_the_bill_of_materials_of_this_environment(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedx_py", reason="needs cyclonedx-bom, as in the extra audit")
    out = tmp_path / "sbom.json"
    done = subprocess.run(
        [sys.executable, "-m", "deploy.sbom", "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert found["metadata"]["component"]["name"] == "kibun"
    components = {lock.normal(c["name"]): c for c in found["components"]}
    assert components["grpcio"]["licenses"]
    assert components["torch"]["version"].startswith("2.")
    assert "file:" not in out.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pip_takes_the_lock_with_hashes_required(tmp_path: Path) -> None:
    """All files are fetched and compared; nothing is installed."""
    venv.create(tmp_path, with_pip=True)
    command = [str(tmp_path / "bin/python"), "-m", "pip", "install", "--dry-run", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--no-cache-dir", "--quiet", "-r", str(lock.LOCK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changed = tmp_path / "changed.txt"
    (known,) = LOCKED["typer"][1]
    changed.write_text(lock.LOCK.read_text().replace(known, "0" * 64))
    command[-1] = str(changed)
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "hash" in refused.stderr.lower()


def test_nothing_that_is_read_can_run() -> None:
    """Pickles are read as tensors alone, and no class of transformers' is chosen by what a checkpoint says."""
    wrong = []
    for folder in ("client", "server", "models", "training", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                called = ast.unparse(node.func)
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                if (
                    (called == "torch.load" and options.get("weights_only") != "True")
                    or (called.startswith("Auto") and called.endswith(".from_pretrained"))
                    or options.get("trust_remote_code", "False") != "False"
                    or (called == "np.load" and options.get("allow_pickle", "False") != "False")
                ):
                    wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {called}")
    assert not wrong
