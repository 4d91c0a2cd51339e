"""`kibun bench …`. Each command's measurement is a separate module, imported only when it runs."""

from pathlib import Path
from typing import Annotated

import typer

from kibun.models.types import Precision
from kibun.training.simulation.commands import paper

bench_app = typer.Typer(help="Measure speed and exactness, and models against known truth.", no_args_is_help=True)

Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds and lengths: within a minute on two cores.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plot = Annotated[Path | None, typer.Option("--plot", help="Draw the figure into this .png, .svg or .pdf.")]


@bench_app.callback()
def _bench() -> None:
    """Measure speed and exactness, and models against known truth."""


bench_app.command()(paper)


@bench_app.command()
def serve(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    model: Annotated[
        str | None, typer.Option(help="Bundle to measure; default: HuBERT-base's size, random weights.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="As for kibun serve; also for the bare loop.")] = "auto",
    target_delay: Annotated[
        float | None, typer.Option(help="As for kibun serve; default: as without it.", show_default=False)
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds of each load: more finals, steadier percentiles.", min=1)
    ] = None,
) -> None:
    """A real server beside the bare encoder loop; its latency at 20, 60, 90 and 300 % load; start-up and memory.

    Linux only. --json: served_over_bare; final_latency_ms (p50, p95, p99 at 60 % load); refused (share under threefold
    load; refused_count is the number), overload (p95 of what was admitted, ratio_to_60, refusal_ms of the slowest);
    finals_lost; throughput, by_load, start, machine.
    """
    from kibun.bench.load import serve
    from kibun.bench.support import report
    from kibun.bench.support.child import ChildError
    from kibun.client.server_process import ServerStartError
    from kibun.models.files import BundleError, resolve_bundle

    try:
        if model is not None:
            resolve_bundle(model)
        report.run(
            lambda: serve.measure(
                model, precision=precision, target_delay_s=target_delay, quick=quick, seconds=seconds
            ),
            as_json=as_json,
            plot=plot,
        )
    except BundleError as error:
        report.fail(f"--model: {error}")
    except (ChildError, ServerStartError, serve.MeasurementError) as error:
        typer.echo(f"kibun bench serve: {error}", err=True)
        raise typer.Exit(1) from error


@bench_app.command()
def start(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    precision: Annotated[Precision, typer.Option(help="As for kibun serve.")] = "auto",
) -> None:
    """From the command `kibun serve` until it serves, by stage, beside a Python that only imports torch.

    --json: serving_after_s, over_torch (that, over the time that importing torch takes) and stages_s of demo-tiny and
    of HuBERT-base's size with random weights; import_torch_s, rounds, machine. Files are in the page cache.
    """
    from kibun.bench.load import start
    from kibun.bench.support import report
    from kibun.client.server_process import ServerStartError

    try:
        report.run(lambda: start.measure(precision=precision, quick=quick), as_json=as_json, plot=plot)
    except (ServerStartError, start.StageError) as error:
        typer.echo(f"kibun bench start: {error}", err=True)
        raise typer.Exit(1) from error


@bench_app.command()
def latency(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    model: Annotated[
        str | None, typer.Option(help="Bundle to measure; default: demo-tiny and HuBERT-base's size, random weights.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="As for kibun serve.")] = "auto",
    seconds: Annotated[float | None, typer.Option(help="Seconds of each load: more finals.", min=1)] = None,
    recordings: Annotated[
        Path | None, typer.Option(help="Folder of recorded conversations, to count what is encoded in vain.")
    ] = None,
) -> None:
    """How late finals are, with the analysis that begins in the silence before them (eager) and without it (plain).

    Linux only. One stream; 20 and 60 % load (by default of the larger model). --json: beyond_endpoint_ms (eager and
    plain: p50 and p95, from the message that decides an utterance's end to its final; one stream, speech of up to 2 s),
    identical (finals have the same bits), wasted_share (of eager encodings, on the recordings: somebody went on),
    encoding_factor (all encodings over the finals, without and with interims: mean and worst), models (each one's
    by_load, by_length, timeline_ms), machine. Without --recordings wasted_share and encoding_factor are null.
    """
    from kibun.bench.load import latency
    from kibun.bench.load.early_work import RecordingError
    from kibun.bench.load.serve import MeasurementError
    from kibun.bench.support import report
    from kibun.bench.support.child import ChildError
    from kibun.client.errors import AudioFileError
    from kibun.client.server_process import ServerStartError
    from kibun.models.files import BundleError, resolve_bundle

    try:
        if model is not None:
            resolve_bundle(model)
        report.run(
            lambda: latency.measure(model, precision=precision, quick=quick, seconds=seconds, recordings=recordings),
            as_json=as_json,
            plot=plot,
        )
    except BundleError as error:
        report.fail(f"--model: {error}")
    except (RecordingError, AudioFileError) as error:
        report.fail(f"--recordings: {error}")
    except (ChildError, ServerStartError, MeasurementError) as error:
        typer.echo(f"kibun bench latency: {error}", err=True)
        raise typer.Exit(1) from error


@bench_app.command()
def encoder(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """The encoder against three full HubertModels in fp32, by length of the utterance; batches; threads.

    HuBERT-base's size, random weights. --json: ratio_fp32, ratio_bf16 (medians at 5 s), max_diff_fp32 (of any frame
    from the HubertModels), batched_diff_fp32 (together against alone), pooled_error_bf16, lengths, batch, threads,
    gemm_tflops (this machine's peak), machine. A CPU that emulates bf16 is not measured in it: bf16_left_out says so,
    and the two figures of bf16 are null.
    """
    import torch

    from kibun.bench.cost import encoder
    from kibun.bench.support import report

    if device != "cpu" and not torch.cuda.is_available():
        report.fail(f"--device {device}: this machine has no CUDA device; use cpu")
    report.run(lambda: encoder.measure(quick=quick, device=device), as_json=as_json, plot=plot)


@bench_app.command()
def training(quick: Quick = False, as_json: JsonOption = False, plot: Plot = None) -> None:
    """Training with a frozen trunk's frames kept on disk and batches by length, against the plain loop.

    --json: ratio (both together), ratio_kept, ratio_by_length, ratio_evaluation, ratio_whole_run (filling included),
    filling_over_plain_epoch, hours_per_hour, kept_bytes_per_audio_s, loss_difference, machine; of HuBERT-base's size,
    with --quick of a small one. sizes: the same of each size measured.
    """
    from kibun.bench.cost import training
    from kibun.bench.support import report

    report.run(lambda: training.measure(quick=quick), as_json=as_json, plot=plot)


@bench_app.command()
def conversation(quick: Quick = False, as_json: JsonOption = False, plot: Plot = None) -> None:
    """What a turn costs late in a conversation beside its first, and how much memory a conversation takes.

    --json: turn100_over_turn1, naive_turn100_over_turn1 (all earlier utterances encoded anew, counted),
    bytes_per_conversation (of 100 utterances; bytes_counted are those of its vectors), turns, machine; of HuBERT-base's
    size with random weights. models: the same of it and of demo-tiny.
    """
    from kibun.bench.cost import conversation
    from kibun.bench.support import report

    report.run(lambda: conversation.measure(quick=quick), as_json=as_json, plot=plot)


@bench_app.command()
def interim(quick: Quick = False, as_json: JsonOption = False, plot: Plot = None) -> None:
    """What interims cost beside the final, by schedule, and how near the final an early estimate is.

    --json: encoding_factor (time of all encodings of an utterance, final included, over one; the worst over lengths,
    default schedule), encoding_factor_counted (in audio instead of time), schedules, error_by_share, error_by_seconds,
    error_unheard, machine.
    """
    from kibun.bench.cost import interim
    from kibun.bench.support import report

    report.run(lambda: interim.measure(quick=quick), as_json=as_json, plot=plot)


@bench_app.command()
def front(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    streams: Annotated[int | None, typer.Option(help="Streams at a time to each of three servers.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds of each window.", min=1)] = None,
) -> None:
    """CPU of the server's own process per open stream, beside an empty gRPC handler.

    At 8, 16 and 48 kHz, while nobody speaks, and in messages of 20, 40 and 100 ms; with each detector. Linux only.
    --json: core_share_per_stream and empty_core_share_per_stream (cores, at 16 kHz, with Silero), us_per_chunk (of 100
    ms), empty_us_per_chunk (of the empty handler), ratio_to_empty, nobody_speaks_core_share, rates (the same of each
    rate), costs (the same of everything measured: rate_hz, message_ms, speaks, after_s, vad), loop_lag_ms (p50, p99,
    max of the event loop under load), loop_lag_idle_ms, handover (an utterance to the worker and its answer), machine.
    """
    from kibun.bench.load import front
    from kibun.bench.support import report
    from kibun.bench.support.child import ChildError
    from kibun.client.server_process import ServerStartError

    try:
        report.run(lambda: front.measure(quick=quick, streams=streams, seconds=seconds), as_json=as_json, plot=plot)
    except (ChildError, ServerStartError) as error:
        typer.echo(f"kibun bench front: {error}", err=True)
        raise typer.Exit(1) from error


@bench_app.command()
def capacity(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis for conversations; default: start one.")] = None,
) -> None:
    """How many live streams and finals one front carries before its event loop is late; one front against two.

    Linux only; a stub for a model. --json: streams_carried (the most with a loop on time), saturated (whether a higher
    number was too much), streams_per_core (counted from the CPU), core_share_per_stream, levels, finals (per second and
    their CPU, by length), fronts (rounds, ratio of finals per second with --fronts 2 over 1, cpu_ratio of the fronts'
    CPU per final, connections that each got, left_out: why not compared), machine.
    """
    from kibun.bench.load import capacity
    from kibun.bench.support import report
    from kibun.bench.support.child import ChildError
    from kibun.client.server_process import ServerStartError

    try:
        report.run(lambda: capacity.measure(quick=quick, redis=redis), as_json=as_json, plot=plot)
    except (ChildError, ServerStartError, capacity.CapacityError) as error:
        typer.echo(f"kibun bench capacity: {error}", err=True)
        raise typer.Exit(1) from error


@bench_app.command()
def admission(quick: Quick = False, as_json: JsonOption = False, plot: Plot = None) -> None:
    """How many streams are refused, and how late finals are, by --target-delay and number of cores; simulated.

    --json: frontier (by number of slots and rising target: refused_calm, refused_busy and refused_flood, shares at 60,
    90 and 300 % load; p95 of finals, slowdown: that at 300 % over that at 60 %), defaults (the same by machine and
    crowd, with turns_refused of running conversations), meets (by machine: whether the default keeps to what is
    wanted), finals_lost, seeds.
    """
    from kibun.bench.load import admission
    from kibun.bench.support import report

    report.run(lambda: admission.measure(quick=quick), as_json=as_json, plot=plot)


@bench_app.command()
def soak(
    quick: Quick = False,
    as_json: JsonOption = False,
    plot: Plot = None,
    streams: Annotated[int | None, typer.Option(help="Streams at a time.", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="Seconds that the clients speak.", min=10)] = None,
) -> None:
    """Real-time streams for ten minutes, and what a dropped stream leaves in memory, beside a leak.

    Linux only; a stub for a model. Exit code 1 where a final was lost or doubled, a turn failed, or the leaking control
    was not found. --json: lost, doubled, unaccounted, failures, final_latency_ms (p50, p95, p99, max from when an
    utterance could be known to be over), health_ms, refusal_ms, clients_late_ms, cores, rss_mb,
    bytes_per_dropped_stream, control_bytes_per_dropped_stream, ok, machine.
    """
    from kibun.bench.load import soak
    from kibun.bench.support import report
    from kibun.bench.support.child import ChildError
    from kibun.client.server_process import ServerStartError

    try:
        payload = report.run(
            lambda: soak.measure(quick=quick, streams=streams, seconds=seconds), as_json=as_json, plot=plot
        )
    except (ChildError, ServerStartError, soak.SoakError) as error:
        typer.echo(f"kibun bench soak: {error}", err=True)
        raise typer.Exit(1) from error
    if not payload["ok"]:
        raise typer.Exit(1)


@bench_app.command()
def faults(
    quick: Quick = False,
    as_json: JsonOption = False,
    seed: Annotated[int, typer.Option(help="Seed of the first run; later runs count up.", min=0)] = 0,
    runs: Annotated[int | None, typer.Option(help="Default: 300, with --quick 3.", min=1)] = None,
    only: Annotated[str | None, typer.Option(help="Name of the one scenario to run.")] = None,
    redis: Annotated[str | None, typer.Option(help="URL of a Redis for conversations; default: start one.")] = None,
    at_once: Annotated[int, typer.Option(help="Runs side by side.", min=1)] = 2,
) -> None:
    """Kill, freeze and cut off workers, servers, networks and stores while clients speak; count what breaks.

    Linux only. Stub models; the same seed makes the same plan. Exit code 1 unless every promise was kept. --json: runs;
    finals_lost, finals_doubled, finals_changed, results_lost, results_doubled, results_incomplete, unknown_status,
    hangs, samples_unaccounted, out_of_order, personality_differences, places_not_freed, servers_ended: 0 each; turns,
    finals, reconnects, resume_s (p50, p99, max), faults by kind, scenarios, left_out (scenario: why), seeds,
    servers_started, violations, machine. After Ctrl-C: of the runs so far.
    """
    from kibun.bench.faults import command as faults
    from kibun.bench.faults.servers import StartFailed
    from kibun.bench.support import report
    from kibun.training.evaluation.report_table import show

    options = faults.Options(seed, runs or (3 if quick else 300), quick, only, redis, at_once)
    if only is not None and only not in faults.names():
        report.fail(f"--only {only}: no such scenario; choose one of {', '.join(faults.names())}")
    if only is not None and (why := faults.missing(options).get(only)):
        report.fail(f"--only {only}: {why}")
    try:
        findings = faults.measure(options)
    except StartFailed as error:
        typer.echo(f"kibun bench faults: {error}", err=True)
        raise typer.Exit(1) from error
    show(faults.tables(findings), as_json=as_json, payload=faults.payload(findings))
    if not findings.ok or findings.interrupted:
        raise typer.Exit(1 if not findings.ok else 130)


# ---- how good the estimates are

Model = Annotated[str, typer.Option(help="Bundle to measure: name or folder.")]


@bench_app.command()
def detection(
    quick: Annotated[bool, typer.Option("--quick", help="espeak-ng only, short scenes, few detectors.")] = False,
    as_json: JsonOption = False,
    recordings: Annotated[
        list[Path] | None, typer.Option(help="Clean speech, a file or a folder; adds real voices. Repeatable.")
    ] = None,
    conversations: Annotated[
        Path | None, typer.Option(help="Folder of 16 kHz FLAC files, each with its speech marked in an RTTM file.")
    ] = None,
) -> None:
    """How well speech is found: VADs and the segmenter against known boundaries, in quiet, in noise, at any level.

    Needs espeak-ng; uses flite if installed. --json: options, conversations (by detector: share of speech lost and of
    other sound taken, utterances, delay of the decision), conditions (every figure by condition and detector),
    front_cpu (ms per audio second), false_utterances, recordings.
    """
    from kibun.bench.accuracy import detection
    from kibun.bench.support import report
    from kibun.training.evaluation.report_table import show

    try:
        payload, tables = detection.measure(quick=quick, recordings=recordings or [], marked=conversations)
    except (RuntimeError, ValueError) as error:
        report.fail(str(error))
    show(tables, as_json=as_json, payload=payload)


@bench_app.command()
def hang_over(
    conversations: Annotated[
        Path | None, typer.Option(help="Folder of 16 kHz FLAC files, each with its speech marked in an RTTM file.")
    ] = None,
    held_out: Annotated[
        list[str] | None, typer.Option("--held-out", help="Name of a conversation to show apart. Repeatable.")
    ] = None,
    manifest: Annotated[
        list[Path] | None, typer.Option(help="Manifest of recordings of one voice each, with categories. Repeatable.")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="Bundle that estimates these. Repeatable.")] = None,
    per_speaker: Annotated[
        int | None, typer.Option(help="At most so many recordings of each speaker, drawn at random.", min=1)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What the audio after an utterance's last speech costs and brings: cut ends, estimates, head start of finals.

    Needs --conversations or --manifest; the split "test" of a manifest is shown apart. --json: ends (by group, detector
    and hang-over in ms: share of speech ends cut off, ms of it; lost and taken; pauses in which somebody went on),
    estimates (by group, model and hang-over: area under the ROC curve, CCC, difference from 200 ms), options, held_out.
    """
    from kibun.bench.accuracy.hang_over import measure
    from kibun.bench.support import report
    from kibun.models.files import BundleError
    from kibun.training.errors import ManifestError
    from kibun.training.evaluation.report_table import show

    if conversations is None and not manifest:
        report.fail("nothing to measure: name --conversations or --manifest")
    _one_thread()
    try:
        payload, tables = measure(conversations, held_out or [], manifest or [], model or [], per_speaker)
    except (BundleError, ManifestError, ValueError) as error:
        report.fail(str(error))
    show(tables, as_json=as_json, payload=payload)


@bench_app.command()
def declarations(
    recordings: Annotated[
        list[Path] | None, typer.Argument(help="Recordings of one voice each, or folders of them; default: generated.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Eight recordings, few rates.")] = False,
    every: Annotated[int, typer.Option(help="Of the recordings, only each so many.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """How often audio that is not what was declared is noticed, and how often audio that is, is suspected.

    --json: recordings, good_streams, false_alarms, false_alarms_by_path, noticed (share noticed, and named as what it
    is, by what was declared and what was sent), cpu_ms_per_stream, seconds (at most, of each stream); sample_rate (the
    same of the rate alone, of streams of 24 s of a speaker, which the column of that name in a labels.csv tells).
    """
    from kibun.bench.accuracy import declarations, declared_rates
    from kibun.bench.support import report
    from kibun.training.evaluation.report_table import show

    try:
        payload, tables = declarations.measure(recordings or [], quick=quick, every=every)
        payload["sample_rate"], rates = declared_rates.measure(recordings or [], quick=quick, every=every)
    except RuntimeError as error:
        report.fail(str(error))
    show([*tables, *rates], as_json=as_json, payload=payload)


@bench_app.command()
def held_out(
    manifest: Annotated[Path, typer.Argument(help="Manifest of a corpus with traits, valence and arousal.")],
    model: Model = "demo-tiny",
    split: Annotated[str, typer.Option(help="Split of the manifest.")] = "test",
    as_json: JsonOption = False,
) -> None:
    """Every output of a bundle, as served, on held-out speakers of a corpus.

    --json: model, speakers, utterances, ccc and ccc_sd by output, expected_error by number of utterances.
    """
    from kibun.bench.accuracy import held_out
    from kibun.bench.support import report
    from kibun.models.files import BundleError
    from kibun.training.errors import ManifestError
    from kibun.training.evaluation.report_table import show

    _one_thread()
    try:
        payload, tables = held_out.measure(model, manifest, split)
    except (BundleError, ManifestError) as error:
        report.fail(str(error))
    show(tables, as_json=as_json, payload=payload)


@bench_app.command()
def acted(
    manifests: Annotated[
        list[Path], typer.Argument(help="Manifests of recordings with a category of emotion, as by `train prepare`.")
    ],
    model: Model = "demo-tiny",
    split: Annotated[str | None, typer.Option(help="Only this split of the manifests.")] = None,
    relative: Annotated[
        bool, typer.Option("--relative", help="Also relative to each speaker's earlier utterances.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the order of a speaker's utterances.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """How well a bundle, as served, ranks acted emotions: aroused above calm, happy above negative; by corpus.

    --json: model, utterances, by_corpus (ranked and means by dimension), mean_auc by dimension.
    """
    from kibun.bench.accuracy.acted import measure
    from kibun.bench.support import report
    from kibun.models.files import BundleError
    from kibun.training.errors import ManifestError
    from kibun.training.evaluation.report_table import show

    _one_thread()
    try:
        payload, table = measure(model, manifests, relative=relative, seed=seed, split=split)
    except (BundleError, ManifestError) as error:
        report.fail(str(error))
    show([table], as_json=as_json, payload=payload)


@bench_app.command()
def conditioning(
    manifest: Annotated[Path, typer.Argument(help="Manifest with a category of emotion, or with valence or arousal.")],
    model: Model = "demo-tiny",
    per_speaker: Annotated[
        int | None, typer.Option(help="At most so many recordings of each speaker, drawn at random.", min=1)
    ] = None,
    conversation: Annotated[int, typer.Option(help="Recordings of a speaker that count as one.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Seed of their order, and of random traits.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Whether emotion conditioned on heard traits is ever worse than on constant ones, on any recordings.

    Traits are heard as served, recording by recording. Emotion is judged by the area under the ROC curve of aroused
    against calm and of happy against negative categories, as by `acted`; without categories by the CCC with valence and
    arousal; differences over speakers. Exit code 1 where heard traits cost. --json: model, clips, speakers, dimensions
    (by name: measure; heard, first, constant, random: value, gain over constant and its 95 % interval), costs (names of
    the dimensions that are worse).
    """
    from kibun.bench.accuracy.conditioning import measure
    from kibun.bench.support import report
    from kibun.models.files import BundleError
    from kibun.training.errors import ManifestError
    from kibun.training.evaluation.report_table import show

    _one_thread()
    try:
        payload, table = measure(model, manifest, per_speaker=per_speaker, conversation=conversation, seed=seed)
    except (BundleError, ManifestError, ValueError) as error:
        report.fail(str(error))
    show([table], as_json=as_json, payload=payload)
    if payload["costs"]:
        raise typer.Exit(1)


@bench_app.command()
def arousal(
    recordings: Annotated[list[Path], typer.Argument(help="Recordings of one voice each.")],
    model: Model = "demo-tiny",
    as_json: JsonOption = False,
) -> None:
    """Whether arousal follows pitch, rate and spectral tilt: pieces of real voices, changed in five steps.

    --json: model, levels, rows (of each recording and cue).
    """
    from kibun.bench.accuracy.arousal import measure
    from kibun.bench.support import report
    from kibun.models.files import BundleError
    from kibun.training.evaluation.report_table import show

    _one_thread()
    try:
        payload, table = measure(model, recordings)
    except BundleError as error:
        report.fail(str(error))
    show([table], as_json=as_json, payload=payload)


@bench_app.command()
def arousal_pooled(
    folder: Annotated[Path, typer.Argument(help="Folder with one folder of recordings per speaker.")],
    model: Model = "demo-tiny",
    seed: Annotated[int, typer.Option(help="Seed of the changes.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Whether arousal ranks aroused above subdued versions where many real speakers are pooled.

    --json: auc_pooled, auc_by_speaker, untouched_mean by speaker, untouched_spread, recordings.
    """
    from kibun.bench.accuracy.arousal import measure_pooled
    from kibun.bench.support import report
    from kibun.models.files import BundleError
    from kibun.training.evaluation.report_table import show

    _one_thread()
    try:
        payload, table = measure_pooled(model, folder, seed)
    except BundleError as error:
        report.fail(str(error))
    show([table], as_json=as_json, payload=payload)


def _one_thread() -> None:
    """Figures of a tiny model are not to depend on how many cores there are."""
    import torch

    torch.set_num_threads(1)
