"""Checkpoints that others made, in transformers' layout: a folder, or an id on the Hugging Face hub.

Only settings and tensors are taken from one. Of its JSON files each field that is used is checked, and all others are
left alone; transformers, which would act on some of those, gets a configuration and tensors, and never the folder. So
nothing that a checkpoint contains can run, ask, or name another file to read: not `auto_map`, not a pickle.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kibun.models import fields
from kibun.models._transformers import PreTrainedModel, cached_file
from kibun.models.files import CONFIG, PREPROCESSOR, BundleError, one_line, read_object
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.models.weights import not_finite

M = TypeVar("M", bound=PreTrainedModel)

# In the order in which transformers looks for them.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# from_pretrained creates it if a checkpoint lacks it; only training with SpecAugment would use it, which we do not.
_UNUSED = "masked_spec_embed"
# Parts that change what a model computes: where a checkpoint has more of them than its configuration describes, what is
# built would be another model. Heads for other tasks may be left out.
_ESSENTIAL = ("feature_extractor", "feature_projection", "encoder", "adapter")
_WEIGHTED_SUM = "layer_weights"  # of all layers, in place of the last one, before a head


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's files, found by `find_checkpoint`."""

    source: str  # a folder, or an id on the hub
    config_file: Path
    config: Mapping[str, Any]  # as it is in the file

    @property
    def name(self) -> str:
        """The folder's name, or the hub id: its name in cards and messages."""
        return Path(self.source).resolve().name if Path(self.source).is_dir() else self.source

    def file(self, name: str) -> Path | None:
        """The path of one of its files, which is downloaded from the hub if need be; None if it has none such."""
        return _find(self.source, name)

    def license(self) -> str | None:
        """The licence in the front matter of its README; None if that states none."""
        file = self.file("README.md")
        text = file.read_text(encoding="utf-8", errors="replace") if file else ""
        matter = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
        found = re.search(r"^license:[ \t]*(?:\n[ \t]*-[ \t]*)?([^\s#]+)", matter[1], re.MULTILINE) if matter else None
        return found[1].strip("'\"") if found else None

    def settings(self) -> dict[str, Any]:
        """The settings of its encoder that are used. Raises BundleError, which names file and field."""
        return self.checked(fields.check_encoder)

    def checked(self, check: Any) -> dict[str, Any]:
        """What a check of the configuration returns. Raises BundleError, which names file and field."""
        return _checked(self.config_file, self.config, check)

    def do_normalize(self) -> bool:
        """Whether it normalises its input; True, transformers' default, if it does not say. Raises BundleError."""
        file = self.file(PREPROCESSOR)
        if file is None:
            return True
        content = _checked(file, read_object(file), fields.check_preprocessor)
        if (rate_hz := content.get("sampling_rate", SAMPLE_RATE_HZ)) != SAMPLE_RATE_HZ:
            raise BundleError(f"{file}: sampling_rate is {rate_hz} Hz, only {SAMPLE_RATE_HZ} Hz is supported")
        return bool(content.get("do_normalize", True))

    def load(self, kind: type[M], config: Any, remedy: str = "") -> M:
        """A model of `kind` with the checkpoint's weights, as float32.

        Raises BundleError, which names the file: there are no weights, they are damaged, they are no numbers, or they
        are not those of this configuration; `remedy` is added to that.
        """
        files = self._weight_files()
        state: dict[str, Tensor] = {}
        for file in files:
            state |= _read_tensors(file)
        where = files[0] if len(files) == 1 else files[0].parent
        self._check_size(state, config)
        try:
            loaded: Any = kind.from_pretrained(
                None,
                config=config,
                state_dict=state,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except Exception as error:
            raise BundleError(f"{where}: the weights do not load: {one_line(error)}") from error
        model, info = loaded
        lacking = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}  # key: name, shape, shape
        if missing := sorted(name for name in lacking if not name.endswith(_UNUSED)):
            raise BundleError(
                f"{where}: lacks {len(missing)} weights that {CONFIG} requires, or has them in another shape,"
                f" {missing[0]} first{remedy}"
            )
        prefix = f"{kind.base_model_prefix}."
        essential = (*_ESSENTIAL, _WEIGHTED_SUM) if hasattr(model, kind.base_model_prefix) else _ESSENTIAL
        names = (name.removeprefix(prefix) for name in info["unexpected_keys"])
        if surplus := sorted(name for name in names if name.partition(".")[0] in essential):
            raise BundleError(
                f"{where}: has {len(surplus)} weights that {CONFIG} has no place for, {surplus[0]} first: what it"
                f" describes is another model, or one that is not supported{remedy}"
            )
        if name := not_finite(model.state_dict().items()):
            raise BundleError(f"{where}: {name} holds NaN or infinity: get the checkpoint again")
        return model  # type: ignore[no-any-return]

    def _check_size(self, state: Mapping[str, Tensor], config: Any) -> None:
        """Raise BundleError if the configuration describes far more weights than there are: no memory is spent."""
        wanted, found = fields.weight_count(config.to_dict()), sum(tensor.numel() for tensor in state.values())
        if 2 * found < wanted:  # where fewer are missing, they are named once the model is there
            raise BundleError(
                f"{self.config_file}: describes a model of {wanted:,} weights, but the checkpoint has {found:,}"
            )

    def _weight_files(self) -> list[Path]:
        for name in _WEIGHTS:
            if (file := self.file(name)) is not None:
                return self._shards(file) if name.endswith(".json") else [file]
        raise BundleError(f"{self.source}: holds no weights: none of {', '.join(_WEIGHTS)}")

    def _shards(self, index: Path) -> list[Path]:
        """The files that an index names, each of which must lie beside it."""
        names = read_object(index).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise BundleError(f"{index}: weight_map is {fields.shown(names)}, allowed is an object of file names")
        suffix = Path(index.name.removesuffix(".index.json")).suffix
        files = []
        for name in sorted(set(names.values())):
            if Path(name).name != name or "\\" in name or not name.endswith(suffix):
                raise BundleError(
                    f"{index}: weight_map names {fields.shown(name)}, allowed are names of {suffix} files beside it"
                )
            if (file := self.file(name)) is None:
                raise BundleError(f"{index.parent / name}: missing, though {index.name} names it")
            files.append(file)
        return files


def find_checkpoint(source: str | Path, kinds: tuple[str, ...], example: str) -> Checkpoint:
    """The checkpoint at `source`, whose model_type must be one of `kinds`. Raises BundleError if there is none such."""
    if Path(source).is_file():
        raise BundleError(f"{source}: is a file: name the folder that holds {CONFIG} and the weights")
    file = _find(str(source), CONFIG)
    if file is None:
        what = f"this folder holds no {CONFIG}" if Path(source).is_dir() else "it is neither a folder nor a hub id"
        raise BundleError(f"{source}: no checkpoint found: {what}")
    config = read_object(file)
    if config.get("model_type") not in kinds:
        raise BundleError(
            f"{file}: model_type is {fields.shown(config.get('model_type'))}, supported are"
            f" {', '.join(map(repr, kinds))}, for example {example}"
        )
    return Checkpoint(str(source), file, config)


def _find(source: str, name: str) -> Path | None:
    folder = Path(source)
    if folder.is_dir():
        path = folder / name
        if path.is_file():
            return path
        if os.path.lexists(path):
            raise BundleError(f"{path}: is not a file that can be read")
        return None
    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=name == CONFIG)
    except Exception as error:  # OSError, ValueError and types of huggingface_hub
        raise BundleError(
            f"{source}: no checkpoint found: there is no such folder, and the Hugging Face hub says: {one_line(error)}"
        ) from error
    return None if found is None else Path(found)


def _checked(file: Path, content: Mapping[str, Any], check: Any) -> dict[str, Any]:
    try:
        return dict(check(content))
    except ValueError as error:
        raise BundleError(f"{file}: {error}") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file. Raises BundleError if it is damaged, or holds anything else."""
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is wrong is raised
                state = torch.load(file, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise BundleError(f"{file}: damaged, or not a safetensors file ({one_line(error)})") from error
    except Exception as error:  # of torch's many readers
        if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
            raise BundleError(
                f"{file}: damaged, or holds more than tensors, which could be code that runs on loading: get the"
                " checkpoint as safetensors"
            ) from error
        raise BundleError(f"{file}: damaged, or not a file of weights ({one_line(error)})") from error
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise BundleError(f"{file}: holds a {type(state).__name__}, allowed are tensors by name")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise BundleError(f"{file}: {name} is a {type(tensor).__name__}, allowed are tensors by name")
        # Counters such as num_batches_tracked are whole numbers.
        if not (tensor.is_floating_point() and tensor.itemsize > 1) and tensor.numel() > 1:
            raise BundleError(
                f"{file}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, allowed are float32, float16,"
                " bfloat16 and float64: a quantised checkpoint cannot be used"
            )
    return state
