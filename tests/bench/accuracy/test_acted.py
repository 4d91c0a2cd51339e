"""`kibun bench acted`: areas by corpus, and what a baseline per speaker does to an offset of each voice."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from kibun.bench.accuracy import acted
from kibun.bench.commands import bench_app
from kibun.models.model import KibunModel
from kibun.training.corpora.manifest import Item
from tests.support.commands import invoke


@pytest.fixture
def manifests(tmp_path: Path) -> list[Path]:
    """Two corpora; nothing is read of their audio, as `estimate` is replaced."""
    found = []
    for corpus, speakers in (("north", 4), ("south", 2)):
        (tmp_path / corpus).mkdir()
        rows = []
        for speaker in range(speakers):
            for number in range(24):
                (tmp_path / corpus / f"{speaker}-{number}.wav").touch()
                row = {"path": f"{speaker}-{number}.wav", "speaker": f"{corpus}-{speaker}", "dialogue": "d"}
                row |= {"emotion": ("angry", "calm", "happy", "sad")[number % 4], "corpus": corpus}
                rows.append(row | {"split": "test" if speaker else "train"})
        path = tmp_path / corpus / "manifest.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append(path)
    return found


def offset(_model: KibunModel, items: Sequence[Item]) -> dict[str, list[float]]:
    """Arousal that is right but for the voice's own level, and valence that knows nothing."""
    level = [1.5 + 0.7 * int(item.speaker[-1]) for item in items]
    excited = [0.4 * (item.emotion in ("angry", "happy")) for item in items]
    return {"valence": [3.0] * len(items), "arousal": [sum(pair) for pair in zip(level, excited, strict=True)]}


def test_areas_by_corpus_and_relative(manifests: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acted, "estimate", offset)
    found = json.loads(invoke(bench_app, "acted", *manifests, "--relative", "--json"))
    assert found["utterances"] == 144
    after = "north, after 3 others of the speaker"
    assert list(found["by_corpus"])[:3] == ["north", after, f"{after}, relative"]
    north = {name: each["ranked"] for name, each in found["by_corpus"].items()}
    assert north["north"]["arousal"]["auc"] == pytest.approx((4 + 6) / 16)  # voices louder, or equal and excited
    assert north["north"]["arousal"]["within"] == 1.0
    assert north["north"]["valence"]["auc"] == 0.5
    assert north[f"{after}, relative"]["arousal"]["auc"] > 0.95
    assert north[after]["arousal"]["utterances"] == 4 * 21
    mean = (north["north"]["arousal"]["auc"] + north["south"]["arousal"]["auc"]) / 2
    assert found["mean_auc"]["arousal"] == pytest.approx(mean)
    assert "mean over corpora: valence 0.500" in invoke(bench_app, "acted", *manifests)


def test_a_split_alone_and_what_is_refused(manifests: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acted, "estimate", offset)
    assert json.loads(invoke(bench_app, "acted", *manifests, "--split", "test", "--json"))["utterances"] == 96
    assert "no utterance is in the split 'dev'" in invoke(bench_app, "acted", *manifests, "--split", "dev", code=2)
    manifests[0].write_text(manifests[0].read_text().replace('"emotion"', '"mood"'))
    assert "field 'emotion' is missing" in invoke(bench_app, "acted", manifests[0], code=2)
