"""The one module of `kibun.models` that imports transformers, so that a broken torchaudio is taken care of first.

kibun does not use torchaudio, but transformers imports it wherever it is installed, and fails if it fails. As PyPI's
wheels for Linux do beside a torch for CPUs: they are linked for CUDA.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, getLogger
from typing import Any


def _leave_out_broken_torchaudio() -> None:
    """Import torchaudio; if it is there and fails, make it look like a package that is not installed."""
    try:
        importlib.import_module("torchaudio")
    except ModuleNotFoundError:
        pass
    except Exception:  # OSError, RuntimeError (CUDA versions differ), AttributeError: all mean "broken"
        for name in [name for name in sys.modules if name.startswith("torchaudio.")]:
            del sys.modules[name]
        # A None entry makes importlib report the package as not installed, here and in transformers' own check.
        sys.modules["torchaudio"] = None  # type: ignore[assignment]


_leave_out_broken_torchaudio()

from transformers import utils  # noqa: E402


def _leave_undocumented(documented: Any = None, **_words: Any) -> Any:
    """Stands for transformers' decorator `auto_docstring`, used as `@auto_docstring` or with arguments."""
    return documented if documented is not None else lambda later: later


if sys.flags.optimize > 1:
    # `python -OO` strips docstrings; transformers composes those of its models from others, and fails without them.
    vars(utils)["auto_docstring"] = _leave_undocumented

from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    HubertConfig,
    HubertForSequenceClassification,
    HubertModel,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMForSequenceClassification,
    WavLMModel,
)
from transformers.activations import ACT2FN  # noqa: E402
from transformers.models.hubert import modeling_hubert  # noqa: E402
from transformers.models.wav2vec2 import modeling_wav2vec2  # noqa: E402
from transformers.models.wavlm import modeling_wavlm  # noqa: E402
from transformers.utils import logging  # noqa: E402
from transformers.utils.generic import ModelOutput  # noqa: E402
from transformers.utils.hub import cached_file  # noqa: E402

__all__ = [
    "ACT2FN",
    "AutoConfig",
    "AutoModel",
    "HubertConfig",
    "HubertForSequenceClassification",
    "HubertModel",
    "ModelOutput",
    "PreTrainedConfig",
    "PreTrainedModel",
    "Wav2Vec2Config",
    "Wav2Vec2ForSequenceClassification",
    "Wav2Vec2Model",
    "WavLMConfig",
    "WavLMForSequenceClassification",
    "WavLMModel",
    "cached_file",
    "modeling_hubert",
    "modeling_wav2vec2",
    "modeling_wavlm",
    "quiet",
]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, load reports and notes about retries on stderr; what is wrong is raised instead."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    hub = getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        hub.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
