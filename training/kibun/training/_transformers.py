"""The one place of this room that imports transformers itself, after kibun.models has dealt with torchaudio."""

from kibun.models._torchaudio import ensure_importable

ensure_importable()

from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler  # noqa: E402

__all__ = ["Trainer", "TrainerCallback", "TrainingArguments", "get_scheduler"]
