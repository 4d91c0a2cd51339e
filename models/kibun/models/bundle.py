"""Bundles by path or name, checked before use; importing this module makes transformers' Auto classes know them."""

from pathlib import Path

from kibun.models._transformers import AutoConfig, AutoModel
from kibun.models.config import KibunConfig
from kibun.models.files import BundleError, ExpectedError, verify
from kibun.models.model import KibunModel, KibunOutput
from kibun.models.types import Analysis, Utterance

BUNDLES = Path(__file__).parent / "bundles"

AutoConfig.register(KibunConfig.model_type, KibunConfig, exist_ok=True)
AutoModel.register(KibunConfig, KibunModel, exist_ok=True)


def load_bundle(path_or_name: str | Path, *, allow_untrained: bool = False) -> KibunModel:
    """Load a bundle, on the CPU, in float32 and evaluation mode, after checking every file of it.

    Args:
        path_or_name: a bundle folder, or the name of a bundle that comes with kibun (`bundle_names`).
        allow_untrained: accept a bundle whose heads are random.

    Raises:
        BundleError: it does not exist, a file is damaged, missing or unsafe, or it is untrained.
    """
    folder = resolve_bundle(path_or_name)
    verify(folder)
    try:
        model: KibunModel = KibunModel.from_pretrained(folder)
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


def resolve_bundle(path_or_name: str | Path) -> Path:
    """Folder of a bundle given by path or by the name of one that comes with kibun; BundleError if there is none."""
    for folder in (Path(path_or_name), BUNDLES / path_or_name):
        if (folder / "config.json").is_file():
            return folder
    if Path(path_or_name).is_dir():
        raise BundleError(f"{Path(path_or_name) / 'config.json'}: missing, so this folder is not a bundle")
    raise BundleError(
        f"no bundle {str(path_or_name)!r}: neither a folder nor one of those that come with kibun"
        f" ({', '.join(bundle_names()) or 'none'}); make one from a HuBERT checkpoint with"
        " `kibun models build --hubert PATH_OR_HUB_ID --out DIR`"
    )


def bundle_names() -> list[str]:
    """Names of the bundles that come with kibun."""
    return sorted(path.parent.name for path in BUNDLES.glob("*/config.json"))


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
