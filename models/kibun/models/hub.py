"""Bundles on the Hugging Face hub, or on another server of its protocol that HF_ENDPOINT names.

    org/name@0123456789abcdef0123456789abcdef01234567

The commit pins what is loaded: a branch or tag could become another model under a running service. A commit never
changes, so what the cache holds of it is used without asking the hub. Downloading is huggingface_hub's; only the files
of a bundle are taken.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from kibun.models.files import CHECKSUMS, CONFIG, FILES, LICENSE, BundleError, one_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_pinned(name: str) -> Path | None:
    """The folder of `org/name@COMMIT`, downloaded if the cache lacks it; None for a name that is not of the hub.

    Its files are not verified. Raises BundleError as `fetch` does, and where the revision is not a commit.
    """
    hub_id, at, revision = name.partition("@")
    if not at or not HUB_ID.fullmatch(hub_id):
        return None
    if not COMMIT.fullmatch(revision):
        now = _file(hub_id, CONFIG, revision=revision).parent.name  # a folder of the cache is named after its commit
        raise BundleError(f"{name}: {revision!r} may change on the hub; pin the commit that it is now: {hub_id}@{now}")
    return fetch(hub_id, revision=revision)


def fetch(hub_id: str, **options: Any) -> Path:
    """The folder of the cache with a bundle's files at a revision, by default "main".

    options: HUB_OPTIONS, as of `huggingface_hub.hf_hub_download`.

    Raises BundleError, in one line: there is no such repository, revision or file, it needs a permission, or the hub
    cannot be reached and the cache does not have it.
    """
    folder = _file(hub_id, CONFIG, **options).parent
    commit = {**options, "revision": folder.name}  # all files of one commit, also if the branch moves meanwhile
    for name in (*FILES, CHECKSUMS):
        _file(hub_id, name, **commit)
    if f"  {LICENSE}\n" in (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace"):
        _file(hub_id, LICENSE, **commit)
    return folder


def _file(hub_id: str, name: str, **options: Any) -> Path:
    from huggingface_hub import errors, hf_hub_download

    where = f"{hub_id}@{options.get('revision') or 'main'}"
    try:
        with _silent():
            # The endpoint as it is now: the library keeps what it was when it was imported.
            return Path(hf_hub_download(hub_id, name, endpoint=os.environ.get("HF_ENDPOINT"), **options))
    except errors.GatedRepoError as error:
        fix = "ask for access on its page, and log in with `hf auth login`"
        raise BundleError(f"{where}: access to this repository must be granted: {fix}") from error
    except errors.RepositoryNotFoundError as error:
        fix = "correct the name or, if it is private, log in with `hf auth login`"
        raise BundleError(f"{where}: the hub has no such repository, or hides it: {fix}") from error
    except errors.RevisionNotFoundError as error:
        raise BundleError(f"{where}: the repository has no such commit, branch or tag") from error
    except errors.LocalEntryNotFoundError as error:
        fix = "run `kibun models verify` with this name where there is a network, or correct HF_ENDPOINT"
        raise BundleError(f"{where}: the cache lacks {name}, and the hub cannot be reached: {fix}") from error
    except errors.EntryNotFoundError as error:
        raise BundleError(f"{where}: has no {name}, so this repository is not a kibun bundle") from error
    except (OSError, ValueError) as error:  # HTTP errors, a full disk, a name that the hub does not allow
        raise BundleError(f"{where}: cannot be had from the hub: {one_line(error)}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Suppress bars and notes about retries on standard error, where a server writes its log; faults are raised."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, before = getLogger("huggingface_hub"), are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not before:
            enable_progress_bars()
