"""`edgellm serve`: answer whoever speaks OpenAI's API."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgellm.app.defaults import DEFAULT_TARGET
from edgellm.cli import _options as opt
from edgellm.cli._output import out
from edgellm.cli._sampling_options import ChosenSampling, takes_sampling

if TYPE_CHECKING:
    from edgellm.app.loading import Pair
    from edgellm.app.served_models import ServedModels
    from edgellm.server.settings import Settings

_SERVER = "Server"
_MAX_KEYS_BYTES = 2**16


def _keep_alive(text: str) -> str:
    """Found to be a time. Raises BadSetting."""
    from edgellm.app.served_pairs import keep_alive_s

    keep_alive_s(text)
    return text


Models = Annotated[
    list[str] | None,
    typer.Argument(
        envvar="EDGELLM_MODEL",
        show_envvar=False,
        show_default=False,
        help=f"Catalogue names, user/repo[:QUANT], or files; {DEFAULT_TARGET} if none is named. The first is loaded at "
        "once and answers where a client names none, others when they are asked for.",
    ),
]
Host = Annotated[
    str, opt.option("--host", metavar="ADDRESS", help="Elsewhere than here needs an API key.", panel=_SERVER)
]
Port = Annotated[int, opt.option("--port", min=0, max=65535, metavar="N", help="0: any that is free.", panel=_SERVER)]
Queue = Annotated[
    int,
    opt.option(
        "--queue",
        min=0,
        max=100_000,
        metavar="N",
        help="Requests that may wait; more are told to come back.",
        panel=_SERVER,
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    opt.option("--api-key-file", metavar="FILE", help="Keys, one a line, of which clients need one.", panel=_SERVER),
]
Alias = Annotated[
    list[str],
    opt.option(
        "--alias",
        metavar="NAME[=MODEL]",
        help="A further name of a model, of the first if none is said. May be repeated; several in the variable are "
        "quoted each.",
        panel=_SERVER,
    ),
]
AllLocal = Annotated[bool, opt.option("--all-local", help="Offer every model that is on this disk too.", panel=_SERVER)]
KeepAlive = Annotated[
    str | None,
    opt.option(
        "--keep-alive",
        metavar="TIME",
        callback=opt.checked(_keep_alive),
        show_default=False,
        help="Let a model go that nobody used for so long: 5m, 30s, 1h, 0, forever. One model stays if not given, "
        "several 5m each.",
        panel=_SERVER,
    ),
]
Origin = Annotated[
    list[str],
    opt.option(
        "--origin",
        metavar="URL",
        help="Pages of this site may ask too, beside those of this machine. May be repeated; several in the variable "
        "are quoted each.",
        panel=_SERVER,
    ),
]

LogRequests = Annotated[
    bool,
    opt.option(
        "--log-requests",
        help="Tell of each request in a line: what it came to and what it cost, not what was said.",
        panel=_SERVER,
    ),
]


@takes_sampling()
def serve(
    model: Models = [],  # noqa: B006
    host: Host = "127.0.0.1",
    port: Port = 8080,
    parallel: opt.Parallel = 1,
    prefix_cache: opt.PrefixCache = None,
    queue: Queue = 64,
    api_key_file: ApiKeyFile = None,
    alias: Alias = [],  # noqa: B006
    all_local: AllLocal = False,
    keep_alive: KeepAlive = None,
    origin: Origin = [],  # noqa: B006
    log_requests: LogRequests = False,
    lora: opt.Lora = [],  # noqa: B006
    draft: opt.Draft = None,
    draft_adapter: opt.DraftAdapter = None,
    draft_tokens: opt.DraftTokens = None,
    no_learn: opt.NoLearn = False,
    assume_cost: opt.AssumeCost = None,
    no_copy: opt.NoCopy = False,
    merged_probs: opt.MergedProbs = False,
    exact: opt.Exact = False,
    sampling: ChosenSampling = {},  # noqa: B006
    ctx: opt.Ctx = None,
    kv: opt.Kv = None,
    budget: opt.Budget = None,
    plan: opt.Plan = None,
    threads: opt.Threads = None,
    main_device: opt.MainDevice = "auto",
    gpu_layers: opt.GpuLayers = -1,
    draft_device: opt.DraftDevice = "auto",
    draft_gpu_layers: opt.DraftGpuLayers = -1,
    offline: opt.Offline = False,
) -> None:
    """Answer programs that speak OpenAI's API, at http://127.0.0.1:8080/v1, while a small model drafts ahead.

    Sampling is of requests that leave it open. The first Ctrl-C lets answers end, the second ends them. Of several
    models, --draft, --draft-adapter, --lora and --plan are the first's, but for `--draft none`, which is of all.
    """
    from edgellm.app.serving import check_installed

    check_installed()
    from edgellm.app.defaults import asked_bytes, cache_type, drafting_options, prefix_options
    from edgellm.app.loading import prepare
    from edgellm.app.served_pairs import Offer
    from edgellm.cli._listener import RUNNING, TERMINAL
    from edgellm.runtime.bringup.planning import EngineOptions
    from edgellm.server.listening import HttpServer, listen, url_of
    from edgellm.server.service import Service

    if not all(name and name.isprintable() for name in alias):
        raise typer.BadParameter("--alias is empty or cannot be shown: give a name")
    settings = _settings(host, _read_keys(api_key_file), queue, origin, sampling, log_requests=log_requests)
    options = EngineOptions(
        n_ctx=ctx,
        copy=not no_copy,
        **drafting_options(draft_tokens, learn=not no_learn, assume_cost=assume_cost, merged_probs=merged_probs),
        exact=exact,
        kv=cache_type(kv),
        n_threads=threads,
        main_device=main_device,
        n_gpu_layers=gpu_layers,
        draft_device=draft_device,
        n_draft_gpu_layers=draft_gpu_layers,
        budget_bytes=asked_bytes(budget),
        n_parallel=parallel,
        **prefix_options(prefix_cache),
    )
    with listen(host, port) as sock:  # before anything is loaded: a port that is taken is told at once
        pair = prepare(
            model[0] if model else None,
            draft,
            options,
            plan=plan,
            loras=lora,
            draft_adapter=draft_adapter,
            offline=offline,
            listener=TERMINAL,
        )
        offer = Offer(model or [pair.target.name], pair, options, draft, alias, offline=offline, listener=TERMINAL)
        with offer.models(all_local=all_local, keep_alive=keep_alive) as models:
            models.load(models.first)
            url = url_of(sock)
            HttpServer(Service(models, settings, RUNNING), lambda: _tell_ready(models, url, pair)).serve_on(sock)
    RUNNING.note("the server has ended")


def _settings(
    host: str, keys: tuple[str, ...], n_queue: int, origins: list[str], sampling: ChosenSampling, *, log_requests: bool
) -> Settings:
    """How the server behaves. Raises CannotServe: others would reach it without a key."""
    from edgellm.app.serving import CannotServe
    from edgellm.runtime.sampling import Sampling
    from edgellm.server.listening import is_loopback
    from edgellm.server.settings import Settings

    if not is_loopback(host) and not keys:
        raise CannotServe(f"on {host} others reach the server: give --api-key-file FILE, or leave out --host")
    return Settings(
        sampling=Sampling(**sampling),
        n_queue=n_queue,
        api_keys=keys,
        origins=tuple(url.rstrip("/") for url in origins),
        is_loopback=is_loopback(host),
        logs_requests=log_requests,
    )


def _tell_ready(models: ServedModels, url: str, pair: Pair) -> None:
    drafted = f", drafted by {pair.draft.name}" if pair.draft else ""
    first = models.first
    at_once = f" for each of {first.n_parallel} conversations" if first.n_parallel > 1 else ""
    out.note(f"{first.name}{drafted}, context {first.n_ctx:,} tokens{at_once}")
    out.note(f"API: {url}/v1   page: {url}   (Ctrl-C ends it)")


def _read_keys(path: Path | None) -> tuple[str, ...]:
    """The lines of a file that are keys."""
    if path is None:
        return ()
    with path.open("rb") as file:
        data = file.read(_MAX_KEYS_BYTES + 1)
    try:
        lines = [line.strip() for line in data.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{path} is no text: write a key in each line") from error
    keys = tuple(filter(None, lines))
    if not keys or len(data) > _MAX_KEYS_BYTES or not all(key.isprintable() and key.isascii() for key in keys):
        raise typer.BadParameter(f"{path} holds no keys: write one in each line, in letters and digits")
    return keys
