"""The one place of this room that imports transformers itself, after kibun.models has dealt with torchaudio."""

import kibun.models._transformers  # noqa: F401, I001 - first
from transformers import get_scheduler

__all__ = ["get_scheduler"]
