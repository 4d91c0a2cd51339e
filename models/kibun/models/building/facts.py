"""Facts about a bundle, read from its files without loading weights or torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kibun.models.fields import check_bundle
from kibun.models.files import CONFIG, WEIGHTS, BundleError, read_object, read_sidecars
from kibun.models.types import TRAITS, Evidence
from kibun.models.weights import read_header


@dataclass(frozen=True)
class BundleFacts:
    """What `kibun models show` prints; `parameters` counts them by part, with the `total`."""

    name: str
    version: str
    folder: str
    trained: bool
    synthetic: bool  # a task learnt from generated speech
    synthetic_parts: tuple[str, ...]  # which tasks did, and "trunk" if that did
    tasks: tuple[str, ...]
    encoder: str  # model_type of the encoder: one of `fields.ENCODERS`
    trunk_layers: int
    tail_layers: int
    hidden_size: int
    tail_of: dict[str, str]  # tasks that share a tail, and its name
    personality_trunk: bool  # whether personality has its own trunk
    personality_encoder: str  # model_type of the encoder that personality uses
    parameters: dict[str, int]
    weights_dtype: str
    size_bytes: int
    sampling_rate_hz: int
    do_normalize: bool
    emotion_head: str
    emotion_points: dict[str, tuple[float, float]]  # (valence, arousal) of each category that a readout tells apart
    emotion_points_from: str | None  # whose points these are
    condition_on: tuple[str, ...]
    condition_source: str
    condition_centre: tuple[float, ...]  # 0 and scale 1: raw traits, as in bundles made before they were standardised
    condition_scale: tuple[float, ...]
    trait_scale: tuple[float, float]
    emotion_scale: tuple[float, float]
    emotion_rescaled_from: tuple[float, float] | None
    evidence: tuple[Evidence, ...] | None
    card: str | None
    license: str | None
    license_text: str | None


def read_facts(folder: Path) -> BundleFacts:
    """Read a bundle folder. Raises BundleError, which names the file that cannot be read, and its field."""
    try:
        config = check_bundle(read_object(folder / CONFIG))
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"{folder / CONFIG}: {error}") from error
    header = read_header(folder / WEIGHTS)
    sidecars = read_sidecars(folder)
    hubert = config["hubert"]
    return BundleFacts(
        name=config["bundle_name"],
        version=config["bundle_version"],
        folder=str(folder),
        trained=config["trained"],
        synthetic=config["synthetic"],
        synthetic_parts=tuple(config["synthetic_parts"]),
        tasks=tuple(config["tasks"]),
        encoder=hubert["model_type"],
        trunk_layers=config["trunk_layers"],
        tail_layers=hubert.get("num_hidden_layers", 12) - config["trunk_layers"],
        hidden_size=hubert.get("hidden_size", 768),
        tail_of=config.get("tail_of") or {},
        personality_trunk=config.get("personality_hubert") is not None,
        personality_encoder=(config.get("personality_hubert") or hubert)["model_type"],
        parameters=_count(header),
        weights_dtype=", ".join(sorted({dtype for dtype, _ in header.values()})),
        size_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        sampling_rate_hz=config["sampling_rate"],
        do_normalize=config["do_normalize"],
        emotion_head=config.get("emotion_head", "ticn-ca"),  # bundles made before there was a choice have none
        emotion_points=dict(
            zip(config.get("emotion_classes") or (), map(tuple, config.get("emotion_points") or ()), strict=False)
        ),
        emotion_points_from=config.get("emotion_points_from"),
        condition_on=tuple(config.get("condition_on", TRAITS)),
        condition_source=config["condition_source"],
        condition_centre=tuple(config["condition_centre"]),
        condition_scale=tuple(config["condition_scale"]),
        trait_scale=tuple(config["trait_scale"]),
        emotion_scale=tuple(config["emotion_scale"]),
        emotion_rescaled_from=tuple(scale) if (scale := config.get("emotion_rescaled_from")) else None,
        evidence=sidecars.evidence,
        card=sidecars.card,
        license=config.get("license"),
        license_text=sidecars.license_text,
    )


def _count(header: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Number of parameters of trunk, each tail and each head, and in total."""
    counts: dict[str, int] = {}
    for name, (_, shape) in header.items():
        parts = name.split(".")
        part = ".".join(parts[:2]) if parts[0] in ("tails", "emotion_heads") else parts[0]
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return {**counts, "total": sum(counts.values())}
