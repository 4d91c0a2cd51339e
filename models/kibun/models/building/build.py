"""Untrained bundles: trunk and tails from any encoder's checkpoint in transformers' layout, with new heads."""

from pathlib import Path
from typing import Any

import torch

from kibun.models._transformers import quiet
from kibun.models.building.checkpoint import find_checkpoint
from kibun.models.building.checksum import trunk_checksum
from kibun.models.config import KibunConfig
from kibun.models.encoders import ENCODERS, encoder_config, encoder_of
from kibun.models.files import NOT_STATED, BundleError, check_free, written_atomically
from kibun.models.model import KibunModel


def build_model(encoder: str | Path, *, name: str, seed: int = 0, **settings: Any) -> KibunModel:
    """Make a model whose trunk and tails are copies of a checkpoint.

    Args:
        encoder: folder, or id on the Hugging Face hub, of a HuBERT, wav2vec 2.0 or WavLM checkpoint of any size.
        name: of the bundle.
        seed: of the new heads.
        settings: other fields of `KibunConfig`, for example `trunk_layers`.

    Returns:
        An untrained model in evaluation mode. It normalises its input if the checkpoint's preprocessor_config.json
        says so.

    Raises:
        BundleError: there is no such checkpoint, it is of another kind, or it is damaged; the message names file and
            field.
        ValueError: a setting is impossible.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        checkpoint = find_checkpoint(encoder, tuple(ENCODERS), "facebook/hubert-base-ls960")
        config = KibunConfig(
            hubert=encoder_config(checkpoint.settings()),
            bundle_name=name,
            trunk_from=checkpoint.name,
            **{
                "do_normalize": checkpoint.do_normalize(),
                "license": checkpoint.license(),
                "trained": False,
                **settings,
            },
        )
        full = checkpoint.load(encoder_of(config.hubert_config).model, config.hubert_config)
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


def _card(config: KibunConfig, seed: int) -> str:
    return (
        f"# {config.bundle_name} (version {config.bundle_version})\n\n"
        "**Untrained: the heads are random, the estimates mean nothing.** `kibun serve` refuses this bundle unless\n"
        "`--allow-untrained` is passed.\n\n"
        f"- Trunk and tails: {encoder_of(config.hubert_config).title} checkpoint `{config.trunk_from}`,"
        f" {config.trunk_layers} layers shared, {config.tail_layers} per task\n"
        f"- Trunk: SHA-256 {config.trunk_sha256}\n"
        f"- Heads: new, seed {seed}\n"
        f"- Licence of the checkpoint: {config.license or NOT_STATED}\n"
        f"- Tasks: {', '.join(config.tasks)}\n"
        f"- Input: 16 kHz mono, {'zero mean and unit variance per utterance' if config.do_normalize else 'as it is'}\n"
        "- Scales: traits 1..7, valence and arousal 1..5\n"
        "- Training data, split, evaluation: none yet\n\n"
        "Traits are apparent personality as raters perceive it in speech; they are not a diagnosis.\n"
    )
