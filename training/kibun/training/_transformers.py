"""The one place of this room that imports transformers itself, after kibun.models has dealt with torchaudio."""

from kibun.models._torchaudio import ensure_importable

ensure_importable()

from transformers import get_scheduler  # noqa: E402

__all__ = ["get_scheduler"]
