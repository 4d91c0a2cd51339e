"""The simulation as sound: rendered, and encoded by a small HuBERT whose trunk then stays frozen, as in the paper.

No pretrained weights are used. In place of pre-training, the trunk learns to recognise cues: which cue sounds in each
frame, and how intensely. Valence and traits have no part in that. Every head then gets the same frames of the frozen
trunk and its own copy of the same tail to train.
"""

from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from kibun.models.bundle import KibunConfig, KibunModel
from kibun.models.frames import Frames
from kibun.models.hubert import Tail
from kibun.models.types import SAMPLE_RATE_HZ
from kibun.training.filter_bank import new_model
from kibun.training.fit import fit
from kibun.training.simulation.data import SimulationOptions, Splits, UtteranceSet
from kibun.training.simulation.world import CUE_NAMES, SEGMENTS, Scenes, draw_scenes, make_world
from kibun.training.simulation.world_audio import CUE_SECONDS, GAP_SECONDS, draw_voice, render

UTTERANCE_SAMPLES = SEGMENTS * round(SAMPLE_RATE_HZ * (CUE_SECONDS + GAP_SECONDS))  # 1.2 s, without manner
SILENT_MANNER = np.zeros(5)  # traits are inaudible: a head knows of them only what it is given
RECOGNITION_BATCH = 32
TASK = "valence"


def prepare(options: SimulationOptions, seed: int, folder: Path) -> None:
    """Render the utterances of a seed, train a trunk to recognise cues, and store its frames and tail in `folder`."""
    torch.manual_seed(seed)
    scenes = _scenes(options, 0, seed, interaction=True)  # sounds are the same in all worlds
    audio = [_render(each, seed, index) for index, each in enumerate(scenes)]
    model = new_model(seed, _config(options.size))
    _learn_cues(model, audio[0], scenes[0], options, seed)
    stored = {f"frames{index}": _frames(model, part).half() for index, part in enumerate(audio)}
    stored["accuracy"] = torch.tensor(_accuracy(model, audio[2], scenes[2]))
    stored |= {f"tail.{name}": value for name, value in model.tail(TASK).state_dict().items()}
    torch.save(stored, _file(folder, seed))


def load_splits(options: SimulationOptions, world: int, seed: int, folder: Path, *, interaction: bool) -> Splits:
    """The prepared utterances; in each world, and in its control, the same sounds mean something else."""
    stored = torch.load(_file(folder, seed), weights_only=True)
    scenes = _scenes(options, world, seed, interaction=interaction)
    return Splits(*(UtteranceSet.of(each, _paired(stored[f"frames{index}"])) for index, each in enumerate(scenes)))


def cue_accuracy(seed: int, folder: Path) -> float:
    """Share of the test frames, 0..1, whose cue the trunk recognises, in voices that were not in training."""
    return float(torch.load(_file(folder, seed), weights_only=True)["accuracy"])


class TailEncoder(nn.Module):
    """The tail of a head: (B, T, H) frames of the trunk to (B, T, H), in place of `Encoder`."""

    def __init__(self, options: SimulationOptions, seed: int, folder: Path) -> None:
        super().__init__()
        config = _config(options.size)
        self.tail = Tail(config.hubert_config, config.tail_layers)
        stored = torch.load(_file(folder, seed), weights_only=True)
        self.tail.load_state_dict({name[5:]: value for name, value in stored.items() if name.startswith("tail.")})

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, H) -> (B, T, H)."""
        return cast(Frames, self.tail(Frames(frames, (frames.shape[1],) * len(frames)))).hidden


def _paired(frames: Tensor) -> Tensor:
    """(N, T, H) at 50 per second -> (N, T / 2, H) at 25, means of pairs: heads train in half the time."""
    pairs = frames.shape[1] // 2
    return frames[:, : 2 * pairs].float().view(len(frames), pairs, 2, -1).mean(dim=2)


def _file(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed}.pt"


def _scenes(options: SimulationOptions, world: int, seed: int, *, interaction: bool) -> list[Scenes]:
    """Scenes of train, dev and test; speakers and utterances depend on the seed alone, not on the rules."""
    rules = make_world(world, interaction=interaction)
    streams = [np.random.SeedSequence(seed, spawn_key=(8, index)) for index in range(3)]
    return [
        draw_scenes(rules, np.random.default_rng(stream), profiles, options.utterances)
        for stream, profiles in zip(streams, options.sizes, strict=True)
    ]


def _render(scenes: Scenes, seed: int, index: int) -> NDArray[np.float32]:
    """(P * U, S) audio, every speaker in a new voice."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(9, index)))
    audio = np.empty((*scenes.valence.shape, UTTERANCE_SAMPLES), dtype=np.float32)
    for speaker, cues, intensity in zip(audio, scenes.cues, scenes.intensity, strict=True):
        voice = draw_voice(rng)
        for row, sounding, loudness in zip(speaker, cues, intensity, strict=True):
            row[:] = render(voice, sounding, loudness, SILENT_MANNER, rng)
    return audio.reshape(-1, UTTERANCE_SAMPLES)


def _config(size: int) -> KibunConfig:
    """Four convolutions with a total stride of 320, two Transformer layers in the trunk, one in a tail."""
    hubert = {
        "hidden_size": size,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 2 * size,
        "conv_dim": [size] * 4,
        "conv_kernel": [400, 3, 3, 3],
        "conv_stride": [40, 2, 2, 2],
        "num_feat_extract_layers": 4,
        "feat_extract_norm": "layer",
        "conv_bias": True,
        "num_conv_pos_embeddings": 15,
        "num_conv_pos_embedding_groups": 8,
        **dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout"), 0.0),
    }
    return KibunConfig(hubert=hubert, trunk_layers=2, tasks=(TASK,), emotion_head="baseline", head_dropout=0.0)


def _learn_cues(
    model: KibunModel, audio: NDArray[np.float32], scenes: Scenes, options: SimulationOptions, seed: int
) -> None:
    """Train trunk and tail to recognise the cue and its intensity in every frame."""
    model.recogniser = nn.Linear(options.size, len(CUE_NAMES) + 1)
    steps_per_epoch = max(1, len(audio) // RECOGNITION_BATCH)
    cues, intensity = (torch.from_numpy(x.reshape(-1, SEGMENTS)) for x in (scenes.cues, scenes.intensity))
    generator = torch.Generator().manual_seed(seed)

    def loss(rows: Tensor) -> Tensor:
        logits, strength = _recognise(model, torch.from_numpy(audio[rows.numpy()]))
        at = _segment_of_frame(logits.shape[1])
        named = F.cross_entropy(logits.flatten(0, 1), cues[rows][:, at].flatten())
        return named + 4 * F.mse_loss(strength, intensity[rows][:, at].float())

    def batches() -> Tensor:
        order = torch.randperm(len(audio), generator=generator)
        return order[: steps_per_epoch * RECOGNITION_BATCH].view(steps_per_epoch, -1)

    fit(
        model,
        torch.optim.AdamW(model.parameters(), options.learning_rate, weight_decay=0.01),
        (batches() for _ in range(options.recognition_epochs)),
        loss,
        steps=options.recognition_epochs * steps_per_epoch,
        warmup=0.2,
    )


@torch.no_grad()
def _accuracy(model: KibunModel, audio: NDArray[np.float32], scenes: Scenes) -> float:
    model.train(False)
    cues = torch.from_numpy(scenes.cues.reshape(-1, SEGMENTS))
    right = []
    for start in range(0, len(audio), 256):
        named, _strength = _recognise(model, torch.from_numpy(audio[start : start + 256]))
        at = _segment_of_frame(named.shape[1])
        right.append(named.argmax(dim=2) == cues[start : start + 256][:, at])
    return float(torch.cat(right).float().mean())


@torch.no_grad()
def _frames(model: KibunModel, audio: NDArray[np.float32]) -> Tensor:
    """(N, T, H) of the trunk."""
    model.train(False)
    return torch.cat(
        [model.encode(list(torch.from_numpy(part))).hidden for part in np.array_split(audio, 64) if len(part)]
    )


def _recognise(model: KibunModel, audio: Tensor) -> tuple[Tensor, Tensor]:
    """(B, S) audio to cue logits (B, T, 5) and intensities (B, T)."""
    hidden = model.tail(TASK)(model.encode(list(audio))).hidden  # (B, T, H)
    out = cast(nn.Linear, model.recogniser)(hidden)
    return out[..., :-1], out[..., -1]


def _segment_of_frame(frames: int) -> Tensor:
    """(T,) index of the cue that sounds in each frame; without manner all are equally long."""
    return (torch.arange(frames) * SEGMENTS) // frames
