"""`kibun models`: list, show, verify and build bundles. torch is imported only by the commands that compute."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from kibun.models.facts import BundleFacts, read_facts
from kibun.models.files import BUNDLES, BundleError, bundle_names, resolve_bundle, verify
from kibun.models.types import TRAITS

app = typer.Typer(no_args_is_help=True, help="List, show, verify and build model bundles.")

Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle folder, or the name of a bundled one.")]
T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command("list")
def list_bundles(as_json: AsJson = False) -> None:
    """List the bundles that come with kibun."""
    facts = _or_exit(lambda: [read_facts(BUNDLES / name) for name in bundle_names()])
    if as_json:
        typer.echo(json.dumps([_as_json(fact) for fact in facts], indent=2))
        return
    if not facts:
        typer.echo("No bundle comes with this installation; make one with `kibun models build`.")
    for fact in facts:
        total, size = fact.parameters["total"] / 1e6, fact.size_bytes / 1e6
        typer.echo(f"{fact.name}  version {fact.version}, {total:.2f} M parameters, {size:.2f} MB, {_status(fact)}")


@app.command()
def show(bundle: Bundle, as_json: AsJson = False) -> None:
    """Show what a bundle is, its scales and its model card, without loading it."""
    facts = _or_exit(lambda: read_facts(resolve_bundle(bundle)))
    if as_json:
        typer.echo(json.dumps(_as_json(facts), indent=2))
        return
    for label, value in _rows(facts):
        typer.echo(f"{label:<18} {value}")
    if facts.card:
        typer.echo("\n" + facts.card.rstrip())


@app.command("verify")
def verify_bundle(bundle: Bundle, as_json: AsJson = False) -> None:
    """Check every file of a bundle against its checksum, load it and run it once."""
    folder = _or_exit(lambda: resolve_bundle(bundle))
    _or_exit(lambda: verify(folder))  # before torch is imported: a damaged file is told at once
    from kibun.models.bundle import load_bundle
    from kibun.models.warmup import warm_up

    start = time.perf_counter()
    model = _or_exit(lambda: load_bundle(folder, allow_untrained=True))
    _or_exit(lambda: warm_up(model))
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "ok": True, "trained": model.config.trained, "seconds": seconds}))
        return
    typer.echo(f"{folder}: checksums match, loads and runs ({seconds:.1f} s)")
    if not model.config.trained:
        typer.echo("It is untrained: its estimates mean nothing.")


@app.command()
def build(
    hubert: Annotated[str, typer.Option(metavar="PATH_OR_HUB_ID", help="HuBERT checkpoint in transformers' layout.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must not hold anything yet.")],
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's by default.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the new heads.")] = 0,
    trunk_layers: Annotated[int | None, typer.Option(help="Transformer layers to share; half by default.")] = None,
) -> None:
    """Make an untrained bundle from a HuBERT checkpoint: its layers as trunk and tails, new heads."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _fail(f"{out} exists and is not an empty folder: name another with --out, or empty it")
    from kibun.models.build import build_model

    model = _or_exit(lambda: build_model(hubert, name=name or out.resolve().name, seed=seed, trunk_layers=trunk_layers))
    from kibun.models._transformers import quiet

    with quiet():
        model.save_pretrained(out)
    total = read_facts(out).parameters["total"] / 1e6
    typer.echo(f"{out}: {total:.2f} M parameters, untrained. Its heads are random: train it before you trust it;")
    typer.echo(f"`kibun serve --model {out} --allow-untrained` serves it as it is.")


def _rows(facts: BundleFacts) -> list[tuple[str, str]]:
    parameters = ", ".join(f"{part} {count:,}" for part, count in facts.parameters.items())
    errors = [
        f"after {count}: " + ", ".join(f"{name} {value:.2f}" for name, value in zip(TRAITS, values, strict=True))
        for count, values in facts.expected_error or ()
    ]
    return [
        ("name", f"{facts.name}, version {facts.version}"),
        ("folder", facts.folder),
        ("status", _status(facts)),
        ("tasks", ", ".join(facts.tasks)),
        ("layers", f"{facts.trunk_layers} shared, {facts.tail_layers} per task, hidden size {facts.hidden_size}"),
        ("parameters", parameters),
        ("weights", f"{facts.weights_dtype}, {facts.size_bytes:,} bytes with everything"),
        ("input", f"{facts.sampling_rate_hz} Hz mono, normalised per utterance: {facts.do_normalize}"),
        ("emotion given", f"given traits, else {facts.condition_source} traits"),
        ("traits", f"{facts.trait_scale[0]:g}..{facts.trait_scale[1]:g}: {', '.join(TRAITS)}"),
        ("emotion", f"{facts.emotion_scale[0]:g}..{facts.emotion_scale[1]:g}: valence, arousal"),
        ("expected error", "; ".join(errors) or "unknown"),
    ]


def _status(facts: BundleFacts) -> str:
    trained = "trained" if facts.trained else "UNTRAINED: estimates mean nothing"
    return f"{trained}, SYNTHETIC speech only" if facts.synthetic else trained


def _as_json(facts: BundleFacts) -> dict[str, object]:
    errors = [
        {"utterance_count": count, **dict(zip(TRAITS, values, strict=True))}
        for count, values in facts.expected_error or ()
    ]
    return {**asdict(facts), "expected_error": errors or None}


def _or_exit(action: Callable[[], T]) -> T:
    """Run something; what is wrong with a bundle or setting ends the command with the message alone."""
    try:
        return action()
    except (BundleError, ValueError, ArithmeticError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
