"""Commands of the benchmarks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from expunge.cli.terminal import Device, Json, Kind, command_line, print_json, progress
from expunge.text.encoders import BUNDLED, HuggingFaceEncoder
from expunge_bench import (
    cifar,
    detect,
    digits,
    folders,
    memory,
    noise_layers,
    prune,
    published,
    ssl_refine,
    text_noise,
)
from expunge_bench import nmtune as heads
from expunge_bench import repair as repairs
from expunge_bench.fields import BenchmarkDataset, Setting, grid

bench = typer.Typer(help="Benchmarks, which know the true labels.", no_args_is_help=True)


@bench.command("digits")
def bench_digits(
    kind: Annotated[list[Kind] | None, typer.Option(help="What is made bad; all kinds.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Share of bad samples; 0.4.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 … n − 1.")] = 5,
    recipe: Annotated[str, typer.Option(help="See `expunge list recipes`.")] = "default",
    out: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path(
        "runs/bench-digits"
    ),
    as_json: Json = False,
) -> None:
    """The demo over kinds of noise and seeds: accuracy, controls, detection, with intervals."""
    with progress() as show:
        rows = digits.bench(
            kinds=tuple(k.value for k in kind or Kind),
            rates=tuple(rate or [0.4]),
            seeds=tuple(range(seeds)),
            recipe=recipe,
            out=out,
            progress=show,
        )
    if as_json:
        print_json(rows)
    else:
        typer.echo(digits.table(rows))
        typer.echo(f"rows: {out / 'rows.jsonl'}")


class State(StrEnum):
    """How the networks of a suite were trained."""

    fresh = "fresh"
    memorised = "memorised"


CifarFolder = Annotated[
    Path, typer.Option(help="train.parquet and test.parquet, or cifar-10-batches-py.")
]
CIFAR = Path("cifar10")


SuiteData = Annotated[
    Path,
    typer.Option(
        help="A folder with CIFAR-10 (see bench memory) or with Speech Commands (train.parquet and "
        "test.parquet: id, audio, label, speaker), or the word digits."
    ),
]
DataFolder = Annotated[
    Path, typer.Option(help="A folder with CIFAR-10 or with Speech Commands, see bench repair.")
]
Noises = Annotated[list[str] | None, typer.Option("--noise", help="Kinds of noise; all.")]
Rates = Annotated[list[float] | None, typer.Option("--rate", help="Shares of bad samples.")]
States = Annotated[list[State] | None, typer.Option("--state", help="States of the network; both.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds 0 … n − 1.")]
Count = Annotated[
    int | None,
    typer.Option(
        "--n", min=100, help="Training samples: 25,000 images, 3,200 clips, 1,000 digits."
    ),
]
GivenLabels = Annotated[str, typer.Option("--labels", help="FILE:COLUMN, for the noise 'labels'.")]
RightLabels = Annotated[
    str, typer.Option("--truth", help="FILE:COLUMN, the right labels of these.")
]


def _suite(
    data: Path,
    noise: list[str] | None,
    rate: list[float] | None,
    state: list[State] | None,
    seeds: int,
    n: int | None,
    labels: str,
    truth: str,
) -> tuple[BenchmarkDataset, list[Setting]]:
    """The data and all settings that were asked for."""
    if bool(labels) != bool(truth):
        raise typer.BadParameter("--labels and --truth go together")
    if labels:
        field: BenchmarkDataset = cifar.Cifar(data, cifar.Extra(labels, truth))
    else:
        field = digits.Digits() if str(data) == "digits" else folders.field_of(data)
    settings = grid(
        field,
        noises=noise or (),
        rates=rate or (),
        states=[s.value for s in state or State],
        seeds=range(seeds),
        n=n,
    )
    return field, settings


def _print_suite(rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    if as_json:
        print_json(rows)
    else:
        typer.echo((out / "table.md").read_text(encoding="utf-8"))


@bench.command("detect")
def bench_detect(
    data: SuiteData = CIFAR,
    noise: Noises = None,
    rate: Rates = None,
    state: States = None,
    detector: Annotated[
        list[str] | None, typer.Option(help="expunge, expunge-fast, a detector, or a peer.")
    ] = None,
    seeds: Seeds = 1,
    n: Count = None,
    labels: GivenLabels = "",
    truth: RightLabels = "",
    out: Annotated[Path, typer.Option(help="Where networks, rows and tables go.")] = Path(
        "runs/bench-detect"
    ),
    as_json: Json = False,
) -> None:
    """Detection: noise × state of the network × detector, against the truth."""
    field, settings = _suite(data, noise, rate, state, seeds, n, labels, truth)
    with progress() as show:
        rows = detect.bench(
            field,
            settings=settings,
            names=detector or detect.DEFAULT,
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("repair")
def bench_repair(
    data: SuiteData = CIFAR,
    noise: Noises = None,
    rate: Rates = None,
    state: States = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="Recipes, controls, oracles and peers; all.")
    ] = None,
    seeds: Seeds = 1,
    n: Count = None,
    labels: GivenLabels = "",
    truth: RightLabels = "",
    out: Annotated[Path, typer.Option(help="Where networks, runs, rows and tables go.")] = Path(
        "runs/bench-repair"
    ),
    as_json: Json = False,
) -> None:
    """Repair: noise × state × recipe, with controls, oracles and peers."""
    field, settings = _suite(data, noise, rate, state, seeds, n, labels, truth)
    with progress() as show:
        rows = repairs.bench(
            field,
            settings=settings,
            names=recipe or (),
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("prune")
def bench_prune(
    data: SuiteData = CIFAR,
    noise: Noises = None,
    rate: Rates = None,
    state: States = None,
    fraction: Annotated[
        list[float] | None, typer.Option(help="Shares of the units; 0.15, 0.3, 0.5, 0.7.")
    ] = None,
    ranking: Annotated[
        list[str] | None, typer.Option(help="default, random-units, magnitude; all.")
    ] = None,
    seeds: Seeds = 1,
    n: Count = None,
    labels: GivenLabels = "",
    truth: RightLabels = "",
    out: Annotated[Path, typer.Option(help="Where networks, runs, rows and tables go.")] = Path(
        "runs/bench-prune"
    ),
    as_json: Json = False,
) -> None:
    """Accuracy against size: how many units are cut, and by which ranking."""
    field, settings = _suite(data, noise, rate, state, seeds, n, labels, truth)
    with progress() as show:
        rows = prune.bench(
            field,
            settings=settings,
            fractions=fraction or prune.FRACTIONS,
            rankings=ranking or prune.RANKINGS,
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("rlap")
def bench_rlap(
    data: DataFolder = CIFAR,
    n: Annotated[
        int | None,
        typer.Option(min=100, help="Training samples, half get noise: 50,000 images, 3,200 clips."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of the noisy model's training: 60 on images, 300 on clips."),
    ] = None,
    width: Annotated[
        int,
        typer.Option(min=1, help="Of the first of four stages, for images; 64 is the ResNet-18."),
    ] = 64,
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where networks, rows and table go.")] = Path(
        "runs/bench-rlap"
    ),
    as_json: Json = False,
) -> None:
    """The published protocol of the method on CIFAR-10 or speech, and our repair beside it."""
    field = folders.field_of(data)
    if isinstance(field, cifar.Cifar):
        protocol = published.on_images(field, epochs=epochs or 60, width=width)
    else:
        protocol = published.on_speech(field, epochs=epochs or 300)
    with progress() as show:
        rows = published.bench(
            protocol,
            n=n or (50_000 if isinstance(field, cifar.Cifar) else 3_200),
            seeds=range(seeds),
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("memory")
def bench_memory(
    data: CifarFolder = CIFAR,
    n: Annotated[list[int] | None, typer.Option(help="Numbers of samples.")] = None,
    views: Annotated[int, typer.Option(min=0, help="Random views; more cost time alone.")] = 1,
    out: Annotated[Path, typer.Option(help="Where rows and table go.")] = Path("runs/bench-memory"),
    as_json: Json = False,
) -> None:
    """Peak memory of scores and partition, over the number of samples."""
    with progress() as show:
        rows = memory.bench(
            cifar.Cifar(data),
            sizes=n or (25_000, 250_000),
            views=views,
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("ssl-refine")
def bench_ssl_refine(
    data: CifarFolder = CIFAR,
    noise: Annotated[
        str, typer.Option(help="instance, instance-raw (Xia et al.) or ambiguous (Chen et al.).")
    ] = "instance",
    rate: Annotated[list[float] | None, typer.Option(help="Shares of wrong labels; 0.4.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods; all.")] = None,
    n: Annotated[int, typer.Option(min=100, help="Training images.")] = 5_000,
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where encoders, rows and tables go.")] = Path(
        "runs/bench-ssl-refine"
    ),
    as_json: Json = False,
) -> None:
    """Noise that depends on the image: labels refined in rounds, and others in the same seconds."""
    with progress() as show:
        rows = ssl_refine.bench(
            cifar.Cifar(data),
            noise=noise,
            rates=rate or ssl_refine.RATES,
            n=n,
            names=method or (),
            seeds=range(seeds),
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("text-noise")
def bench_text_noise(
    data: Annotated[
        Path, typer.Option(help="A folder with bbc_news_summary (Parquet) and wikitext2.")
    ],
    fault: Annotated[list[str] | None, typer.Option(help="Kinds of noise; all.")] = None,
    amount: Annotated[
        list[float] | None,
        typer.Option(help="Shares of noise in all tokens; 0.05, 0.1, 0.25, 0.5."),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Scores and baselines; all.")] = None,
    train: Annotated[
        int | None, typer.Option(min=10, help="Articles to fit on, and others; all.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Articles to measure on; all of them.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="The bundled one, a folder, or a name on the Hub.")
    ] = BUNDLED,
    device: Device = "cpu",
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where filters, rows and tables go.")] = Path(
        "runs/bench-text-noise"
    ),
    as_json: Json = False,
) -> None:
    """Noise in news articles: found by whom, and what summaries gain by its removal."""
    with progress() as show:
        rows = text_noise.bench(
            data,
            encoder=HuggingFaceEncoder.from_pretrained(encoder, device=device),
            encoder_name=encoder,
            faults=fault or text_noise.FAULTS,
            amounts=amount or text_noise.AMOUNTS,
            methods=method or text_noise.METHODS,
            train=train,
            documents=documents,
            seeds=tuple(range(seeds)),
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)


@bench.command("noise-layers")
def bench_noise_layers(
    kind: Annotated[str, typer.Option("--on", help="cifar10, or digits.")] = "cifar10",
    data: CifarFolder = CIFAR,
    method: Annotated[list[str] | None, typer.Option(help="Ways to train; all.")] = None,
    n: Annotated[int | None, typer.Option(min=100, help="Training samples; few.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the training; few.")] = None,
    attacked: Annotated[int, typer.Option(min=10, help="Test samples that are attacked.")] = 400,
    queries: Annotated[int, typer.Option(min=0, help="Of the black-box attack; 0: none.")] = 100,
    factor: Annotated[
        list[float] | None, typer.Option(help="Multiples of σ in the sweep; 0.5 and 2.")
    ] = None,
    relearning: Annotated[
        bool, typer.Option(help="Instead: does noise keep a repaired model from relearning?")
    ] = False,
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where rows and tables go.")] = Path(
        "runs/bench-noise-layers"
    ),
    as_json: Json = False,
) -> None:
    """Noise inside the layers, sampled and in closed form, and training on attacks: robustness."""
    shared: dict[str, Any] = {"folder": data, "n": n, "out": out, "command": command_line()}
    shared |= {"seeds": tuple(range(seeds))}
    with progress() as show:
        if relearning:
            shared |= {"epochs": (epochs,)} if epochs else {}
            rows = noise_layers.relearning(kind, **shared, progress=show)
        else:
            shared |= {"attacked": attacked, "queries": queries, "epochs": epochs}
            shared |= {"factors": tuple(factor)} if factor else {}
            rows = noise_layers.bench(kind, methods=method or (), **shared, progress=show)
    if as_json:
        print_json(rows)
    else:
        typer.echo((out / "table.md").read_text(encoding="utf-8"))
        typer.echo(f"rows: {out / 'rows.jsonl'}")


@bench.command("nmtune")
def bench_nmtune(
    data: Annotated[
        Path, typer.Option(help="A folder with cifar10, bbc_news_summary (Parquet), or both.")
    ],
    noise: Annotated[
        list[float] | None,
        typer.Option(help="Shares of wrong labels in pre-training; 0, 0.05, 0.1, 0.2, 0.3."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="linear, mlp, paper, code (all); adapted, where the encoder learns too."),
    ] = None,
    pretrain: Annotated[int, typer.Option(min=100, help="Images of the pre-training.")] = 8_000,
    epochs: Annotated[int, typer.Option(min=1, help="Of the pre-training.")] = 8,
    tune: Annotated[int, typer.Option(min=50, help="Images that heads are tuned on.")] = 1_000,
    test: Annotated[int, typer.Option(min=50, help="Images to test on.")] = 2_000,
    articles: Annotated[
        list[int] | None, typer.Option(help="Articles that heads are tuned on; 100, 1000.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Of the articles: the bundled one, a folder, or a name on the Hub.")
    ] = BUNDLED,
    device: Device = "cpu",
    seeds: Seeds = 1,
    out: Annotated[Path, typer.Option(help="Where encoders, features, rows and tables go.")] = Path(
        "runs/bench-nmtune"
    ),
    as_json: Json = False,
) -> None:
    """Heads on noisily pre-trained encoders: in and out of the domain; and on news."""
    sizes = heads.Sizes(pretrain, epochs, tune, test)
    found = heads.sources(
        data,
        sizes=sizes,
        noises=noise or heads.NOISES,
        articles=articles or heads.ARTICLES,
        encoder=lambda: HuggingFaceEncoder.from_pretrained(encoder, device=device),
        encoder_name=encoder,
        device=device,
        out=out,
    )
    with progress() as show:
        rows = heads.bench(
            found,
            methods=method or heads.METHODS,
            seeds=tuple(range(seeds)),
            device=device,
            out=out,
            command=command_line(),
            progress=show,
        )
    _print_suite(rows, out, as_json)
