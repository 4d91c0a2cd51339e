"""Untrained bundles: trunk and tails from any HuBERT checkpoint in transformers' layout, with new heads."""

import json
from pathlib import Path
from typing import Any

import torch

from kibun.models._transformers import AutoConfig, HubertConfig, HubertModel, cached_file, quiet
from kibun.models.building.checksum import trunk_checksum
from kibun.models.config import KibunConfig
from kibun.models.files import PREPROCESSOR, BundleError, check_free, written_atomically
from kibun.models.model import KibunModel
from kibun.models.types import SAMPLE_RATE_HZ

# HubertModel creates it if a checkpoint lacks it; only training with SpecAugment would use it, which we do not.
_UNUSED = "masked_spec_embed"


def build_model(hubert: str | Path, *, name: str, seed: int = 0, **settings: Any) -> KibunModel:
    """Make a model whose trunk and tails are copies of a checkpoint.

    Args:
        hubert: folder, or id on the Hugging Face hub, of a HuBERT checkpoint of any size.
        name: of the bundle.
        seed: of the new heads.
        settings: other fields of `KibunConfig`, for example `trunk_layers`.

    Returns:
        An untrained model in evaluation mode. It normalises its input if the checkpoint's preprocessor_config.json
        says so.

    Raises:
        BundleError: there is no such checkpoint, it is not a HuBERT, or it lacks weights.
        ValueError: a setting is impossible.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        config = KibunConfig(
            hubert=_read_config(hubert),
            bundle_name=name,
            trunk_from=checkpoint_name(hubert),
            **{"do_normalize": read_do_normalize(hubert), "trained": False, **settings},
        )
        full = _read_weights(hubert)
        torch.manual_seed(seed)
        model = KibunModel(config)
    model.trunk.load_from(full)
    for task in config.tasks:
        model.tail(task).load_from(full)
    model.config.trunk_sha256 = trunk_checksum(model)
    model.card = _card(model.config, seed)
    model.train(False)
    return model


def save_bundle(model: KibunModel, folder: Path, **options: Any) -> None:
    """Save a model atomically: afterwards `folder` holds the whole bundle or nothing of it.

    Args:
        folder: created if missing; it must be empty.
        options: as `KibunModel.save_pretrained`.

    Raises:
        BundleError: the folder is not empty or cannot be written.
    """
    check_free(folder)
    try:
        with written_atomically(folder) as draft, quiet():
            draft.mkdir(parents=True)
            model.save_pretrained(draft, **options)
            if folder.exists():
                folder.rmdir()
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror or error}") from error


def checkpoint_name(checkpoint: str | Path) -> str:
    """The name of a checkpoint in cards and messages: the folder's name, or the hub id."""
    return Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else str(checkpoint)


def read_any_config(checkpoint: str | Path) -> Any:
    """Configuration of a checkpoint of any kind that transformers knows. Raises BundleError if there is none."""
    try:
        return AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{checkpoint}: no checkpoint found: neither a folder with config.json nor an id on the Hugging Face hub"
            f" ({str(error).splitlines()[0]})"
        ) from error


def _read_config(hubert: str | Path) -> HubertConfig:
    config = read_any_config(hubert)
    if not isinstance(config, HubertConfig):
        raise BundleError(
            f"{hubert}: config.json has model_type {config.model_type!r}, only 'hubert' is supported,"
            " for example facebook/hubert-base-ls960"
        )
    return config


def read_do_normalize(hubert: str | Path) -> bool:
    """Whether a checkpoint normalises its input; True, transformers' default, if it does not state it."""
    file = cached_file(str(hubert), PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return True
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{file}: is not JSON: {error}") from error
    if content.get("sampling_rate", SAMPLE_RATE_HZ) != SAMPLE_RATE_HZ:
        raise BundleError(
            f"{file}: the checkpoint expects {content['sampling_rate']} Hz, only {SAMPLE_RATE_HZ} Hz is supported"
        )
    return bool(content.get("do_normalize", True))


def _read_weights(hubert: str | Path) -> HubertModel:
    try:
        loaded: Any = HubertModel.from_pretrained(
            hubert, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except Exception as error:  # OSError, and types of safetensors and pickle
        raise BundleError(f"{hubert}: the weights do not load: {error}") from error
    model, info = loaded
    missing = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])} - {_UNUSED})
    if missing:
        raise BundleError(
            f"{hubert}: the checkpoint lacks {len(missing)} weights of a HubertModel (or has them in another shape than"
            f" its config.json says), {missing[0]} first"
        )
    return model  # type: ignore[no-any-return]


def _card(config: KibunConfig, seed: int) -> str:
    return (
        f"# {config.bundle_name} (version {config.bundle_version})\n\n"
        "**Untrained: the heads are random, the estimates mean nothing.** `kibun serve` refuses this bundle unless\n"
        "`--allow-untrained` is passed.\n\n"
        f"- Trunk and tails: HuBERT checkpoint `{config.trunk_from}`,"
        f" {config.trunk_layers} layers shared, {config.tail_layers} per task\n"
        f"- Trunk: SHA-256 {config.trunk_sha256}\n"
        f"- Heads: new, seed {seed}\n"
        f"- Tasks: {', '.join(config.tasks)}\n"
        f"- Input: 16 kHz mono, {'zero mean and unit variance per utterance' if config.do_normalize else 'as it is'}\n"
        "- Scales: traits 1..7, valence and arousal 1..5\n"
        "- Training data, split, evaluation: none yet\n\n"
        "Traits are apparent personality as raters perceive it in speech; they are not a diagnosis.\n"
    )
