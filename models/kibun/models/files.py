"""The files of a bundle other than weights and configuration, the checks before any is trusted, and atomic writing."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from kibun.models import fields, provenance
from kibun.models.types import FULL_WEIGHT, TRAITS, Evidence, Traits

CONFIG, WEIGHTS, CHECKSUMS = "config.json", "model.safetensors", "sha256"
EXPECTED_ERROR, CARD, PREPROCESSOR = "expected_error.json", "MODEL_CARD.md", "preprocessor_config.json"
FILES = (CONFIG, WEIGHTS, EXPECTED_ERROR, CARD, PREPROCESSOR)
LICENSE = "LICENSE"  # the text of the licence; a bundle may be without it
NOT_STATED, JOINT = "not stated", " AND "  # a licence that is unknown; between two that both apply
PAGE = "README.md"  # of a repository on the hub: it may lie beside them, and is not read
PIECE = 16 << 20  # bytes that are hashed at once
MAX_FILE_BYTES = 4 << 20  # of all but the weights: a hundred times what such a file needs
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}

BUNDLES = Path(__file__).parent / "bundles"
"""Bundles that come with kibun, one folder each."""
CLONES_ONLY = {"voices-tiny": "CC BY-NC-SA 4.0"}
"""Bundles under another licence than the code's, which lie in models/bundles of the repository and in no package."""


class Sidecars(NamedTuple):
    """What a bundle has beside weights and configuration; None where it has none such."""

    evidence: tuple[Evidence, ...] | None = None
    card: str | None = None
    license_text: str | None = None


class BundleError(ValueError):
    """A bundle is missing, damaged, unsafe or inconsistent; the message names the file and the fix."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most MAX_FILE_BYTES. Raises BundleError, which names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BundleError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, which is no configuration")
        content = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: is not JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds {fields.shown(content)} where a JSON object is expected")
    return content


def one_line(error: BaseException) -> str:
    """What a library's exception says, in one line of bounded length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def resolve_bundle(path_or_name: str | Path) -> Path:
    """Folder of a bundle, given by path, by name if it comes with kibun, or as `org/name@COMMIT` of the hub.

    Raises BundleError if there is none, or it cannot be downloaded.
    """
    for folder in (Path(path_or_name), *(home / path_or_name for home in _homes())):
        if (folder / CONFIG).is_file():
            _check_model_type(folder)
            return folder
    if Path(path_or_name).is_dir():
        raise BundleError(f"{Path(path_or_name) / CONFIG}: missing, so this folder is not a bundle")
    if (terms := CLONES_ONLY.get(str(path_or_name))) is not None:
        raise BundleError(
            f"the bundle {path_or_name} is not in the package, as it is licensed under {terms}: clone kibun's"
            f" repository, and name its folder models/bundles/{path_or_name}"
        )
    from kibun.models.hub import fetch_pinned

    if (found := fetch_pinned(str(path_or_name))) is not None:
        _check_model_type(found)
        return found
    raise BundleError(
        f"no bundle {str(path_or_name)!r}: neither a folder, nor one of those that come with kibun"
        f" ({', '.join(bundle_names()) or 'none'}), nor ORG/NAME@COMMIT of the hub; make one from an encoder's"
        " checkpoint with `kibun models build --encoder PATH_OR_HUB_ID --out DIR`"
    )


@contextmanager
def written_atomically(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Give a path beside `path` to write a file or folder to, and move it to `path` when the block ends.

    Readers find the old content or the new, never a part of it. If the block raises, nothing is left behind.

    Args:
        fsync: whether the file must be on the disk before it is moved, so that it survives a power failure whole.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # several processes may write at once
    try:
        yield draft
        if fsync:
            with draft.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        raise


def check_free(folder: Path) -> None:
    """Raise BundleError if `folder` exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists and is not an empty folder: name another with --out, or empty it")


def bundle_names() -> list[str]:
    """Names of the bundles that come with kibun, and in a clone of those that only the repository has."""
    return sorted(path.parent.name for home in _homes() for path in home.glob(f"*/{CONFIG}"))


def _homes() -> list[Path]:
    """The folders with bundles that have names: the package's and, in a clone, the repository's."""
    repository = BUNDLES.parents[3]
    in_clone = (repository / "pyproject.toml").is_file() and (repository / "models" / "kibun").is_dir()
    return [BUNDLES, *([repository / "models" / "bundles"] if in_clone else [])]


def _check_model_type(folder: Path) -> None:
    """Raise BundleError for a checkpoint, an easy mistake, with what to do about it."""
    try:
        model_type = read_object(folder / CONFIG).get("model_type")
    except BundleError:
        if not (folder / CHECKSUMS).is_file():
            raise
        return  # a damaged bundle: the checksums will show it
    if not isinstance(model_type, str):
        raise BundleError(f'{folder / CONFIG}: model_type is {fields.shown(model_type)}, that of a bundle is "kibun"')
    if model_type != "kibun":
        fix = f"make one with `kibun models build --encoder {folder} --out DIR`"
        raise BundleError(f"{folder}: a {fields.shown(model_type)} checkpoint, not a kibun bundle; {fix}")


def write_sidecars(folder: Path, config: Any, sidecars: Sidecars) -> None:
    """Write evidence, card, licence and preprocessor beside the weights, then the checksums of all files."""
    _write_json(
        folder / EXPECTED_ERROR,
        {
            "measure": "root-mean-square error on the trait scale, conversation level, on held-out speakers",
            "error_of_mean": "the same of guessing the population's mean for everyone",
            "weight": "0..1: how much a heard trait counts in the condition of emotion, the rest being the mean",
            "by_utterance_count": evidence_rows(sidecars.evidence),
        },
    )
    _write_json(
        folder / PREPROCESSOR,
        {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": config.sampling_rate,
            "do_normalize": config.do_normalize,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": False,
        },
    )
    (folder / CARD).write_text(sidecars.card or default_card(config), encoding="utf-8")
    (folder / LICENSE).unlink(missing_ok=True)  # an earlier bundle's
    if sidecars.license_text is not None:
        (folder / LICENSE).write_text(sidecars.license_text, encoding="utf-8")
    # safetensors makes its file readable by the owner only, whatever the umask.
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode & 0o777)
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files of the bundle in the format that `sha256sum -c` reads."""
    names = [*FILES, *([LICENSE] if (folder / LICENSE).is_file() else [])]
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in names]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def evidence_rows(evidence: Sequence[Evidence] | None) -> list[dict[str, Any]]:
    """Evidence as JSON: utterance_count, the error of each trait, and error_of_mean and weight by trait."""
    return [
        {
            "utterance_count": row.utterance_count,
            **_by_trait(row.error),
            "error_of_mean": row.error_of_mean and _by_trait(row.error_of_mean),
            "weight": _by_trait(row.weight),
        }
        for row in evidence or ()
    ]


def read_sidecars(folder: Path) -> Sidecars:
    """Evidence, card and licence of a bundle folder. Raises BundleError."""
    error_file = folder / EXPECTED_ERROR
    evidence = _read_evidence(error_file) if error_file.is_file() else None
    return Sidecars(evidence or None, _read_text(folder / CARD), _read_text(folder / LICENSE))


def joint_license(licenses: Iterable[str | None]) -> str | None:
    """The licence of what is made of several works: each of theirs once, as an SPDX expression; None: none is stated.

    A work without one adds "not stated" to those of the others.
    """
    names = dict.fromkeys(name for license in licenses for name in (license or NOT_STATED).split(JOINT))
    stated = [name for name in names if name != NOT_STATED]
    return JOINT.join([*stated, *([NOT_STATED] if NOT_STATED in names else [])]) if stated else None


def _read_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BundleError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB, which is no text of a bundle")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: cannot be read as text: {one_line(error)}") from error


def _read_evidence(path: Path) -> tuple[Evidence, ...]:
    rows = read_object(path).get("by_utterance_count")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise BundleError(f"{path}: by_utterance_count is {fields.shown(rows)}, allowed is a list of objects")
    evidence: list[Evidence] = []
    for number, row in enumerate(rows):
        where = f"by_utterance_count[{number}]"
        try:
            if "utterance_count" not in row:
                raise ValueError(f"{where}.utterance_count is missing")
            fields.check(row, fields.EVIDENCE, f"{where}.")
            if evidence and row["utterance_count"] <= evidence[-1].utterance_count:
                raise ValueError(f"{where}.utterance_count is {row['utterance_count']}: it must rise from row to row")
            error = _traits(row, fields.ERRORS, where)
            of_mean = _traits(row.get("error_of_mean"), fields.ERRORS, f"{where}.error_of_mean")
            weight = _traits(row.get("weight"), fields.WEIGHTS, f"{where}.weight")
        except ValueError as error_:
            raise BundleError(f"{path}: {error_}") from error_
        evidence.append(Evidence(row["utterance_count"], cast(Traits, error), of_mean, weight or FULL_WEIGHT))
    return tuple(evidence)


def _traits(row: dict[str, Any] | None, rules: Mapping[str, fields.Rule], where: str) -> Traits | None:
    """A number for each trait; None where there is no row. Raises ValueError."""
    if row is None:
        return None
    if lacking := [trait for trait in TRAITS if trait not in row]:
        raise ValueError(f"{where}.{lacking[0]} is missing")
    fields.check(row, rules, f"{where}.")
    return cast(Traits, tuple(float(row[trait]) for trait in TRAITS))


def _by_trait(values: Traits) -> dict[str, float]:
    return dict(zip(TRAITS, values, strict=True))


def verify(folder: Path) -> None:
    """Check that a folder holds exactly the files of a bundle, each unchanged since it was written.

    Raises:
        BundleError: a file is missing, damaged, not part of a bundle, or a pickle; the message names it.
    """
    present = {path.name: path for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    for path in present.values():
        if path.suffix.lower() in PICKLES or _is_pickle(path):
            raise BundleError(f"{path}: may contain code that runs on loading; bundles are safetensors only: remove it")
    for name in (*FILES, CHECKSUMS):
        if name not in present or not present[name].is_file():
            raise BundleError(
                f"{folder / name}: missing, or no file; get the bundle again, or save it with save_pretrained"
            )
    for name in present:
        if name not in (*FILES, LICENSE, CHECKSUMS, PAGE):
            raise BundleError(f"{folder / name}: not part of a bundle; remove it")
    listed = _read_checksums(present[CHECKSUMS])
    if LICENSE in listed and LICENSE not in present:
        raise BundleError(f"{folder / LICENSE}: missing, and the bundle came with it: get the bundle again")
    for name in (*FILES, *({LICENSE} & present.keys())):
        if listed.get(name) != _sha256(present[name]):
            raise BundleError(f"{folder / name}: does not match {CHECKSUMS}; it was damaged or changed: get it again")


def fingerprint(folder: Path) -> str:
    """What the bundle's vectors depend on, as 16 hex digits: its configuration and its weights, by their checksums."""
    listed = _read_checksums(folder / CHECKSUMS)
    return hashlib.sha256("".join(listed[name] for name in (CONFIG, WEIGHTS)).encode()).hexdigest()[:16]


def default_card(config: Any) -> str:
    """The card of a bundle without one: only what the configuration states."""
    status = "trained" if config.trained else "**untrained: the heads are random, the estimates mean nothing**"
    return (
        f"# {config.bundle_name} (version {config.bundle_version})\n\n"
        f"- Status: {status}\n"
        f"- Licence: {config.license or NOT_STATED}\n"
        f"- Training data: {provenance.describe(config.tasks, config.synthetic_parts) or 'not recorded'}\n"
        f"- Tasks: {', '.join(config.tasks)}\n"
        f"- Evaluation: none recorded\n\n"
        "Traits are apparent personality as raters perceive it in speech; they are not a diagnosis.\n"
    )


def _read_checksums(path: Path) -> dict[str, str]:
    listed = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name.strip()] = digest
    return listed


def _is_pickle(path: Path) -> bool:
    """Whether a file looks like a pickle: protocols 2 and later start with 0x80, torch's zip archives with PK.

    A safetensors file may do so by chance, as it starts with the length of its header (19,280 bytes read as PK).
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(2)
        pickled = head == b"PK" or (head[:1] == b"\x80" and len(head) == 2 and head[1] in range(2, 6))
        return pickled and not _starts_with_json(head + file.read(6), file, path.stat().st_size)


def _starts_with_json(head: bytes, file: BinaryIO, size: int) -> bool:
    """Whether a file starts with a length (8 bytes, little-endian) and a JSON object of that length."""
    length = int.from_bytes(head, "little")
    try:
        return len(head) == 8 and length <= size and isinstance(json.loads(file.read(length)), dict)
    except ValueError:
        return False


def _sha256(path: Path) -> str:
    """Hash in large pieces: a worker imports torch meanwhile, and after each piece the interpreter is waited for."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(min(PIECE, max(path.stat().st_size, 1))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
