"""Facts about a bundle, read from its files without loading weights or torch."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kibun.models.files import CONFIG, WEIGHTS, BundleError, ExpectedError, read_sidecars
from kibun.models.types import TRAITS


@dataclass(frozen=True)
class BundleFacts:
    """What `kibun models show` prints; `parameters` counts them by part, with the `total`."""

    name: str
    version: str
    folder: str
    trained: bool
    synthetic: bool
    tasks: tuple[str, ...]
    trunk_layers: int
    tail_layers: int
    hidden_size: int
    tail_of: dict[str, str]  # tasks that share a tail, and its name
    personality_trunk: bool  # whether personality has its own trunk
    parameters: dict[str, int]
    weights_dtype: str
    size_bytes: int
    sampling_rate_hz: int
    do_normalize: bool
    emotion_head: str
    condition_on: tuple[str, ...]
    condition_source: str
    trait_scale: tuple[float, float]
    emotion_scale: tuple[float, float]
    emotion_rescaled_from: tuple[float, float] | None
    expected_error: ExpectedError | None
    card: str | None


def read_facts(folder: Path) -> BundleFacts:
    """Read a bundle folder. Raises BundleError, which names the file that cannot be read."""
    config = _read_json(folder / CONFIG)
    header = _read_header(folder / WEIGHTS)
    expected_error, card = read_sidecars(folder)
    try:
        hubert = config["hubert"]
        return BundleFacts(
            name=config["bundle_name"],
            version=config["bundle_version"],
            folder=str(folder),
            trained=config["trained"],
            synthetic=config["synthetic"],
            tasks=tuple(config["tasks"]),
            trunk_layers=config["trunk_layers"],
            tail_layers=hubert["num_hidden_layers"] - config["trunk_layers"],
            hidden_size=hubert["hidden_size"],
            tail_of=config.get("tail_of") or {},
            personality_trunk=config.get("personality_hubert") is not None,
            parameters=_count(header),
            weights_dtype=", ".join(sorted({tensor["dtype"] for tensor in header.values()})),
            size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
            sampling_rate_hz=config["sampling_rate"],
            do_normalize=config["do_normalize"],
            emotion_head=config.get("emotion_head", "ticn-ca"),  # bundles made before there was a choice have none
            condition_on=tuple(config.get("condition_on", TRAITS)),
            condition_source=config["condition_source"],
            trait_scale=tuple(config["trait_scale"]),
            emotion_scale=tuple(config["emotion_scale"]),
            emotion_rescaled_from=tuple(scale) if (scale := config.get("emotion_rescaled_from")) else None,
            expected_error=expected_error,
            card=card,
        )
    except (KeyError, TypeError) as error:
        raise BundleError(f"{folder / CONFIG}: not the configuration of a kibun bundle ({error!r})") from error


def _count(header: dict[str, Any]) -> dict[str, int]:
    """Number of parameters of trunk, each tail and each head, and in total."""
    counts: dict[str, int] = {}
    for name, tensor in header.items():
        parts = name.split(".")
        part = ".".join(parts[:2]) if parts[0] in ("tails", "emotion_heads") else parts[0]
        counts[part] = counts.get(part, 0) + math.prod(tensor["shape"])
    return {**counts, "total": sum(counts.values())}


def _read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: its length (8 bytes, little-endian), then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise BundleError(f"{path}: not a safetensors file ({error})") from error
    header.pop("__metadata__", None)
    return header


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable as JSON ({error})") from error
    return content
