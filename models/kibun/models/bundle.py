"""Loading bundles by path or name, verified first. Importing this registers them with transformers' Auto classes."""

from pathlib import Path

from kibun.models._transformers import AutoConfig, AutoModel, quiet
from kibun.models.config import KibunConfig
from kibun.models.files import BundleError, bundle_names, resolve_bundle, verify
from kibun.models.model import KibunModel, KibunOutput
from kibun.models.settings import check_trained
from kibun.models.types import Analysis, Evidence, Utterance

AutoConfig.register(KibunConfig.model_type, KibunConfig, exist_ok=True)
AutoModel.register(KibunConfig, KibunModel, exist_ok=True)


def load_bundle(
    path_or_name: str | Path, *, allow_untrained: bool = False, mapped: bool = False, verified: bool = False
) -> KibunModel:
    """Load a bundle on the CPU, in float32 and evaluation mode, after verifying all of its files.

    Args:
        path_or_name: a bundle folder, the name of a bundle that comes with kibun (`bundle_names`), or
            `org/name@COMMIT` of the hub.
        allow_untrained: accept a bundle whose heads are random.
        mapped: leave the weights in the mapped file, for a caller that copies them anyway.
        verified: skip `files.verify`, which the caller has just called.

    Raises:
        BundleError: it does not exist or is untrained, or one of its files is damaged, missing or unsafe.
    """
    folder = resolve_bundle(path_or_name)
    if not verified:
        verify(folder)
    with quiet():
        model: KibunModel = KibunModel.from_pretrained(folder, mapped=mapped)
    if not allow_untrained:
        check_trained(folder, model.config)
    return model


__all__ = [
    "Analysis",
    "BundleError",
    "Evidence",
    "KibunConfig",
    "KibunModel",
    "KibunOutput",
    "Utterance",
    "bundle_names",
    "load_bundle",
    "resolve_bundle",
]
