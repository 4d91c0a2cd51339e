"""`kibun models`: list, show, verify and build bundles. Only the commands that compute import torch."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from kibun.models import provenance
from kibun.models.building.checksum import stored_trunk_checksum
from kibun.models.building.facts import BundleFacts, read_facts
from kibun.models.files import (
    CARD,
    LICENSE,
    NOT_STATED,
    WEIGHTS,
    BundleError,
    bundle_names,
    check_free,
    evidence_rows,
    resolve_bundle,
    verify,
)
from kibun.models.types import CONDITIONED, EMOTIONS, TRAITS, Evidence

app = typer.Typer(no_args_is_help=True, help="List, show, verify and build model bundles.")

Bundle = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE", help="A bundle: folder, name of one that comes with kibun, or ORG/NAME@COMMIT of the hub."
    ),
]
T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command("list")
def list_bundles(as_json: JsonOption = False) -> None:
    """List the bundles that come with kibun."""
    facts = _or_exit(lambda: [read_facts(resolve_bundle(name)) for name in bundle_names()])
    if as_json:
        typer.echo(json.dumps([_as_json(fact) for fact in facts], indent=2))
        return
    if not facts:
        typer.echo("No bundle comes with this installation; make one with `kibun models build`.")
    for fact in facts:
        total, size = fact.parameters["total"] / 1e6, fact.size_bytes / 1e6
        sizes = f"{total:.2f} M parameters, {size:.2f} MB"
        licence = fact.license or NOT_STATED
        typer.echo(f"{fact.name}  version {fact.version}, {sizes}, {_status(fact)}, licence {licence}")


@app.command()
def show(bundle: Bundle, as_json: JsonOption = False) -> None:
    """Show a bundle's settings, scales and model card, without loading it."""
    facts = _or_exit(lambda: read_facts(resolve_bundle(bundle)))
    checksum = _or_exit(lambda: stored_trunk_checksum(Path(facts.folder) / WEIGHTS))
    if as_json:
        typer.echo(json.dumps({**_as_json(facts), "trunk_sha256": checksum}, indent=2))
        return
    for label, value in [*_rows(facts), ("trunk", f"SHA-256 {checksum}")]:
        typer.echo(f"{label:<20} {value}")
    if facts.card:
        typer.echo("\n" + facts.card.rstrip())


@app.command("verify")
def verify_bundle(bundle: Bundle, as_json: JsonOption = False) -> None:
    """Check every file of a bundle against its checksum, load it and run it once."""
    folder = _or_exit(lambda: resolve_bundle(bundle))
    _or_exit(lambda: verify(folder))  # before torch is imported: a damaged file is reported at once
    from kibun.models.building.self_test import self_test
    from kibun.models.bundle import load_bundle

    start = time.perf_counter()
    model = _or_exit(lambda: load_bundle(folder, allow_untrained=True))
    _or_exit(lambda: self_test(model))
    seconds = time.perf_counter() - start
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "ok": True, "trained": model.config.trained, "seconds": seconds}))
        return
    typer.echo(f"{folder}: checksums match, loads and runs ({seconds:.1f} s)")
    if not model.config.trained:
        typer.echo("It is untrained: its estimates mean nothing.")


Run = Annotated[str | None, typer.Option(metavar="RUN", help="Run folder of `kibun train`, or a bundle.")]


@app.command()
def build(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; it must be empty or missing.")],
    encoder: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_HUB_ID", help="HuBERT, wav2vec 2.0 or WavLM checkpoint in transformers' layout."),
    ] = None,
    emotion: Annotated[
        str | None, typer.Option(metavar="PATH_OR_HUB_ID", help="Public emotion checkpoint: dimensions or categories.")
    ] = None,
    pr: Run = None,
    valence: Run = None,
    arousal: Run = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle; the folder's by default.")] = None,
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1",
    seed: Annotated[int | None, typer.Option(help="Seed of the new heads, with --encoder; 0 by default.")] = None,
    trunk_layers: Annotated[int | None, typer.Option(help="Transformer layers to share; half by default.")] = None,
    half: Annotated[bool, typer.Option("--half", help="With runs: store weights as float16, half the size.")] = False,
) -> None:
    """Make a bundle, in one of three ways.

    --encoder: an untrained one from a HuBERT, wav2vec 2.0 or WavLM checkpoint: its layers as trunk and tails, new
    heads.

    --pr, --valence, --arousal, any of them: from runs of `kibun train`, whose trunks must be bit-equal.

    --emotion, alone or with --pr: from a public emotion checkpoint, rescaled from 0..1 to 1..5, or from categories.
    """
    runs = {task: run for task, run in (("personality", pr), ("valence", valence), ("arousal", arousal)) if run}
    _check_way(encoder, emotion, runs, seed, trunk_layers)
    if half and (encoder is not None or emotion is not None):
        _fail("--half is for bundles of runs: leave it out with --encoder and --emotion", 2)
    _or_exit(lambda: check_free(out))  # before torch is imported
    label = name or out.resolve().name
    if encoder is not None:
        _build_untrained(encoder, out, label, version, seed or 0, trunk_layers)
    elif emotion is not None:
        _build_emotion(emotion, runs.get("personality"), out, label, version, trunk_layers)
    else:
        _assemble(runs, out, label, version, half)


def _check_way(
    encoder: str | None, emotion: str | None, runs: dict[str, str], seed: int | None, trunk_layers: int | None
) -> None:
    """Exit unless the options are those of exactly one way to build."""
    ways = "--encoder, one or more of --pr, --valence and --arousal, or --emotion with or without --pr"
    if encoder is None and emotion is None and not runs:
        _fail(f"nothing to build from: pass {ways}", 2)
    if encoder is not None and (emotion is not None or runs):
        _fail(f"--encoder cannot be combined with these: pass {ways}", 2)
    if emotion is not None and runs.keys() - {"personality"}:
        _fail("--emotion estimates valence and arousal already: leave --valence and --arousal out, or --emotion", 2)
    if seed is not None and encoder is None:
        _fail("--seed is for new heads: use it with --encoder only", 2)
    if trunk_layers is not None and encoder is None and emotion is None:
        _fail("--trunk-layers was fixed when the runs were trained: leave it out", 2)


def _build_untrained(encoder: str, out: Path, name: str, version: str, seed: int, trunk_layers: int | None) -> None:
    from kibun.models.building.build import build_model, save_bundle

    model = _or_exit(
        lambda: build_model(encoder, name=name, seed=seed, trunk_layers=trunk_layers, bundle_version=version)
    )
    _or_exit(lambda: save_bundle(model, out))
    total = read_facts(out).parameters["total"] / 1e6
    typer.echo(f"{out}: {total:.2f} M parameters, untrained. Its heads are random: train it before you trust it.")
    typer.echo(f"Serve it as it is with `kibun serve --model {out} --allow-untrained`.")


def _assemble(runs: dict[str, str], out: Path, name: str, version: str, half: bool) -> None:
    import torch

    from kibun.models.building.assemble import assemble, stored_dtype
    from kibun.models.building.build import save_bundle
    from kibun.models.building.parts import load_parts

    parts = _or_exit(lambda: load_parts(runs))
    model = _or_exit(lambda: assemble(parts, name=name, version=version))
    _or_exit(lambda: save_bundle(model, out, dtype=torch.float16 if half else stored_dtype(parts)))
    tasks = ", ".join(f"{part.task} of {part.run}" for part in parts)
    _report_built(out, f"{tasks}; their trunks are bit-equal ({stored_trunk_checksum(out / WEIGHTS):.12})")


def _build_emotion(
    emotion: str, personality: str | None, out: Path, name: str, version: str, trunk_layers: int | None
) -> None:
    from kibun.models.building.build import save_bundle
    from kibun.models.building.emotion_checkpoint import build_emotion_model

    model = _or_exit(
        lambda: build_emotion_model(
            emotion, name=name, version=version, personality=personality, trunk_layers=trunk_layers
        )
    )
    _or_exit(lambda: save_bundle(model, out))
    how = "rescaled from 0..1 to 1..5"
    if read_facts(out).emotion_points:
        how = "from its categories by a table (`kibun models show` prints it): it never heard a rating"
    _report_built(out, f"emotion of {emotion}, {how}; its licence is in {CARD}: read it")


def _report_built(out: Path, source: str) -> None:
    facts = read_facts(out)
    typer.echo(f"{out}: {facts.parameters['total'] / 1e6:.2f} M parameters, {_status(facts)}: {source}")
    if "personality" in facts.tasks and not facts.evidence:
        typer.echo("Its expected error is unknown: the personality run recorded none.")
    untrained = "" if facts.trained else " --allow-untrained"
    typer.echo(f"Serve it with `kibun serve --model {out}{untrained}`.")


def _rows(facts: BundleFacts) -> list[tuple[str, str]]:
    parameters = ", ".join(f"{part} {count:,}" for part, count in facts.parameters.items())
    personality = "personality" in facts.tasks
    return [
        ("name", f"{facts.name}, version {facts.version}"),
        ("folder", facts.folder),
        ("status", _status(facts)),
        ("licence", _license(facts)),
        ("tasks", ", ".join(facts.tasks)),
        ("encoder", _layers(facts)),
        ("parameters", parameters),
        ("weights", f"{facts.weights_dtype}, {facts.size_bytes:,} bytes in all files"),
        ("input", f"{facts.sampling_rate_hz} Hz mono, normalised per utterance: {facts.do_normalize}"),
        ("emotion", _emotion(facts)),
        ("emotion given", _condition(facts)),
        (
            "traits",
            f"{facts.trait_scale[0]:g}..{facts.trait_scale[1]:g}: {', '.join(TRAITS)}" if personality else "none",
        ),
        ("expected error", "; ".join(map(_error, facts.evidence or ())) or "unknown"),
        *_worth(facts),
    ]


def _error(row: Evidence) -> str:
    return f"after {row.utterance_count}: " + ", ".join(
        f"{name} {value:.2f}" for name, value in zip(TRAITS, row.error, strict=True)
    )


def _worth(facts: BundleFacts) -> list[tuple[str, str]]:
    """Which traits are no better than the mean, and how much heard traits count in the condition of emotion."""
    rows = [row for row in facts.evidence or () if row.error_of_mean is not None]
    if not rows:
        return []
    guesses: dict[str, list[str]] = {}  # by trait: after how many utterances it is no better than the mean
    for row in rows:
        for name, error, of_mean in zip(TRAITS, row.error, row.error_of_mean or row.error, strict=True):
            if error >= of_mean:
                guesses.setdefault(name, []).append(str(row.utterance_count))
    each = [f"{name} after {', '.join(counts)}" for name, counts in guesses.items()]
    found = [("no better than mean", "; ".join(each) or "none: every trait has a smaller error than guessing the mean")]
    if facts.emotion_head in CONDITIONED and set(facts.tasks) & set(EMOTIONS):
        weights = [
            f"after {row.utterance_count}: "
            + ", ".join(f"{name} {weight:.2f}" for name, weight in zip(TRAITS, row.weight, strict=True))
            for row in rows
        ]
        found.append(("heard traits count", "; ".join(weights) + "; the rest is the mean, and 0 is not used"))
    return found


def _layers(facts: BundleFacts) -> str:
    size = f"size {facts.hidden_size}"
    text = f"{facts.encoder}, {facts.trunk_layers} layers shared, {facts.tail_layers} per task, {size}"
    shared: dict[str, list[str]] = {}
    for task in facts.tasks:
        shared.setdefault(facts.tail_of.get(task, task), []).append(task)
    text += "".join(f"; {' and '.join(tasks)} share a tail" for tasks in shared.values() if len(tasks) > 1)
    return text + (f"; personality has its own {facts.personality_encoder} trunk" if facts.personality_trunk else "")


def _emotion(facts: BundleFacts) -> str:
    dimensions = [task for task in facts.tasks if task in EMOTIONS]
    if not dimensions:
        return "none"
    text = "{:g}..{:g}: ".format(*facts.emotion_scale) + ", ".join(dimensions) + f", head {facts.emotion_head}"
    if facts.emotion_rescaled_from is not None:
        text += ", RESCALED from {:g}..{:g}".format(*facts.emotion_rescaled_from)
    if facts.emotion_points:
        points = [f"{name} {valence:g} / {arousal:g}" for name, (valence, arousal) in facts.emotion_points.items()]
        text += f", FROM CATEGORIES (valence / arousal): {', '.join(points)}; {facts.emotion_points_from}"
    return text


def _condition(facts: BundleFacts) -> str:
    if not set(facts.tasks) & set(EMOTIONS) or facts.emotion_head not in CONDITIONED:
        return "no traits"
    source = f"given traits, else {facts.condition_source} traits"
    return (source if "personality" in facts.tasks else "given traits, required") + f": {', '.join(facts.condition_on)}"


def _license(facts: BundleFacts) -> str:
    return (facts.license or NOT_STATED) + (f", its text is in {LICENSE}" if facts.license_text else "")


def _status(facts: BundleFacts) -> str:
    trained = "trained" if facts.trained else "UNTRAINED: estimates mean nothing"
    learnt = provenance.describe(facts.tasks, facts.synthetic_parts)
    return "; ".join(filter(None, (trained, f"SYNTHETIC: {learnt}" if facts.synthetic else learnt)))


def _as_json(facts: BundleFacts) -> dict[str, object]:
    content = asdict(facts)
    del content["evidence"]
    return {**content, "expected_error": evidence_rows(facts.evidence) or None}


def _or_exit(action: Callable[[], T]) -> T:
    """Run an action; an error in a bundle or setting ends the command with its message and no traceback."""
    try:
        return action()
    except (BundleError, ValueError, ArithmeticError) as error:
        _fail(str(error))


def _fail(message: str, code: int = 1) -> NoReturn:
    # What a name or a file holds must not control the terminal.
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message)
    typer.echo(f"error: {shown}", err=True)
    raise typer.Exit(code)
