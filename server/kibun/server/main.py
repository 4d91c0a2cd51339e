"""`kibun serve`: the command and its options."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from kibun.server.observability import logs

logs.quiet_grpc()  # before grpc is imported, by those below

from kibun.models.types import Precision  # noqa: E402
from kibun.server.api.quota import TenantLimits  # noqa: E402
from kibun.server.api.service import ServiceLimits  # noqa: E402
from kibun.server.audio.vad import VadName  # noqa: E402
from kibun.server.errors import StartError  # noqa: E402
from kibun.server.fronts import Fronts  # noqa: E402
from kibun.server.inference.admission import RUNNING, TARGET_DELAY_S  # noqa: E402
from kibun.server.inference.worker_pool import WorkerTimes  # noqa: E402
from kibun.server.inference.worker_start import forbid_core_files  # noqa: E402
from kibun.server.observability.watchdog import WatchdogTimes  # noqa: E402
from kibun.server.serving import Server  # noqa: E402
from kibun.server.session.events import Limits  # noqa: E402
from kibun.server.settings import Settings  # noqa: E402

LAST_RESORT_S = 0.3
DEFAULTS = Settings(models=())
_MODELS, _SECURITY, _LIMITS, _WATCHING = "Models", "Security", "Limits", "Watching"  # of --help

HOW_TO_GET_A_MODEL = """kibun serve needs a model:
  --model demo-tiny    comes with kibun, trained on generated speech, for trying the software
  --model DIR          a bundle; `kibun models build --help` shows how to make one
  --model ORG/NAME@COMMIT  a bundle on the Hugging Face hub"""


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            envvar="KIBUN_MODEL",
            help="Bundle: a folder, a name, or ORG/NAME@COMMIT of the Hugging Face hub. Repeatable (in KIBUN_MODEL:"
            " with blanks between); the first is the default.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    host: Annotated[str, typer.Option(envvar="KIBUN_HOST", help="Address to listen on.")] = DEFAULTS.host,
    port: Annotated[
        int, typer.Option(envvar="KIBUN_PORT", help="Port; 0 picks a free one.", min=0, max=65535)
    ] = DEFAULTS.port,
    port_file: Annotated[Path | None, typer.Option(help="Write the port to this file once ready.")] = None,
    fronts: Annotated[
        int,
        typer.Option(
            envvar="KIBUN_FRONTS",
            help="Processes that serve the port, each with a copy of the models and its share of --threads; needs"
            " --store redis://… (docs/operations.md).",
            min=1,
            max=256,
        ),
    ] = DEFAULTS.fronts,
    device: Annotated[
        str, typer.Option(envvar="KIBUN_DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODELS)
    ] = DEFAULTS.device,
    threads: Annotated[
        int | None,
        typer.Option(
            envvar="KIBUN_THREADS",
            help="Inference threads, of all fronts; default: one per core.",
            min=1,
            rich_help_panel=_MODELS,
        ),
    ] = DEFAULTS.threads,
    allow_untrained: Annotated[
        bool, typer.Option(help="Serve a bundle whose heads were never trained.", rich_help_panel=_MODELS)
    ] = DEFAULTS.allow_untrained,
    precision: Annotated[
        Precision,
        typer.Option(
            envvar="KIBUN_PRECISION",
            help="Of matrix products. auto: bf16 where it is faster on this machine and the bundle allows it.",
            rich_help_panel=_MODELS,
        ),
    ] = DEFAULTS.precision,
    vad: Annotated[
        VadName,
        typer.Option(
            envvar="KIBUN_VAD",
            help="Voice activity detector; webrtc takes less CPU, but much noise for speech.",
            rich_help_panel=_MODELS,
        ),
    ] = DEFAULTS.vad,
    max_streams: Annotated[
        int,
        typer.Option(envvar="KIBUN_MAX_STREAMS", help="Streams open at a time.", min=1, rich_help_panel=_LIMITS),
    ] = DEFAULTS.limits.max_streams,
    target_delay: Annotated[
        float | None,
        typer.Option(
            envvar="KIBUN_TARGET_DELAY",
            metavar="SECONDS",
            help="New streams are refused where finals would wait longer than this for a worker: the mean wait that is"
            f" predicted, not a percentile. Next turns of running conversations come in up to {RUNNING:g} times it."
            f" Default: what pays on this machine, at most {TARGET_DELAY_S:g}.",
            show_default=False,
            rich_help_panel=_LIMITS,
        ),
    ] = DEFAULTS.target_delay_s,
    max_connections: Annotated[
        int,
        typer.Option(help="TCP connections open at a time; further ones are closed.", min=1, rich_help_panel=_LIMITS),
    ] = DEFAULTS.max_connections,
    max_stream_seconds: Annotated[
        float, typer.Option(help="Seconds of audio in one stream.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.stream_limits.max_stream_s,
    idle_timeout: Annotated[
        float,
        typer.Option(help="Seconds without a message after which a stream ends.", min=0.1, rich_help_panel=_LIMITS),
    ] = DEFAULTS.stream_limits.idle_timeout_s,
    config_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a stream's config.", min=0.1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.limits.config_timeout_s,
    slow_reader_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds after which a stream ends whose client does not read a result.",
            min=0.1,
            rich_help_panel=_LIMITS,
        ),
    ] = DEFAULTS.limits.slow_reader_timeout_s,
    max_backlog: Annotated[
        float, typer.Option(help="Seconds of speech that may wait for analysis.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.stream_limits.max_backlog_s,
    backlog_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds without progress on a full backlog after which a stream ends.",
            min=0.1,
            rich_help_panel=_LIMITS,
        ),
    ] = DEFAULTS.stream_limits.backlog_timeout_s,
    conversation_ttl: Annotated[
        float,
        typer.Option(
            help="Seconds that a conversation is stored after its last change.", min=1, rich_help_panel=_LIMITS
        ),
    ] = DEFAULTS.limits.conversation_ttl_s,
    max_conversation_ttl: Annotated[
        float, typer.Option(help="Seconds that a client may ask for at most.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.limits.max_conversation_ttl_s,
    max_message_rate: Annotated[
        float,
        typer.Option(help="Messages per second read from one stream; more wait.", min=1, rich_help_panel=_LIMITS),
    ] = DEFAULTS.stream_limits.max_messages_per_s,
    store: Annotated[
        str,
        typer.Option(
            envvar="KIBUN_STORE",
            metavar="memory|URL",
            help="Where conversations are stored; redis://, rediss:// or unix:// for several servers (docs/store.md).",
        ),
    ] = DEFAULTS.store,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="KIBUN_TOKEN_FILE",
            help="Lines of TENANT SHA256-OF-TOKEN and optionally streams=N audio_s_per_minute=N messages_per_s=N"
            " expires=TIME. SIGHUP reloads it and the TLS files.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tenant_streams: Annotated[
        int | None, typer.Option(help="Streams open at a time, per tenant.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.limits.tenant.streams,
    tenant_audio: Annotated[
        float | None, typer.Option(help="Seconds of audio per minute, per tenant.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.limits.tenant.audio_s_per_minute,
    tenant_messages: Annotated[
        float | None, typer.Option(help="Messages per second, per tenant.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.limits.tenant.messages_per_s,
    tenant_conversations: Annotated[
        int, typer.Option(help="Conversations stored at a time, per tenant.", min=1, rich_help_panel=_LIMITS)
    ] = DEFAULTS.tenant_conversations,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="KIBUN_TLS_CERT", help="Certificate chain, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="KIBUN_TLS_KEY", help="Its private key, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_client_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="KIBUN_TLS_CLIENT_CA",
            help="Require client certificates from this CA, PEM.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            help="Allow a public address, and a Redis on another machine, without TLS.", rich_help_panel=_SECURITY
        ),
    ] = DEFAULTS.insecure,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            envvar="KIBUN_METRICS_PORT",
            help="Port for Prometheus (/metrics) and probes (/healthz, /readyz), plain HTTP; 0 picks a free one."
            " Without it there are none.",
            min=0,
            max=65535,
            rich_help_panel=_WATCHING,
        ),
    ] = DEFAULTS.metrics_port,
    metrics_host: Annotated[
        str,
        typer.Option(
            envvar="KIBUN_METRICS_HOST",
            help="Address of --metrics-port. Needs no TLS: it shows no personal data, but anyone who can reach it sees"
            " how busy this server is.",
            rich_help_panel=_WATCHING,
        ),
    ] = DEFAULTS.metrics_host,
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base URL of an OpenTelemetry collector for traces (OTLP over HTTP), such as http://127.0.0.1:4318."
            " Default: OTEL_EXPORTER_OTLP_ENDPOINT, if set.",
            rich_help_panel=_WATCHING,
        ),
    ] = DEFAULTS.otlp_endpoint,
    log_format: Annotated[
        logs.Format,
        typer.Option(envvar="KIBUN_LOG_FORMAT", help="Format of the lines on stderr.", rich_help_panel=_WATCHING),
    ] = "text",
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        typer.Option(
            envvar="KIBUN_LOG", help="INFO: a line per call.", case_sensitive=False, rich_help_panel=_WATCHING
        ),
    ] = "WARNING",
    with_reflection: Annotated[
        bool,
        typer.Option(
            "--reflection",
            help="Offer gRPC server reflection, without a token: for development.",
            rich_help_panel=_SECURITY,
        ),
    ] = DEFAULTS.reflection,
    grace: Annotated[
        float, typer.Option(envvar="KIBUN_GRACE", help="Seconds that open streams get to end on SIGTERM.", min=0)
    ] = DEFAULTS.grace_s,
    worker_deadline: Annotated[float, typer.Option(hidden=True, min=0.1)] = DEFAULTS.worker_times.batch_s,
    watchdog_exit: Annotated[float, typer.Option(hidden=True, min=0.1)] = DEFAULTS.watchdog.exit_after_s,
    loader: Annotated[str, typer.Option(hidden=True)] = DEFAULTS.loader,
    until_stdin_ends: Annotated[bool, typer.Option("--until-stdin-ends", hidden=True)] = False,
) -> None:
    """Run the analysis server.

    SIGTERM and SIGINT drain it: open streams get --grace to end. A second signal stops it at once.

    Exit codes: 0 stopped by a signal; 1 could not start (see stderr); 2 an option is not allowed; 70 its event
    loop was blocked for 10 s. Start it again after 70, and after it was killed.
    """
    logs.configure(log_level, log_format)
    forbid_core_files()
    if until_stdin_ends:
        threading.Thread(target=_stop_at_the_end, name="stdin", daemon=True).start()
    if not model:
        _exit(HOW_TO_GET_A_MODEL)
    try:
        settings = Settings(
            models=tuple(model),
            host=host,
            port=port,
            port_file=port_file,
            fronts=fronts,
            device=device,
            threads=threads,
            allow_untrained=allow_untrained,
            precision=precision,
            vad=vad,
            store=store,
            tenant_conversations=tenant_conversations,
            token_file=token_file,
            tls_cert=tls_cert,
            tls_key=tls_key,
            tls_client_ca=tls_client_ca,
            insecure=insecure,
            reflection=with_reflection,
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            otlp_endpoint=otlp_endpoint,
            grace_s=grace,
            target_delay_s=target_delay,
            max_connections=max_connections,
            loader=loader,
            worker_times=WorkerTimes(batch_s=worker_deadline),
            watchdog=WatchdogTimes(exit_after_s=watchdog_exit),
            limits=ServiceLimits(
                max_streams=max_streams,
                config_timeout_s=config_timeout,
                slow_reader_timeout_s=slow_reader_timeout,
                conversation_ttl_s=conversation_ttl,
                max_conversation_ttl_s=max_conversation_ttl,
                tenant=TenantLimits(
                    streams=tenant_streams, audio_s_per_minute=tenant_audio, messages_per_s=tenant_messages
                ),
            ),
            stream_limits=Limits(
                max_stream_s=max_stream_seconds,
                idle_timeout_s=idle_timeout,
                max_messages_per_s=max_message_rate,
                max_backlog_s=max_backlog,
                backlog_timeout_s=backlog_timeout,
            ),
        )
        asyncio.run(_serve(settings))
    except StartError as error:
        logs.report(str(error), "CRITICAL", who="kibun serve")
        raise SystemExit(1) from None


async def _serve(settings: Settings) -> None:
    await (Server(settings) if settings.fronts == 1 else Fronts(settings)).run()
    # Everything is closed. A thread that hangs, such as in a DNS look-up, must not keep the process alive.
    last_resort = threading.Timer(LAST_RESORT_S, _end)
    last_resort.daemon = True
    last_resort.start()


def _stop_at_the_end() -> None:
    """Drains once the program that started this server for itself is no more, however it ended."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _end() -> NoReturn:
    logs.flush()
    os._exit(0)


def _exit(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(1)
