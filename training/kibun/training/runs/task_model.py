"""The model of a run: a KibunModel with that run's tasks, and a CTC head on the frames of its tail.

    pr    trunk ─ tail ─┬─ mean ─ PersonalityHead        L = L_traits + a L_CTC        setting 1
                        └─ Linear(H, 32) ─ CTC
    ser   trunk ─ tail ─┬─ emotion head (traits given)   L = L_emotion + a L_CTC
                        └─ Linear(H, 32) ─ CTC
    mtl   trunk ─ tail ─┬─ mean ─┬─ PersonalityHead      L = L_emotion + w L_traits + a L_CTC
                        │        └─ emotion head
                        └─ Linear(H, 32) ─ CTC

With `training.conversation = "through_tail"`, a batch of pr is of one conversation, and its conversation head is
trained with the tail: L = L_conversation + L_traits + a L_CTC.

L_traits is the mean over the traits of `model.traits`: one in each multi-task model of the paper's Figure 3. The
outputs of the other traits have no weights, so that they stay at the middle of the scale.

Source: Gao et al., IEEE TAC 2025; a = w = 0.1. The heads start anew, trunk and tail from a checkpoint or a
bundle.
"""

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kibun.models.building.build import build_model
from kibun.models.bundle import KibunConfig, KibunModel, load_bundle
from kibun.models.conditioning import restandardise
from kibun.models.layers import Linear
from kibun.models.types import TRAITS, Traits
from kibun.training.corpora.manifest import is_generated
from kibun.training.losses import ccc_loss
from kibun.training.runs.config import ConfigError, RunConfig
from kibun.training.runs.ctc import VOCABULARY, ctc_loss
from kibun.training.runs.trait_source import Population
from kibun.training.runs.trunk_cache import padded

SHARED_TAIL = "shared"
CONDITION = re.compile(r"^emotion_heads\.\w+\.(personality|fuse|traits\.\d)\.weight$")
"""The weights through which alone an emotion head reads traits; without their biases, P stays 0 at the mean."""


class TaskModel(nn.Module):
    """See the module's docstring. `forward` gives the loss, so that it goes through DistributedDataParallel."""

    def __init__(self, kibun: KibunModel, config: RunConfig) -> None:
        super().__init__()
        self.kibun = kibun
        self.run = config
        self.task_name = "personality" if config.task == "pr" else cast(str, config.dimension)
        self.estimated = [TRAITS.index(trait) for trait in config.model.traits]
        self.ctc = Linear(kibun.config.hubert_config.hidden_size, len(VOCABULARY))
        self.through_tail = config.training.conversation == "through_tail"
        if kibun.config.supports_personality and not self.through_tail:
            kibun.conversation_head.requires_grad_(False)  # trained afterwards, on cached vectors
        if config.model.freeze != "none":
            kibun.freeze_trunk()
        if config.model.freeze == "acoustics":
            for name, parameter in kibun.named_parameters():
                parameter.requires_grad_(CONDITION.search(name) is not None)

    def forward(
        self,
        input_values: Sequence[Tensor],
        texts: Sequence[str | None],
        condition: Tensor,
        traits: Tensor | None = None,
        emotion: Tensor | None = None,
        frames: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            input_values: B waveforms (N_i,) at 16 kHz, ±1. Nothing is padded before the convolutions (hubert.py).
                Empty where frames are given.
            texts: B transcripts, None where there is none.
            condition: (B, 5) traits to condition emotion on. traits, emotion: true labels (B, 5), (B,).
            frames: B tensors (T_i, H) that the frozen trunk computed from the waveforms, where they are cached.

        Returns:
            "loss" and its parts "ctc", "emotion", "traits", "conversation", each (), the parts detached.
        """
        encoded = padded(frames) if frames else self.kibun.encode(input_values)  # (B, T, H)
        tail = self.kibun.tail(self.task_name)(encoded)  # (B, T, H)
        options, loss, parts = self.run.training, tail.hidden.new_zeros(()), {}
        if emotion is not None:
            estimate = self.kibun.emotion_heads[cast(str, self.run.dimension)](tail, condition)  # (B,)
            parts["emotion"] = (ccc_loss if options.loss == "ccc" else F.mse_loss)(estimate.float(), emotion)
            loss = loss + parts["emotion"]
        if traits is not None:
            vectors = tail.mean()  # (B, H)
            if self.through_tail:
                whole = self.kibun.conversation_traits(vectors[None]).float()  # (1, 5)
                parts["conversation"] = F.mse_loss(whole[:, self.estimated], traits[:1, self.estimated])
                loss = loss + parts["conversation"]
            estimates = self.kibun.utterance_traits(vectors).float()  # (B, 5)
            parts["traits"] = F.mse_loss(estimates[:, self.estimated], traits[:, self.estimated])
            loss = loss + (options.trait_weight if self.run.task == "mtl" else 1.0) * parts["traits"]
        parts["ctc"] = ctc_loss(self.ctc(tail.hidden), tail.lengths, texts)
        weight = options.ctc_weight
        loss = ((1 - weight) if options.mix == "convex" else 1.0) * loss + weight * parts["ctc"]
        return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW groups: HuBERT's layers and the heads with a learning rate each; no decay of biases and norms."""
        options = self.run.training
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                backbone = name.startswith(("kibun.trunk", "kibun.tails"))
                groups.setdefault((backbone, parameter.ndim > 1), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": options.learning_rate if backbone else options.head_learning_rate,
                "weight_decay": options.weight_decay if decays else 0.0,
            }
            for (backbone, decays), parameters in groups.items()
        ]


def new_task_model(config: RunConfig, bundle_name: str, traits: Population) -> TaskModel:
    """The model of a run as it starts; the same for the same seed.

    traits: of the training speakers, by which heads standardise them.

    Raises:
        BundleError: `model.start` is neither an encoder checkpoint nor a bundle.
        ConfigError: a bundle to start from that does not fit the run.
    """
    model = config.model
    tasks = {"pr": ("personality",), "ser": (config.dimension,), "mtl": ("personality", config.dimension)}[config.task]
    settings: dict[str, Any] = {
        "tasks": tasks,
        "tail_of": dict.fromkeys(tasks, SHARED_TAIL) if config.task == "mtl" else None,
        "emotion_head": model.head,
        "cross_attention_query": model.query,
        "condition_on": model.condition_on,
        "condition_centre": traits.centre,
        "condition_scale": traits.scale,
        "condition_ff": model.condition_ff,
        "condition_heads": model.condition_heads,
        "conversation_size": model.conversation_size,
        "head_dropout": model.head_dropout,
        "bundle_version": config.version,
        "synthetic_parts": _synthetic_parts(config, tasks),
    }
    from kibun.training.runs.folder import bundle_folder

    bundle = bundle_folder(model.start)
    if bundle is not None:
        kibun = _from_bundle(load_bundle(bundle, allow_untrained=True), config, bundle_name, settings)
    else:
        kibun = build_model(
            model.start, name=bundle_name, seed=config.training.seed, trunk_layers=model.trunk_layers, **settings
        )
    if kibun.config.supports_personality:
        silence(kibun, model.traits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        return TaskModel(kibun, config)


@torch.no_grad()
def silence(kibun: KibunModel, estimated: Sequence[str]) -> None:
    """Put the outputs of all other traits at the middle of the scale: without weights, and so without gradients."""
    outputs = [at for at, trait in enumerate(TRAITS) if trait not in estimated]
    for head in (kibun.personality_head, kibun.conversation_head):
        head.out.weight[outputs] = 0.0
        head.out.bias[outputs] = head.out.centre


def _synthetic_parts(config: RunConfig, tasks: Sequence[str | None]) -> list[str | None]:
    """What this run teaches by generated speech: its tasks, and the trunk if that is trained."""
    if not config.synthetic and not is_generated(config.manifest):
        return []
    return [*tasks, *(["trunk"] if config.model.freeze == "none" else [])]


def _from_bundle(source: KibunModel, config: RunConfig, name: str, settings: dict[str, Any]) -> KibunModel:
    """A model of this run's tasks with the trunk of a bundle, and its tails where it has them."""
    of = source.config
    if config.model.trunk_layers not in (None, of.trunk_layers):
        raise ConfigError(
            f"model.trunk_layers is {config.model.trunk_layers}, but the bundle {of.bundle_name} was cut after"
            f" {of.trunk_layers}: leave it out, or start from the checkpoint"
        )
    if source.personality_trunk is not None:
        raise ConfigError(f"model.start: {of.bundle_name} has two trunks; start from the bundle that one of them is of")
    # What this run leaves as it was is still of what it learnt from.
    kept = {"trunk", *(settings["tasks"] if config.model.freeze == "acoustics" else ())} & set(of.synthetic_parts or ())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        kibun = KibunModel(
            KibunConfig(
                hubert=of.hubert_config.to_dict(),
                trunk_layers=of.trunk_layers,
                do_normalize=of.do_normalize,
                trunk_from=of.trunk_from,
                trunk_sha256=of.trunk_sha256,
                license=of.license,
                bundle_name=name,
                **{**settings, "synthetic_parts": sorted({*settings["synthetic_parts"], *kept})},
            )
        )
    kibun.license_text = source.license_text
    kibun.trunk.load_state_dict(source.trunk.state_dict())
    for task in kibun.config.tasks:
        # A task that the bundle lacks starts from the tail of another: all tails began as the same layers.
        origin = task if task in of.tasks else of.tasks[0]
        kibun.tail(task).load_state_dict(source.tail(origin).state_dict())
        if config.model.keep_heads:
            _copy_heads(kibun, source, task)
    return kibun


def _copy_heads(kibun: KibunModel, source: KibunModel, task: str) -> None:
    if task not in source.config.tasks:
        raise ConfigError(f"model.keep_heads: the bundle {source.config.bundle_name} has no head for {task}")
    try:
        if task == "personality":
            kibun.personality_head.load_state_dict(source.personality_head.state_dict())
            kept = {n: v for n, v in source.conversation_head.state_dict().items() if not n.startswith("familiarity.")}
            kibun.conversation_head.load_state_dict(kept)
        else:
            head, kept_head = kibun.emotion_heads[task], source.emotion_heads[task]
            if source.config.conditioned:
                of = kibun.config
                restandardise(kept_head, cast(Traits, of.condition_centre), cast(Traits, of.condition_scale))
            head.load_state_dict(kept_head.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"model.keep_heads: the {task} head of {source.config.bundle_name} is of another kind or size; give the"
            f" same model settings as it has ({str(error).splitlines()[-1].strip()})"
        ) from error
