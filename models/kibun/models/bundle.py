"""Bundles by path or name, checked before use; importing this module makes transformers' Auto classes know them."""

from pathlib import Path

from kibun.models._transformers import AutoConfig, AutoModel, quiet
from kibun.models.config import KibunConfig
from kibun.models.files import BundleError, ExpectedError, bundle_names, resolve_bundle, verify
from kibun.models.model import KibunModel, KibunOutput
from kibun.models.types import Analysis, Utterance

AutoConfig.register(KibunConfig.model_type, KibunConfig, exist_ok=True)
AutoModel.register(KibunConfig, KibunModel, exist_ok=True)


def load_bundle(
    path_or_name: str | Path, *, allow_untrained: bool = False, mapped: bool = False, verified: bool = False
) -> KibunModel:
    """Load a bundle, on the CPU, in float32 and evaluation mode, after checking every file of it.

    Args:
        path_or_name: a bundle folder, or the name of a bundle that comes with kibun (`bundle_names`).
        allow_untrained: accept a bundle whose heads are random.
        mapped: leave the weights where the file is mapped, for a caller that copies them anyway.
        verified: the caller has just called `files.verify` itself.

    Raises:
        BundleError: it does not exist, a file is damaged, missing or unsafe, or it is untrained.
    """
    folder = resolve_bundle(path_or_name)
    if not verified:
        verify(folder)
    try:
        with quiet():
            model: KibunModel = KibunModel.from_pretrained(folder, mapped=mapped)
    except BundleError:
        raise
    except Exception as error:  # json, safetensors and transformers raise types of their own
        raise BundleError(f"{folder}: does not load: {error}") from error
    if not model.config.trained and not allow_untrained:
        raise BundleError(
            f"{folder}: this bundle is untrained, its estimates mean nothing; train it, or pass --allow-untrained"
            " (allow_untrained=True) to try things out"
        )
    return model


__all__ = [
    "Analysis",
    "BundleError",
    "ExpectedError",
    "KibunConfig",
    "KibunModel",
    "KibunOutput",
    "Utterance",
    "bundle_names",
    "load_bundle",
    "resolve_bundle",
]
