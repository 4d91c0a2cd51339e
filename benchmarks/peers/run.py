"""kibun beside what one would use instead: `python benchmarks/peers/run.py --help`, from a clone with its .venv."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
import time
import venv
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from kibun.bench.load.serve import schedule
from kibun.bench.support import machine, material
from kibun.bench.support.child import Child
from kibun.training.evaluation.report_table import show
from peers import figures
from peers.catalogue import HERE, PEERS, Peer, python_of
from peers.processes import Server
from peers.settings import Settings

KILL_LOAD = 1.5
TUNE_LOAD = 1.5
_PATIENCE_S = 60.0
_KILL_PATIENCE_S = 30.0
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kibun-peers"

app = typer.Typer(add_completion=False)


@app.command()
def main(
    peers: Annotated[str, typer.Option(help="Which, separated by commas, in the order of the first rotation.")] = (
        ",".join(PEERS)
    ),
    loads: Annotated[str, typer.Option(help="Offered, in units of what kibun's encoder alone reaches.")] = "0.5,1,2",
    seconds: Annotated[float, typer.Option(min=1, help="In which the utterances of one load end.")] = 20.0,
    rotations: Annotated[int, typer.Option(min=1, help="Each with the peers in another order.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One rotation, one load, 8 s.")] = False,
    capacity: Annotated[
        float | None, typer.Option(help="That unit, in s of audio per second; by default it is measured.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Bundle; by default HuBERT-base's size, random weights.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder for the peers' environments and the bundle.")] = _CACHE,
    out: Annotated[
        Path | None, typer.Option("--json", help="File for all replies and figures; a run that has one goes on.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="File for the figure: .svg, .png or .pdf.")] = None,
    at_most: Annotated[int | None, typer.Option(min=0, help="End after so many peers; --json goes on later.")] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Try all settings of each peer, briefly, instead; with --json, a run afterwards takes the best.",
        ),
    ] = False,
) -> None:
    """Measure goodput, latency, loss and memory of kibun and its peers, in turns."""
    chosen = [name.strip() for name in peers.split(",")]
    if unknown := [name for name in chosen if name not in PEERS]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(PEERS)}", param_hint="--peers")
    wanted = [float(load) for load in loads.split(",")]
    if quick:
        wanted, seconds, rotations = [1.0], min(seconds, 8.0), 1
    cache.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        install(PEERS[name], cache)
    results = json.loads(out.read_text()) if out is not None and out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(cache, Path(temporary), model, results, capacity)
        if tune:
            bench.tune(chosen, seconds, out)
        else:
            bench.rotate(chosen, wanted, seconds, rotations, at_most, out)
            if results["runs"]:
                results["summary"] = figures.summary(results)
                results["goodput_over_best_peer"] = figures.compared(results["summary"])
                save(results, out)
                show(figures.tables(results), as_json=False, payload={})
    if plot is not None and not tune:
        from kibun.training.evaluation.plots import save as save_plot

        save_plot(figures.draw(results), plot)


def install(peer: Peer, cache: Path) -> None:
    """An environment of the peer's own, unless it is there; with the versions that its file names."""
    python = python_of(peer, cache)
    if peer.package is None or (python.parent / "installed").exists():
        return
    typer.echo(f"installing {peer.name} into {python.parents[1]}", err=True)
    venv.create(python.parents[1], with_pip=True, clear=True)
    requirements = HERE / "requirements" / f"{peer.package}.txt"
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], check=True)
    (python.parent / "installed").touch()


class Bench:
    """One model and its utterances, for all peers."""

    def __init__(
        self, cache: Path, temporary: Path, model: str | None, results: dict[str, Any], capacity: float | None
    ) -> None:
        self._cache = cache
        self._stored = temporary / "material.npz"
        self._results = results
        utterances = material.utterances(12, 0.8, 10.0)
        self._lengths_s = [len(pcm) / 16000 for pcm in utterances]
        material.write(self._stored, utterances)
        self._model = model or str(cache / "base-random")
        if model is None and not Path(self._model).exists():
            with Child("kibun.bench.support.bare", str(self._stored)) as bare:
                bare.ask("base_size", folder=self._model)
        if "capacity" not in results:
            results |= {"machine": machine.describe(), "lengths_s": self._lengths_s, "runs": []}
            results["capacity"] = self._capacity() if capacity is None else capacity

    def _capacity(self) -> float:
        """Seconds of audio per second that kibun's encoder reaches on all cores, without a server."""
        with Child("kibun.bench.support.bare", str(self._stored)) as bare:
            bare.ask("load", model=self._model, precision="auto")
            order = sorted(range(len(self._lengths_s)), key=lambda index: -self._lengths_s[index])
            bare.ask("run", order=order[-4:])  # not counted: memory, kernels
            seconds: float = bare.ask("run", order=order)["seconds"]
        return sum(self._lengths_s) / seconds

    def rotate(
        self,
        chosen: list[str],
        loads: list[float],
        seconds: float,
        rotations: int,
        at_most: int | None,
        out: Path | None,
    ) -> None:
        """All peers in turns, each with the best of its settings that were tried, or with those of the catalogue.

        What `results` holds already is not measured again.
        """
        known = self._results.setdefault("seconds", seconds)
        if known != seconds:
            raise typer.BadParameter(f"that run has {known:g} s for each load", param_hint="--seconds")
        left = at_most
        for rotation in range(rotations):
            start = rotation % len(chosen)
            for name in chosen[start:] + chosen[:start]:
                if any((run["rotation"], run["peer"]) == (rotation, name) for run in self._results["runs"]):
                    continue
                if left == 0:
                    return
                left = None if left is None else left - 1
                settings = figures.best_settings(self._results, name) or PEERS[name].kept
                found = self._measure(PEERS[name], settings, loads, seconds, seed=rotation, kill=True)
                self._results["runs"].append({"rotation": rotation, **found})
                save(self._results, out)

    def tune(self, chosen: list[str], seconds: float, out: Path | None) -> None:
        """Every setting of each peer that was not tried yet, at TUNE_LOAD, without a kill."""
        tried = self._results.setdefault("tuning", [])
        for name in chosen:
            for settings in (PEERS[name].kept, *PEERS[name].tried):
                if any((one["peer"], one["settings"]) == (name, asdict(settings)) for one in tried):
                    continue
                found = self._measure(PEERS[name], settings, [TUNE_LOAD], seconds, seed=9, kill=False)
                loads = {
                    load: figures.load_figures(replies, self._lengths_s, seconds)
                    for load, replies in found["loads"].items()
                }
                tried.append({"peer": name, "settings": asdict(settings), "peak_mb": found["peak_mb"], "loads": loads})
                save(self._results, out)
                goodput = ", ".join(f"{load} × {one['goodput_audio_s_per_s']:.2f}" for load, one in loads.items())
                typer.echo(f"{name} {asdict(settings)}: {goodput} s of audio per second in time")

    def _measure(
        self, peer: Peer, settings: Settings, loads: list[float], seconds: float, *, seed: int, kill: bool
    ) -> dict[str, Any]:
        """One peer, from its start to its end."""
        typer.echo(f"measuring {peer.name}", err=True)
        settings, log = replace(settings, bundle=self._model), self._cache / f"{peer.name.replace(' ', '-')}.log"
        log.unlink(missing_ok=True)
        with (
            Server(peer, python_of(peer, self._cache), settings, log) as server,
            Child("peers.clients", peer.name, server.target, str(self._stored)) as clients,
        ):
            clients.ask("wait", timeout_s=120.0)
            start_s = time.monotonic() - server.started_at
            if said := re.search(r" runs in (\w+)", log.read_text(errors="replace")):
                self._results["precision"] = said[1]  # of kibun: the others know fp32 alone
            # Not counted: memory and kernels of every worker, and what an adaptive batcher learns at first.
            warm = [(index, 0.3 * number) for number, index in enumerate([0, 5, 2, 6, 4, 1, 3, 0])]
            clients.ask("speak", arrivals=warm, patience_s=_PATIENCE_S)
            found: dict[str, Any] = {"peer": peer.name, "settings": asdict(replace(settings, bundle=""))}
            found |= {"start_s": start_s, "loads": {}, "client_cpu_s": 0.0}
            for load in loads:
                arrivals = self._arrivals(load, seconds, seed)
                told = clients.ask("speak", arrivals=arrivals, patience_s=_PATIENCE_S)
                found["loads"][f"{load:g}"] = told["replies"]
                found["client_cpu_s"] += told["cpu_s"]
            if kill:
                found["kill"] = self._kill(server, clients, seconds, seed)
            found["peak_mb"] = server.peak_mb
        return found

    def _kill(self, server: Server, clients: Child, seconds: float, seed: int) -> dict[str, Any]:
        """KILL_LOAD, with a worker killed before the middle, so that recovery is seen."""
        arrivals = self._arrivals(KILL_LOAD, seconds, 100 + seed)
        killed: list[float] = []
        early = 0.4 * max(begin + self._lengths_s[index] for index, begin in arrivals)
        timer = threading.Timer(early, lambda: killed.append(server.kill_worker()))
        timer.start()
        told = clients.ask("speak", arrivals=arrivals, patience_s=_KILL_PATIENCE_S)
        timer.join()
        return {"at": killed[0], "replies": told["replies"]}

    def _arrivals(self, load: float, seconds: float, seed: int) -> list[tuple[int, float]]:
        return schedule(
            self._lengths_s, load * self._results["capacity"], seconds, seed=1000 * seed + round(100 * load)
        )


def save(results: dict[str, Any], out: Path | None) -> None:
    """Whole or not at all: a run of many minutes goes on from this file."""
    if out is not None:
        beside = out.with_name(out.name + ".part")
        beside.write_text(json.dumps(results))
        beside.replace(out)


if __name__ == "__main__":
    app()
