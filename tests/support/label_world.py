"""Features and labels of known truth: what traits do to valence, and whether they can be heard, is chosen."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class LabelWorld:
    """additive: what traits do to valence by themselves. product: what they do to the sign of a cue in the voice.

    audible: how strongly traits show in the features; 0: not at all. Arousal is in the features alone.
    """

    additive: float = 0.0
    product: float = 0.0
    audible: float = 0.0
    sessions: int = 4
    dialogues: int = 8  # of each session
    each: int = 10  # utterances of each speaker in a dialogue
    features: int = 12
    seed: int = 0

    def draw(self) -> tuple[NDArray[np.float32], list[dict[str, object]]]:
        """(N, D) features, and a row of the table for each."""
        rng = np.random.default_rng(self.seed)
        profiles = self.sessions * self.dialogues * 2
        z = rng.normal(size=(profiles, 5)).clip(-2, 2)  # traits are 4 + 1.5 z
        of = np.repeat(np.arange(profiles), self.each)
        cues = rng.normal(size=(len(of), 3))
        valence = 3 + 0.5 * cues[:, 0] + self.additive * (z @ [0.2, 0.1, 0.0, 0.6, -0.4])[of]
        valence += self.product * cues[:, 1] * z[of, 4] + 0.4 * rng.normal(size=len(of))
        arousal = 3 + 0.6 * cues[:, 2] + 0.4 * rng.normal(size=len(of))
        x = rng.normal(size=(len(of), self.features))
        x[:, :3] = cues
        x[:, 3:8] += self.audible * z[of, : max(0, self.features - 3)]
        x = x @ np.linalg.qr(rng.normal(size=(self.features, self.features)))[0] * 3 + 10  # no column is a cue itself
        rows: list[dict[str, object]] = []
        for index, profile in enumerate(of):
            dialogue, speaker = divmod(int(profile), 2)
            session = dialogue // self.dialogues + 1
            rows.append(
                {
                    "dialogue": f"Ses{session:02d}F_impro{dialogue:03d}",
                    "speaker": f"Ses{session:02d}_{'FM'[speaker]}",
                    "valence": round(float(np.clip(valence[index], 0, 6)), 4),
                    "arousal": round(float(np.clip(arousal[index], 0, 6)), 4),
                    **dict(zip(("OP", "CO", "EX", "AG", "NE"), (4 + 1.5 * z[profile]).round(3).tolist(), strict=True)),
                }
            )
        return x.astype(np.float32), rows

    def write(self, folder: Path) -> tuple[Path, Path]:
        """features.npy and labels.csv in `folder`."""
        x, rows = self.draw()
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "features.npy", x)
        return folder / "features.npy", write_labels(folder / "labels.csv", rows)


def write_labels(path: Path, rows: list[dict[str, object]]) -> Path:
    """A table of these rows."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
