"""From the clients' replies to figures, a table and a plot."""

from __future__ import annotations

import io
import math
import statistics
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kibun.training.evaluation.metrics import quantile_interval
from kibun.training.evaluation.report_table import Cell, Row, Table
from peers.catalogue import PEERS
from peers.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IN_TIME_S = 2.0


def load_figures(replies: Sequence[Mapping[str, Any]], lengths_s: Sequence[float], seconds: float) -> dict[str, Any]:
    """Of one or more runs at one load, `seconds` long together. Only an answer within IN_TIME_S of the utterance's end
    is goodput; one that was refused, failed or late is none.
    """
    late = [reply["done"] - reply["due"] for reply in replies if reply["outcome"] == "answered"]
    in_time = [reply for reply in replies if reply["outcome"] == "answered" and _late(reply) <= IN_TIME_S]
    figures = {
        "offered": len(replies),
        "offered_audio_s_per_s": sum(lengths_s[reply["utterance"]] for reply in replies) / seconds,
        "answered": len(late),
        "in_time": len(in_time),
        "goodput_per_s": len(in_time) / seconds,
        "goodput_audio_s_per_s": sum(lengths_s[reply["utterance"]] for reply in in_time) / seconds,
        "refused": sum(reply["outcome"] == "refused" for reply in replies),
        "failed": sum(reply["outcome"] == "failed" for reply in replies),
        "reasons": sorted({reply["reason"] for reply in replies if reply["outcome"] == "failed"}),
    }
    for share in (50, 95, 99):
        figures[f"p{share}_ms"] = 1000 * float(np.percentile(late, share)) if late else None
        figures[f"p{share}_interval_ms"] = [
            None if end is None else 1000 * end for end in quantile_interval(late, share / 100)
        ]
    return figures


def kill_figures(replies: Sequence[Mapping[str, Any]], killed_at: float) -> dict[str, Any]:
    """Of one run in which a worker process was killed.

    in_flight: requests that the server had taken, and neither answered nor refused yet. lost: those of them that got no
    answer, whatever they got instead. failed_later: requests made afterwards that failed. recovered_after_s: from the
    kill until the first answer to a request made afterwards; None: there was none.
    """
    in_flight = [reply for reply in replies if reply["sent"] <= killed_at and reply["done"] > killed_at]
    later = [reply for reply in replies if reply["sent"] > killed_at]
    answers = [reply["done"] for reply in later if reply["outcome"] == "answered"]
    return {
        "in_flight": len(in_flight),
        "lost": sum(reply["outcome"] != "answered" for reply in in_flight),
        "lost_reasons": sorted({reply["reason"] for reply in in_flight if reply["outcome"] != "answered"}),
        "failed_later": sum(reply["outcome"] == "failed" for reply in later),
        "recovered_after_s": min(answers) - killed_at if answers else None,
    }


def best_settings(results: Mapping[str, Any], name: str) -> Settings | None:
    """Of those that were tried on a peer the ones with most audio answered in time; None: none was tried."""
    tried = [one for one in results.get("tuning", []) if one["peer"] == name]
    if not tried:
        return None
    best = max(tried, key=lambda one: sum(at["goodput_audio_s_per_s"] for at in one["loads"].values()))
    return Settings(**best["settings"])


def largest_difference(runs: Sequence[Mapping[str, Any]]) -> float:
    """Of valence or arousal of the same utterance between any two runs: all serve the same model, or this shows it."""
    seen: dict[int, list[Sequence[float]]] = {}
    for run in runs:
        for reply in _replies(run):
            if reply["estimates"] is not None:
                seen.setdefault(reply["utterance"], []).append(reply["estimates"])
    spans = [np.ptp(np.array(values), axis=0).max() for values in seen.values()]
    return float(max(spans, default=0.0))


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring alone."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    fresh = True  # at the start of a statement
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            fresh = True
        if token.type in ignored:
            continue
        if not (fresh and token.type == tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
        fresh = False
    return len(lines)


def summary(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures of each peer over all rotations: of pooled replies, sums of losses, medians and peaks of the rest."""
    lengths, seconds = results["lengths_s"], results["seconds"]
    found = {}
    for name in dict.fromkeys(run["peer"] for run in results["runs"]):
        runs = [run for run in results["runs"] if run["peer"] == name]
        loads = {}
        for load in runs[0]["loads"]:
            pooled = [reply for run in runs for reply in run["loads"][load]]
            loads[load] = load_figures(pooled, lengths, seconds * len(runs))
            each = [load_figures(run["loads"][load], lengths, seconds) for run in runs]
            loads[load]["goodput_by_rotation"] = [one["goodput_audio_s_per_s"] for one in each]
        kills = [kill_figures(run["kill"]["replies"], run["kill"]["at"]) for run in runs]
        recovered = [kill["recovered_after_s"] for kill in kills if kill["recovered_after_s"] is not None]
        server = PEERS[name].server
        found[name] = {
            "rotations": len(runs),
            "settings": runs[0]["settings"],
            "loads": loads,
            "kill": {key: sum(kill[key] for kill in kills) for key in ("in_flight", "lost", "failed_later")}
            | {"reasons": sorted({reason for kill in kills for reason in kill["lost_reasons"]})}
            | {"recovered_after_s": statistics.median(recovered) if recovered else None},
            "peak_mb": max(run["peak_mb"] for run in runs),
            "start_s": statistics.median(run["start_s"] for run in runs),
            "code_lines": code_lines(server) if server else 0,
        }
    return found


def compared(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """kibun's goodput, in seconds of audio per second, over that of the best peer, at each load."""
    ratios: dict[str, float | None] = {}
    if "kibun" not in found or len(found) < 2:
        return ratios
    for load, ours in found["kibun"]["loads"].items():
        best = max(one["loads"][load]["goodput_audio_s_per_s"] for name, one in found.items() if name != "kibun")
        ratios[load] = ours["goodput_audio_s_per_s"] / best if best else None
    return ratios


def tables(results: Mapping[str, Any]) -> tuple[Table, ...]:
    """Goodput and latency by load, then what a killed worker loses, memory and code."""
    found, machine = summary(results), results["machine"]
    rows, rest = [], []
    for name, one in found.items():
        for load, at in one["loads"].items():
            cells = [at[key] for key in ("goodput_audio_s_per_s", "goodput_per_s", "p50_ms", "p95_ms", "p99_ms")]
            cells += [at["offered"], at["in_time"], at["refused"], at["failed"]]
            rows.append(Row(f"{name}, {load} ×", tuple(map(Cell, cells))))
        kill = one["kill"]
        figures = (kill["in_flight"], kill["lost"], kill["failed_later"], kill["recovered_after_s"])
        rest.append(Row(name, tuple(map(Cell, (*figures, one["peak_mb"], one["start_s"], one["code_lines"])))))
    ratios = [f"{load} ×: {ratio:.2f}" for load, ratio in compared(found).items() if ratio is not None]
    notes = (
        f"{machine['processor']}, {machine['cores']} cores;"
        f" kibun computes in {results.get('precision', '–')}, the others in fp32",
        f"1 ×: {results['capacity']:.2f} s of audio per second, which kibun's encoder alone reaches on all cores",
        f"{max((one['rotations'] for one in found.values()), default=0)} rotations, {results['seconds']:g} s for each"
        " load; the same utterances at the same moments for everyone",
        f"goodput: answered within {IN_TIME_S:g} s of the end of the utterance",
        f"kibun's goodput in audio over the best peer's: {', '.join(ratios) or '–'}",
        f"largest difference between two estimates of one utterance: {largest_difference(results['runs']):.1e}",
    )
    after = ("server", "in flight", "lost", "failed later", "recovered, s", "peak MB (PSS)", "start, s", "code lines")
    columns = ("server, load", "audio s/s in time", "per s", "p50 ms", "p95 ms", "p99 ms")
    first = Table("Goodput", (*columns, "offered", "in time", "refused", "failed"), tuple(rows), notes)
    reasons = [f"{name}: {', '.join(one['kill']['reasons'])}" for name, one in found.items() if one["kill"]["reasons"]]
    return first, Table("A worker killed under load; memory; code", after, tuple(rest), tuple(reasons))


def draw(results: Mapping[str, Any]) -> Figure:
    """Goodput, and p95 of what was answered, against the offered load; bars where there is one load alone."""
    from kibun.training.evaluation.plots import COLOURS, MARKERS, canvas, draw_intervals, legend_beside

    found = summary(results)
    if all(len(one["loads"]) == 1 for one in found.values()):
        return _bars(found)
    figure, left = canvas((10.4, 4.4))
    left.set_position((0.08, 0.14, 0.36, 0.74))
    right = figure.add_axes((0.52, 0.14, 0.3, 0.74))
    for number, (name, one) in enumerate(found.items()):
        offered = [at["offered_audio_s_per_s"] for at in one["loads"].values()]
        look: Any = {"color": COLOURS[number], "marker": MARKERS[number], "linewidth": 2.4 if name == "kibun" else 1.4}
        left.plot(offered, [at["goodput_audio_s_per_s"] for at in one["loads"].values()], label=name, **look)
        times = [math.nan if at["p95_ms"] is None else at["p95_ms"] / 1000 for at in one["loads"].values()]
        right.plot(offered, times, label=name, **look)
        draw_intervals(right, offered, times, _ends(one["loads"].values(), "p95"), COLOURS[number])
    right.axhline(IN_TIME_S, color="black", linestyle="--", linewidth=1)
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    left.set_ylim(bottom=0)
    left.set(xlabel="offered (s of audio per second)", ylabel="answered (s of audio per second)")
    right.set(xlabel="offered (s of audio per second)", ylabel="s after the end of the utterance")
    left.set_title(f"Audio answered within {IN_TIME_S:g} s", loc="left")
    right.set_title("How late: p95, 95 % interval", loc="left")
    legend_beside(right)
    return figure


def _bars(found: Mapping[str, Any]) -> Figure:
    from kibun.training.evaluation.plots import COLOURS, canvas, draw_intervals

    figure, left = canvas((10.4, 3.4))
    left.set_position((0.12, 0.2, 0.38, 0.66))
    right = figure.add_axes((0.58, 0.2, 0.38, 0.66), sharey=left)
    names, (load, *_) = list(found), next(iter(found.values()))["loads"]
    at = [one["loads"][load] for one in found.values()]
    colours = [COLOURS[0] if name == "kibun" else "#9a9a9a" for name in names]
    left.barh(names, [one["goodput_audio_s_per_s"] for one in at], color=colours, height=0.6)
    p50, p95 = [[(one[key] or math.nan) / 1000 for one in at] for key in ("p50_ms", "p95_ms")]
    right.hlines(names, p50, p95, color=colours, linewidth=3)
    right.scatter(p50, names, color=colours, marker="o", s=48, zorder=3)
    right.scatter(p95, names, color=colours, marker="|", s=160, linewidth=3, zorder=3)
    for values, key in ((p50, "p50"), (p95, "p95")):
        draw_intervals(right, range(len(names)), values, _ends(at, key), "black", lying=True)
    right.axvline(IN_TIME_S, color="black", linestyle="--", linewidth=1)
    right.tick_params(labelleft=False)
    right.set_xlim(left=0)
    left.invert_yaxis()
    left.set_xlabel(f"s of audio per second; offered: {at[0]['offered_audio_s_per_s']:.1f}")
    right.set_xlabel("s after the end of the utterance")
    left.set_title(f"Audio answered within {IN_TIME_S:g} s", loc="left")
    right.set_title("How late answers came: p50 (dot) to p95", loc="left")
    return figure


def _ends(loads: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float | None, float | None]]:
    """Of the 95 % interval of a percentile at each load, s."""
    known = [[None if end is None else end / 1000 for end in at[f"{key}_interval_ms"]] for at in loads]
    return [(low, high) for low, high in known]


def _late(reply: Mapping[str, Any]) -> float:
    late: float = reply["done"] - reply["due"]
    return late


def _replies(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [reply for replies in (*run["loads"].values(), run["kill"]["replies"]) for reply in replies]
