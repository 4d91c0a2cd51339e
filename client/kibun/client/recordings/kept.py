"""What earlier runs have analysed, kept so that `--resume` need not do it again.

A file per recording, written whole or not at all, in the user's cache. Its name is the SHA-256 of the recording's
content and of all that its rows depend on: a recording that has changed, another model or another option has another
name. It holds estimates and times, but neither audio nor the recording's name.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from kibun.client.audio_file import as_text
from kibun.client.recordings.rows import FileResult, FileStatus

# Of what is kept: changes whenever rows get other columns or another meaning.
_VERSION = 1
# What nobody came back for.
_MOST_DAYS = 30
_BLOCK_BYTES = 1 << 20


def default_folder() -> Path:
    """Where results are kept: XDG_CACHE_HOME (~/.cache) /kibun/analyses."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kibun" / "analyses"


class KeptResults:
    """Results of the files of one run, and of earlier ones.

    identity: all that results depend on besides a recording and its options. reuse: take what is there; else it is only
    written, for a later run.
    """

    def __init__(self, folder: Path, identity: str, *, reuse: bool) -> None:
        self.folder = folder
        self._identity = identity
        self._reuse = reuse
        self._written: list[Path] = []
        # Why results cannot be kept, "" if they can.
        self.problem = ""
        self._remove_old()

    def key(self, path: Path, options: str) -> str | None:
        """The name of a recording's result; None for what cannot be read, or only once."""
        digest = hashlib.sha256()
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError:
            return None
        described = json.dumps([_VERSION, digest.hexdigest(), self._identity, options])
        return hashlib.sha256(described.encode()).hexdigest()

    def load(self, key: str, path: Path) -> FileResult | None:
        """The result that is kept under this name, as of the recording at `path`; None if there is none."""
        kept = self._path(key)
        if not self._reuse:
            return None
        try:
            values = json.loads(kept.read_text(encoding="utf-8"))
            rows = [{"file": as_text(path), **row} for row in values.pop("rows")]
            status = FileStatus(**values.pop("status"))
            result = FileResult(path, status, rows, **values, kept=True)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None  # none, or not written by us
        with contextlib.suppress(OSError):
            os.utime(kept)  # still in use
        self._written.append(kept)
        return result

    def save(self, key: str, result: FileResult) -> None:
        """Keeps a result; where that cannot be, `problem` says why, and the run goes on."""
        values = asdict(result)
        for name in ("path", "kept"):
            del values[name]
        values["rows"] = [{name: value for name, value in row.items() if name != "file"} for row in result.rows]
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.folder, delete=False) as file:
                json.dump(values, file)
            os.replace(file.name, self._path(key))
        except OSError as error:
            self.problem = f"{self.folder}: {error.strerror or error}"
        else:
            self._written.append(self._path(key))

    def forget(self) -> None:
        """Removes the results of this run."""
        for path in self._written:
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _remove_old(self) -> None:
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if time.time() - path.stat().st_mtime > _MOST_DAYS * 86_400:
                    path.unlink(missing_ok=True)
