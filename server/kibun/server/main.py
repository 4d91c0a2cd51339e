"""`kibun serve`: the command and its options."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from kibun.server.observability import logs

logs.quiet_grpc()  # which is imported by those below

from kibun.server.api.convert import MAX_TTL_S  # noqa: E402
from kibun.server.api.quota import TenantLimits  # noqa: E402
from kibun.server.api.service import ServiceLimits  # noqa: E402
from kibun.server.conversation.tenant_limit import TENANT_CONVERSATIONS  # noqa: E402
from kibun.server.errors import StartError  # noqa: E402
from kibun.server.inference.worker_pool import WorkerTimes  # noqa: E402
from kibun.server.observability.watchdog import WatchdogTimes  # noqa: E402
from kibun.server.serving import Server  # noqa: E402
from kibun.server.session.events import Limits  # noqa: E402
from kibun.server.settings import REAL_LOADER, Settings  # noqa: E402

LAST_RESORT_S = 0.3
_MODELS, _SECURITY, _LIMITS, _WATCHING = "Models", "Security", "Limits", "Watching"  # of --help

HOW_TO_GET_A_MODEL = """kibun serve needs a model:
  --model demo-tiny    comes with kibun, trained on generated speech, for trying the software
  --model DIR          a bundle; `kibun models build --help` tells how to make one"""


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(help="Bundle: a folder or a name. Repeatable; the first is the default.", rich_help_panel=_MODELS),
    ] = None,
    host: Annotated[str, typer.Option(envvar="KIBUN_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="KIBUN_PORT", help="Port; 0 picks a free one.", min=0, max=65535)] = 50051,
    port_file: Annotated[Path | None, typer.Option(help="Write the port here once ready.")] = None,
    device: Annotated[
        str, typer.Option(envvar="KIBUN_DEVICE", help="auto, cpu, cuda or cuda:N.", rich_help_panel=_MODELS)
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="Inference threads; default: one per core.", min=1, rich_help_panel=_MODELS)
    ] = None,
    allow_untrained: Annotated[
        bool, typer.Option(help="Serve a bundle whose heads were never trained.", rich_help_panel=_MODELS)
    ] = False,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(
            help="Of matrix products; auto: bf16 where it is faster here and the bundle bears it.",
            rich_help_panel=_MODELS,
        ),
    ] = "auto",
    vad: Annotated[
        Literal["webrtc", "silero"], typer.Option(help="Voice activity detector.", rich_help_panel=_MODELS)
    ] = "webrtc",
    max_streams: Annotated[
        int, typer.Option(envvar="KIBUN_MAX_STREAMS", help="Streams at a time.", min=1, rich_help_panel=_LIMITS)
    ] = 256,
    max_connections: Annotated[
        int, typer.Option(help="TCP connections at a time; more are closed at once.", min=1, rich_help_panel=_LIMITS)
    ] = 4096,
    max_stream_seconds: Annotated[
        float, typer.Option(help="Audio that one stream may carry.", min=1, rich_help_panel=_LIMITS)
    ] = 4 * 3600.0,
    idle_timeout: Annotated[
        float, typer.Option(help="Seconds without a message that end a stream.", min=0.1, rich_help_panel=_LIMITS)
    ] = 600.0,
    config_timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a stream's config.", min=0.1, rich_help_panel=_LIMITS)
    ] = 10.0,
    slow_reader_timeout: Annotated[
        float,
        typer.Option(help="Seconds without a result being read that end a stream.", min=0.1, rich_help_panel=_LIMITS),
    ] = 10.0,
    max_backlog: Annotated[
        float, typer.Option(help="Seconds of speech that may wait for analysis.", min=1, rich_help_panel=_LIMITS)
    ] = 60.0,
    backlog_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds without progress on a full backlog that end a stream.", min=0.1, rich_help_panel=_LIMITS
        ),
    ] = 30.0,
    conversation_ttl: Annotated[
        float, typer.Option(help="Seconds to keep a conversation.", min=1, rich_help_panel=_LIMITS)
    ] = 1800.0,
    max_conversation_ttl: Annotated[
        float,
        typer.Option(
            help="Seconds to keep a conversation that a client may ask for at most.", min=1, rich_help_panel=_LIMITS
        ),
    ] = MAX_TTL_S,
    max_message_rate: Annotated[
        float,
        typer.Option(
            help="Messages per second that are read of one stream; more wait.", min=1, rich_help_panel=_LIMITS
        ),
    ] = 1000.0,
    store: Annotated[
        str,
        typer.Option(
            envvar="KIBUN_STORE",
            metavar="memory|URL",
            help="Where conversations are kept: redis://, rediss:// or unix:// for several servers (docs/store.md).",
        ),
    ] = "memory",
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="KIBUN_TOKEN_FILE",
            help="Lines of TENANT SHA256-OF-TOKEN and, as wanted, streams=N audio_s_per_minute=N messages_per_s=N"
            " expires=TIME. SIGHUP reads it and the TLS files again.",
            rich_help_panel=_SECURITY,
        ),
    ] = None,
    tenant_streams: Annotated[
        int | None, typer.Option(help="Streams at a time of each tenant.", min=1, rich_help_panel=_LIMITS)
    ] = None,
    tenant_audio: Annotated[
        float | None, typer.Option(help="Seconds of audio per minute of each tenant.", min=1, rich_help_panel=_LIMITS)
    ] = None,
    tenant_messages: Annotated[
        float | None, typer.Option(help="Messages per second of each tenant.", min=1, rich_help_panel=_LIMITS)
    ] = None,
    tenant_conversations: Annotated[
        int, typer.Option(help="Conversations kept of each tenant at a time.", min=1, rich_help_panel=_LIMITS)
    ] = TENANT_CONVERSATIONS,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="KIBUN_TLS_CERT", help="Certificate chain, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="KIBUN_TLS_KEY", help="Its private key, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Demand client certificates of this CA, PEM.", rich_help_panel=_SECURITY)
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            help="Listen on a public address, and use a Redis on another machine, without TLS.",
            rich_help_panel=_SECURITY,
        ),
    ] = False,
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
    ] = None,
    metrics_host: Annotated[
        str,
        typer.Option(
            envvar="KIBUN_METRICS_HOST",
            help="Address of --metrics-port. Needs no TLS: nothing there tells of people, but whoever reaches it sees"
            " how busy this server is.",
            rich_help_panel=_WATCHING,
        ),
    ] = "127.0.0.1",
    otlp_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Base URL of an OpenTelemetry collector for traces (OTLP over HTTP), such as http://127.0.0.1:4318."
            " Without it, as OTEL_EXPORTER_OTLP_ENDPOINT says.",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(envvar="KIBUN_LOG_FORMAT", help="Of the lines on stderr.", rich_help_panel=_WATCHING),
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
    ] = False,
    grace: Annotated[float, typer.Option(help="Seconds that open streams get on SIGTERM.", min=0)] = 30.0,
    worker_deadline: Annotated[float, typer.Option(hidden=True, min=0.1)] = WorkerTimes.batch_s,
    watchdog_exit: Annotated[float, typer.Option(hidden=True, min=0.1)] = WatchdogTimes.exit_after_s,
    loader: Annotated[str, typer.Option(hidden=True)] = REAL_LOADER,
) -> None:
    """Run the analysis server.

    SIGTERM and SIGINT drain it: open streams get --grace to end; the second signal stops it at once.

    Exit codes: 0 it was stopped by a signal; 1 it could not start, stderr says why; 2 an option is not allowed; 70 its
    event loop was blocked for 10 s. After 70, and after being killed, it is to be started again.
    """
    logs.configure(log_level, log_format)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold audio; the worker inherits this
    if not model:
        _exit(HOW_TO_GET_A_MODEL)
    try:
        settings = Settings(
            models=tuple(model),
            host=host,
            port=port,
            port_file=port_file,
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
            max_connections=max_connections,
            loader=loader,
            worker_times=WorkerTimes(batch_s=worker_deadline, batch_s_per_audio_s=worker_deadline / 5),
            watchdog=WatchdogTimes(exit_after_s=watchdog_exit),
            limits=ServiceLimits(
                max_streams,
                config_timeout,
                slow_reader_timeout,
                conversation_ttl,
                TenantLimits(tenant_streams, tenant_audio, tenant_messages),
                max_conversation_ttl,
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
        logs.say(str(error), "CRITICAL", who="kibun serve")
        raise SystemExit(1) from None


async def _serve(settings: Settings) -> None:
    await Server(settings).run()
    # All is closed. A thread that hangs (in a look-up of a name, say) must not keep the process.
    last_resort = threading.Timer(LAST_RESORT_S, os._exit, (0,))
    last_resort.daemon = True
    last_resort.start()


def _exit(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(1)
