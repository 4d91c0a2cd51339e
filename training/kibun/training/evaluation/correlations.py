"""Tables II and III: correlation of traits and emotion, over utterances or over conversations, by gender."""

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kibun.models.types import EMOTIONS, TRAITS, Traits
from kibun.training.corpora.manifest import Item
from kibun.training.errors import ManifestError
from kibun.training.evaluation.metrics import pearson
from kibun.training.evaluation.paper_figures import CORRELATIONS, UTTERANCES
from kibun.training.evaluation.report_table import STARS_NOTE, Cell, Row, Table, stars

Level = Literal["utterance", "conversation"]
GROUPS = ("all", "male", "female")
_FEWEST = 3


@dataclass(frozen=True)
class Correlation:
    """Pearson's r and two-sided p; both None where r is undefined. reason: why it is."""

    r: float | None
    p: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Group:
    """`n` utterances or conversations, and the correlation of each (trait, emotion) over them.

    left_out: number of the group's utterances that lack a label, by the first label that they lack.
    """

    n: int
    left_out: Mapping[str, int]
    cells: Mapping[tuple[str, str], Correlation]


@dataclass(frozen=True)
class Correlations:
    """groups: all, male, female; speakers marked as neither are in "all" only."""

    level: Level
    groups: Mapping[str, Group]


@dataclass(frozen=True)
class _Point:
    """One point: an utterance, or a profile with its mean emotion."""

    gender: str | None
    traits: Traits
    emotion: tuple[float, float]  # in the order of EMOTIONS


def correlate(items: Sequence[Item], level: Level) -> Correlations:
    """Correlations over the items that have traits, valence and arousal.

    Level "conversation": one point for each (dialogue, speaker), with the mean emotion of its utterances.
    Raises ManifestError where a profile's traits or gender differ between utterances, or fewer than 3 points remain.
    """
    labelled = [item for item in items if _lacks(item) is None]
    _check_profiles(labelled)
    points = _points(labelled, level)
    if len(points) < _FEWEST:
        lacking = "".join(
            f"; {count} of {len(items)} utterances lack {name}" for name, count in _left_out(items).items()
        )
        raise ManifestError(
            f"{len(points)} {level}s have traits, valence and arousal, a correlation needs at least {_FEWEST}{lacking}"
        )
    groups = {}
    for name in GROUPS:
        members = [point for point in points if name in ("all", point.gender)]
        groups[name] = _group(members, [item for item in items if name in ("all", item.gender)])
    return Correlations(level, groups)


def to_tables(result: Correlations, *, by_gender: bool) -> list[Table]:
    """A table of all, with ``by_gender`` also of male and of female: a row for each trait, r and p of each emotion.

    The published figures of Table II are beside ours where there are as many utterances as in the paper.
    """
    number = "II" if result.level == "utterance" else "III"
    names = GROUPS if by_gender else GROUPS[:1]
    tables = []
    for name in names:
        group = result.groups[name]
        published = CORRELATIONS[name] if _is_published(result, name) else {}
        rows = [
            Row(
                trait,
                tuple(
                    cell
                    for emotion, r in zip(EMOTIONS, published.get(trait, (None, None)), strict=True)
                    for cell in _cells(group.cells[trait, emotion], r)
                ),
            )
            for trait in TRAITS
        ]
        columns = ("", *(column for emotion in EMOTIONS for column in (emotion, "p")))
        title = f"Table {number}, {name}: Pearson's r of traits and emotion over {group.n} {result.level}s"
        notes = (*_undefined(group), *(_notes(result, by_gender) if name == names[-1] else ()))
        tables.append(Table(title, columns, tuple(rows), notes, digits=3))
    return tables


def to_payload(result: Correlations) -> dict[str, Any]:
    """JSON: {"all", "male", "female": {"n", "left_out", trait: {"valence", "arousal": {"r", "p"}}}}.

    r and p are null where r is undefined; "reason" then explains it.
    """
    return {
        name: {
            "n": group.n,
            "left_out": dict(group.left_out),
            **{trait: {e: _plain(group.cells[trait, e]) for e in EMOTIONS} for trait in TRAITS},
        }
        for name, group in result.groups.items()
    }


def _is_published(result: Correlations, group: str) -> bool:
    return result.level == "utterance" and result.groups[group].n == UTTERANCES[group]


def _left_out(items: Iterable[Item]) -> dict[str, int]:
    return dict(Counter(lacking for item in items if (lacking := _lacks(item)) is not None))


def _lacks(item: Item) -> str | None:
    return next((name for name in ("traits", *EMOTIONS) if getattr(item, name) is None), None)


def _check_profiles(items: Iterable[Item]) -> None:
    first: dict[tuple[str, str], Item] = {}
    for item in items:
        before = first.setdefault(item.conversation, item)
        for field in ("traits", "gender"):
            if getattr(item, field) != getattr(before, field):
                raise ManifestError(
                    f"{item.id}: field {field!r} is {getattr(item, field)!r}, but {getattr(before, field)!r} in"
                    f" {before.id}: one speaker of one dialogue has one {field[:6]}"
                )


def _points(items: Iterable[Item], level: Level) -> list[_Point]:
    members: dict[Hashable, list[Item]] = {}
    for item in items:
        members.setdefault(item.id if level == "utterance" else item.conversation, []).append(item)
    return [_point(some) for some in members.values()]


def _point(members: Sequence[Item]) -> _Point:
    """The point of one profile's utterances, with their mean emotion."""
    profile = members[0]
    assert profile.traits is not None  # only labelled items come here
    valence, arousal = np.array([(item.valence, item.arousal) for item in members], dtype=np.float64).mean(axis=0)
    return _Point(profile.gender, profile.traits, (float(valence), float(arousal)))


def _group(points: Sequence[_Point], items: Iterable[Item]) -> Group:
    traits = np.array([point.traits for point in points]).reshape(-1, len(TRAITS))  # (n, 5)
    emotions = np.array([point.emotion for point in points]).reshape(-1, len(EMOTIONS))  # (n, 2)
    cells = {}
    for column, trait in enumerate(TRAITS):
        for other, emotion in enumerate(EMOTIONS):
            cells[trait, emotion] = _correlation(trait, traits[:, column], emotion, emotions[:, other])
    return Group(len(points), _left_out(items), cells)


def _correlation(trait: str, scores: np.ndarray, emotion: str, labels: np.ndarray) -> Correlation:
    if len(scores) < _FEWEST:
        return Correlation(None, None, f"needs at least {_FEWEST}, has {len(scores)}")
    for name, values in ((trait, scores), (emotion, labels)):
        if (values == values[0]).all():
            return Correlation(None, None, f"{name} is the same everywhere")
    return Correlation(*pearson(scores, labels))


def _cells(correlation: Correlation, published: float | None) -> tuple[Cell, Cell]:
    """r with its stars and the published one, and p to three decimals."""
    r, p = correlation.r, correlation.p
    words = None if p is None else "< 0.001" if p < 0.0005 else f"{p:.3f}"
    return Cell(r, stars=stars(p), published=published), Cell(words)


def _plain(correlation: Correlation) -> dict[str, Any]:
    reason = {} if correlation.reason is None else {"reason": correlation.reason}
    return {"r": correlation.r, "p": correlation.p, **reason}


def _undefined(group: Group) -> Iterable[str]:
    reasons = {cell.reason: None for cell in group.cells.values() if cell.reason is not None}  # each once, in order
    return (f"–: undefined, {reason}." for reason in reasons)


def _notes(result: Correlations, by_gender: bool) -> Iterable[str]:
    """Notes about all groups."""
    yield STARS_NOTE + "; two-sided, each for itself: not corrected for their number."
    if result.level == "utterance":
        yield "p takes utterances as independent; those of one speaker are not, so it is too small."
    everyone = result.groups["all"]
    if everyone.left_out:
        lacking = ", ".join(f"{count} without {name}" for name, count in everyone.left_out.items())
        yield f"Left out: {lacking} (utterances)."
    neither = everyone.n - result.groups["male"].n - result.groups["female"].n
    if neither and by_gender:
        yield f"{neither} {result.level}s are marked neither male nor female: in all only."
    if result.level == "conversation":
        yield "The published figures of this table are not at hand; none are shown."
    elif _is_published(result, "all"):
        yield "Published: from the results that the authors of PA-IEMOCAP give beside their scripts."
    else:
        yield f"Published figures are shown for IEMOCAP's {UTTERANCES['all']:,} utterances only."
