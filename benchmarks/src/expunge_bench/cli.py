"""The commands of `expunge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.terminal import Device, Kind
from expunge.errors import DataError
from expunge.text.encoders import BUNDLED, HuggingFaceEncoder
from expunge_bench import (
    corrective,
    detect,
    digits,
    memory,
    nmtune,
    noise_layers,
    prune,
    repair,
    review,
    rlap,
    scale,
    ssl_refine,
    text_noise,
    without_model,
    zoo,
)
from expunge_bench.cifar import Cifar
from expunge_bench.corrective_data import MANIPULATIONS
from expunge_bench.digits import Digits
from expunge_bench.folders import dataset_in_folder
from expunge_bench.options import (
    CIFAR_FOLDER,
    BenchmarkRun,
    CifarFolder,
    DataSet,
    ImageOrSpeechFolder,
    State,
    bench,
    bench_command,
)
from expunge_bench.results import Row
from expunge_bench.speech import Speech
from expunge_bench.zoo_data import Part

__all__ = ["bench"]


@bench_command("digits", default_seeds=5)
def bench_digits(
    run: BenchmarkRun,
    kind: Annotated[list[Kind] | None, typer.Option(help="What is noisy. Default: all.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Noise rates. Default: 0.4.")] = None,
    recipe: Annotated[str, typer.Option(help="See `expunge list recipes`.")] = "default",
) -> list[Row]:
    """The demo over kinds of noise and seeds: accuracy, baselines, detection, with intervals."""
    return digits.bench(
        kinds=[k.value for k in kind or Kind],
        rates=rate or [0.4],
        seeds=run.seeds,
        recipe=recipe,
        **run.options,
    )


@bench_command("detect", has_grid=True)
def bench_detect(
    run: BenchmarkRun,
    detector: Annotated[
        list[str] | None, typer.Option(help="expunge, expunge-fast, a detector or a peer.")
    ] = None,
) -> list[Row]:
    """Detection: noise × state of the network × detector, against the ground truth."""
    names = detector or detect.DEFAULT_NAMES
    return detect.bench(run.dataset, settings=run.settings, names=names, **run.options)


@bench_command("repair", has_grid=True)
def bench_repair(
    run: BenchmarkRun,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="Recipes, baselines, oracles and peers. Default: all."),
    ] = None,
) -> list[Row]:
    """Repair: noise × state of the network × recipe, with baselines, oracles and peers."""
    names = recipe or ()
    return repair.bench(run.dataset, settings=run.settings, names=names, **run.options)


@bench_command("prune", has_grid=True)
def bench_prune(
    run: BenchmarkRun,
    fraction: Annotated[
        list[float] | None,
        typer.Option(help="Pruned fractions of the units. Default: 0.15, 0.3, 0.5, 0.7."),
    ] = None,
    ranking: Annotated[
        list[str] | None,
        typer.Option(help="Rankings: default, random-units, magnitude. Default: all."),
    ] = None,
) -> list[Row]:
    """Accuracy against size, by pruned fraction and ranking."""
    return prune.bench(
        run.dataset,
        settings=run.settings,
        fractions=fraction or prune.FRACTIONS,
        rankings=ranking or prune.RANKINGS,
        **run.options,
    )


@bench_command("corrective")
def bench_corrective(
    run: BenchmarkRun,
    data: Annotated[
        Path, typer.Option(help="Folder with CIFAR-10, or the word digits.")
    ] = CIFAR_FOLDER,
    manipulation: Annotated[
        list[str] | None, typer.Option(help="poison, confusion. Default: both.")
    ] = None,
    known: Annotated[
        list[float] | None,
        typer.Option(help="Known shares of the manipulated samples. Default: 0.1, 0.2, 0.5, 1."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="find-more, forget, finetune, ssd, scrub, retrain … Default: all."),
    ] = None,
    state: Annotated[
        State, typer.Option(help="How the manipulated networks are trained.")
    ] = State.regularised,
    n: Annotated[
        int | None,
        typer.Option(min=100, help="Training samples. Default: 25,000 images, 1,000 digits."),
    ] = None,
    manipulated: Annotated[
        int | None, typer.Option(min=2, help="Manipulated samples. Default: n / 50, at least 50.")
    ] = None,
) -> list[Row]:
    """Unlearning of manipulated samples of which a part is known, beside published methods."""
    return corrective.bench(
        Digits() if str(data) == "digits" else Cifar(data),
        manipulations=manipulation or MANIPULATIONS,
        known=known or corrective.KNOWN_SHARES,
        names=method or corrective.NAMES,
        state=state.value,
        seeds=run.seeds,
        n=n,
        manipulated=manipulated,
        **run.options,
    )


@bench_command("rlap")
def bench_rlap(
    run: BenchmarkRun,
    data: ImageOrSpeechFolder = CIFAR_FOLDER,
    n: Annotated[
        int | None,
        typer.Option(
            min=100,
            help="Training samples, half of them noisy. Default: 50,000 images, 3,200 clips.",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Epochs of the noisy model. Default: 60 for images, 300 for clips."
        ),
    ] = None,
    width: Annotated[
        int,
        typer.Option(min=1, help="Width of the image network's first stage; 64: ResNet-18."),
    ] = 64,
) -> list[Row]:
    """The published protocol of the method on CIFAR-10 or speech, and our repair beside it."""
    dataset = dataset_in_folder(data)
    if isinstance(dataset, Cifar):
        protocol, default_n = rlap.image_protocol(dataset, epochs=epochs or 60, width=width), 50_000
    elif isinstance(dataset, Speech):
        protocol, default_n = rlap.speech_protocol(dataset, epochs=epochs or 300), 3_200
    else:
        raise DataError(
            "the published protocol has images and speech",
            where=str(data),
            fix="name a folder with CIFAR-10 or with Speech Commands",
        )
    return rlap.bench(protocol, n=n or default_n, seeds=run.seeds, **run.options)


@bench_command("memory", has_seeds=False)
def bench_memory(
    run: BenchmarkRun,
    data: CifarFolder = CIFAR_FOLDER,
    n: Annotated[
        list[int] | None, typer.Option(help="Numbers of samples. Default: 25,000, 250,000.")
    ] = None,
    views: Annotated[int, typer.Option(min=0, help="Random views; more only cost time.")] = 1,
) -> list[Row]:
    """Peak memory of scores and partition, by number of samples."""
    return memory.bench(Cifar(data), sizes=n or (25_000, 250_000), views=views, **run.options)


@bench_command("scale", has_seeds=False)
def bench_scale(
    run: BenchmarkRun,
    n: Annotated[
        list[int] | None, typer.Option(help="Numbers of samples. Default: 10,000, 100,000.")
    ] = None,
    classes: Annotated[
        list[int] | None, typer.Option(help="Numbers of classes. Default: 10, 1,000.")
    ] = None,
    width: Annotated[list[int] | None, typer.Option(help="Columns. Default: 128.")] = None,
    way: Annotated[
        list[str] | None,
        typer.Option(help="features: without a model; network: with one. Default: both."),
    ] = None,
) -> list[Row]:
    """Seconds and peak memory on generated data, by number of samples, classes and columns."""
    return scale.bench(
        sizes=n or (10_000, 100_000),
        classes=classes or (10, 1_000),
        widths=width or (128,),
        ways=way or scale.WAYS,
        **run.options,
    )


@bench_command("zoo", has_seeds=False)
def bench_zoo(
    run: BenchmarkRun,
    development: Annotated[
        bool,
        typer.Option(help="Settings on which defaults were chosen, instead of the reported ones."),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with bbc_news_summary and cifar10. Default: settings without these."
        ),
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods. Default: all.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of signals and scores. Default: in the out folder.")
    ] = None,
) -> list[Row]:
    """The decision on many small data sets, kinds of noise and networks, beside its peers."""
    part: Part = "development" if development else "reported"
    return zoo.bench(part=part, data=data, cache=cache, methods=method or (), **run.options)


@bench_command("review", has_grid=True)
def bench_review(
    run: BenchmarkRun,
    answers: Annotated[
        list[int] | None, typer.Option(min=0, help="Numbers of answers. Default: 0, 50, 100, 200.")
    ] = None,
    repetitions: Annotated[
        int, typer.Option(min=1, help="Simulated reviews for each row.")
    ] = review.REPETITIONS,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="Also tune a network on each partition.")
    ] = False,
    zoo_cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `expunge bench zoo` kept its scores in: use these instead of --data."
        ),
    ] = None,
) -> list[Row]:
    """Simulated reviewers: what their answers are worth, by number and by how samples are drawn."""
    numbers = sorted(set(answers or review.ANSWERS))
    if zoo_cache is not None:
        return review.bench_zoo(
            [s for s in zoo.zoo_settings() if (zoo_cache / f"{s.name}.scores").is_dir()],
            saved=zoo_cache,
            answers=numbers,
            repetitions=repetitions,
            **run.options,
        )
    return review.bench(
        run.dataset,
        settings=run.settings,
        answers=numbers,
        repetitions=repetitions,
        with_accuracy=accuracy,
        **run.options,
    )


@bench_command("without-model", has_seeds=False)
def bench_without_model(
    run: BenchmarkRun,
    development: Annotated[
        bool,
        typer.Option(help="Tables on which defaults were chosen, instead of the reported ones."),
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder with bbc_news_summary. Default: without news.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="An .npz file with embeddings x and true labels y.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Data sets. Default: all.")] = None,
) -> list[Row]:
    """`expunge detect` on the zoo's tables and on embeddings, beside cleanlab."""
    part: Part = "development" if development else "reported"
    sources = {"data": data, "embeddings": embeddings, "sets": name or ()}
    return without_model.bench(part=part, **sources, **run.options)  # type: ignore[arg-type]


@bench_command("ssl-refine")
def bench_ssl_refine(
    run: BenchmarkRun,
    data: CifarFolder = CIFAR_FOLDER,
    noise: Annotated[
        str,
        typer.Option(help="Noise: instance, instance-raw (Xia et al.) or ambiguous (Chen et al.)."),
    ] = "instance",
    rate: Annotated[list[float] | None, typer.Option(help="Noise rates. Default: 0.4.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Methods. Default: all.")] = None,
    n: Annotated[int, typer.Option(min=100, help="Number of training images.")] = 5_000,
) -> list[Row]:
    """Noise that depends on the image: labels refined in rounds, and others in the same seconds."""
    return ssl_refine.bench(
        Cifar(data),
        noise=noise,
        rates=rate or ssl_refine.DEFAULT_RATES,
        n=n,
        names=method or (),
        seeds=run.seeds,
        **run.options,
    )


@bench_command("text-noise")
def bench_text_noise(
    run: BenchmarkRun,
    data: Annotated[
        Path, typer.Option(help="Folder with bbc_news_summary (Parquet) and wikitext2.")
    ],
    fault: Annotated[list[str] | None, typer.Option(help="Kinds of noise. Default: all.")] = None,
    amount: Annotated[
        list[float] | None,
        typer.Option(help="Noise as fractions of all tokens. Default: 0.05, 0.1, 0.25, 0.5."),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Scores and baselines. Default: all.")
    ] = None,
    train: Annotated[
        int | None, typer.Option(min=10, help="Number of articles to fit on. Default: all.")
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Number of articles to measure on. Default: all.")
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Encoder: the bundled one, a folder, or a name on the Hub.")
    ] = BUNDLED,
    device: Device = "cpu",
) -> list[Row]:
    """Noise in news articles: its detection, and what summaries gain by its removal."""
    return text_noise.bench(
        data,
        encoder=HuggingFaceEncoder.from_pretrained(encoder, device=device),
        encoder_name=encoder,
        faults=fault or text_noise.FAULTS,
        amounts=amount or text_noise.AMOUNTS,
        methods=method or text_noise.METHODS,
        train=train,
        documents=documents,
        seeds=run.seeds,
        **run.options,
    )


Samples = Annotated[
    int | None, typer.Option(min=100, help="Number of training samples. Default: a small one.")
]


@bench_command("noise-layers")
def bench_noise_layers(
    run: BenchmarkRun,
    dataset: DataSet = "cifar10",
    data: CifarFolder = CIFAR_FOLDER,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods of training. Default: all.")
    ] = None,
    n: Samples = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of the training. Default: few.")
    ] = None,
    n_attacked: Annotated[
        int, typer.Option(min=10, help="Number of test samples that are attacked.")
    ] = 400,
    queries: Annotated[
        int, typer.Option(min=0, help="Queries of the black-box attack; 0: no such attack.")
    ] = 100,
    factor: Annotated[
        list[float] | None, typer.Option(help="Multiples of σ in the sweep. Default: 0.5, 2.")
    ] = None,
) -> list[Row]:
    """Noise inside the layers, sampled and in closed form, against attacks."""
    return noise_layers.bench(
        dataset,
        folder=data,
        methods=method or (),
        factors=factor or (0.5, 2.0),
        n=n,
        epochs=epochs,
        n_attacked=n_attacked,
        queries=queries,
        seeds=run.seeds,
        **run.options,
    )


@bench_command("relearning")
def bench_relearning(
    run: BenchmarkRun,
    dataset: DataSet = "cifar10",
    data: CifarFolder = CIFAR_FOLDER,
    n: Samples = None,
    epochs: Annotated[
        list[int] | None, typer.Option(help="Epochs of the fine-tuning. Default: 6, 24.")
    ] = None,
) -> list[Row]:
    """Whether noise inside the layers keeps a repaired model from relearning wrong labels."""
    return noise_layers.bench_relearning(
        dataset,
        folder=data,
        epochs=epochs or (6, 24),
        n=n,
        seeds=run.seeds,
        **run.options,
    )


@bench_command("nmtune")
def bench_nmtune(
    run: BenchmarkRun,
    data: Annotated[
        Path, typer.Option(help="Folder with cifar10, bbc_news_summary (Parquet), or both.")
    ],
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Noise rates of the pre-training. Default: 0, 0.05, 0.1, 0.2, 0.3."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Methods: linear, mlp, paper, code (default); adapted."),
    ] = None,
    pretrain: Annotated[
        int, typer.Option(min=100, help="Number of images of the pre-training.")
    ] = 8_000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the pre-training.")] = 8,
    tune: Annotated[int, typer.Option(min=50, help="Number of images to tune heads on.")] = 1_000,
    test: Annotated[int, typer.Option(min=50, help="Number of images to test on.")] = 2_000,
    articles: Annotated[
        list[int] | None,
        typer.Option(help="Numbers of articles to tune heads on. Default: 100, 1000."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(help="Encoder of articles: the bundled one, a folder, or a name on the Hub."),
    ] = BUNDLED,
    device: Device = "cpu",
) -> list[Row]:
    """Heads on encoders pre-trained with wrong labels, in and out of the domain; and on news."""
    sources = nmtune.find_sources(
        data,
        sizes=nmtune.Sizes(pretrain, epochs, tune, test),
        rates=rate or nmtune.DEFAULT_RATES,
        articles=articles or nmtune.DEFAULT_ARTICLES,
        encoder=lambda: HuggingFaceEncoder.from_pretrained(encoder, device=device),
        encoder_name=encoder,
        device=device,
        out=run.out,
    )
    return nmtune.bench(
        sources,
        methods=method or nmtune.DEFAULT_METHODS,
        seeds=run.seeds,
        device=device,
        **run.options,
    )
