"""``segserve evaluate``: scores what a server, or a repository without one, serves on a dataset."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from segserve_client import SegserveError

from serving import errors
from serving.commands.connection import (
    ApiKey,
    TlsAuthority,
    TlsCertificate,
    TlsKey,
    choose_tls,
    describe,
)
from training.datasets import (
    KNOWN,
    SegmentationDataset,
    canonical_name,
    dataset_labels,
    open_dataset,
)
from training.evaluation.boundaries import DEFAULT_TOLERANCE
from training.evaluation.output import check_matplotlib, choose, read_examples, write_output
from training.evaluation.report import Subject, print_evaluation, summarise, to_json
from training.evaluation.scoring import (
    Predict,
    Scores,
    ScoringError,
    encode_sample,
    first_indices,
    score,
)
from training.evaluation.served_model import Access, ServedModel, ServerError, open_model

DEFAULT_SERVER = "localhost:8000"


def evaluate(
    model: Annotated[str, typer.Option(help="name of a model (or family) on the server")],
    dataset: Annotated[str, typer.Option(help=f"one of {', '.join(KNOWN)}")],
    server: Annotated[
        str | None,
        typer.Option(
            help=f"address of the server: HTTP host:port, https:// or grpc://host:port; default "
            f"{DEFAULT_SERVER}",
            show_default=False,
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="model repository to run in this process instead of a server"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="folder of the dataset")] = None,
    split: Annotated[str, typer.Option(help="split to score: train, val or test")] = "val",
    output: Annotated[
        Path | None, typer.Option(help="folder for scores, confusion matrix and example pictures")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="file for the scores")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="score only this many images")] = None,
    boundary_tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="tolerance of the boundary score, as a share of the diagonal; 0: no boundary "
            "score",
        ),
    ] = DEFAULT_TOLERANCE,
    examples: Annotated[
        int,
        typer.Option(min=1, help="number of worst, of median and of best images in the picture"),
    ] = 2,
    parallel: Annotated[int, typer.Option(min=1, help="number of concurrent requests")] = 4,
    legacy_miou: Annotated[
        bool, typer.Option(help="also print GluonCV's mean, in which absent classes are 0")
    ] = False,
    api_key: ApiKey = None,
    tls_ca: TlsAuthority = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
) -> None:
    """Score a served model on a dataset, and show the images with its errors."""
    console = Console(stderr=True)
    try:
        if output is not None:
            check_matplotlib()
            output.mkdir(parents=True, exist_ok=True)
        samples = open_dataset(dataset, split, root)
        labels = dataset_labels(dataset, root)
        access = Access(api_key, choose_tls(tls_ca, tls_certificate, tls_key))
        with open_served(server, repository, model, access) as served:
            for line in check_classes(labels.names, served.classes()):
                console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)
            predict = predict_with(samples, served)
            scores = score_with_progress(
                samples, predict, len(labels.names), limit, parallel, boundary_tolerance, console
            )
            choices = choose(scores.images, examples) if output else ()
            shown = read_examples(samples, predict, choices)
            name, version = the_one_served(served)
        where = str(repository) if repository else server or DEFAULT_SERVER
        subject = Subject(name, version, where, canonical_name(dataset), split, boundary_tolerance)
        found = summarise(scores, labels.names, subject)
        print_evaluation(found, Console(), legacy_miou)
        if json_file is not None:
            json_file.write_text(to_json(found), "utf-8")
        if output is not None:
            write_output(found, shown, labels, output)
            console.print(f"written to {output}", markup=False)
    except (
        ScoringError, ServerError, SegserveError, errors.SegserveError, ValueError, OSError,
    ) as error:  # fmt: skip
        sys.exit(f"segserve evaluate: {describe(error)}")


@contextmanager
def open_served(
    server: str | None, repository: Path | None, model: str, access: Access
) -> Iterator[ServedModel]:
    """Opens the model of a running server, or of a repository in this process.

    Raises:
        ValueError: both were given, or certificates without a server.
    """
    if repository is None:
        with open_model(server or DEFAULT_SERVER, model, access) as served:
            yield served
        return
    if server is not None:
        raise ValueError("give --server or --repository, not both")
    if access.tls is not None:
        raise ValueError("--tls-ca, --tls-certificate and --tls-key are for --server")
    # Only here: the pipeline imports the whole server.
    from training.evaluation.embedded_model import EmbeddedModel

    embedded = EmbeddedModel(repository, model)
    try:
        yield embedded
    finally:
        embedded.close()


def check_classes(expected: tuple[str, ...], served: tuple[str, ...]) -> tuple[str, ...]:
    """Returns lines naming the ids that the dataset and the server name differently.

    Raises:
        ValueError: another number of classes, which no score could compare.
    """
    if len(expected) != len(served):
        raise ValueError(
            f"the server's model has {len(served)} classes ({', '.join(served)}), "
            f"the dataset {len(expected)} ({', '.join(expected)}); "
            f"choose the dataset that the model was trained on"
        )
    return tuple(
        f"class {index} is {ours!r} in the dataset and {theirs!r} on the server"
        for index, (ours, theirs) in enumerate(zip(expected, served, strict=True))
        if ours.lower() != theirs.lower()
    )


def predict_with(samples: SegmentationDataset, served: ServedModel) -> Predict:
    """Returns a function that sends an image as its own file, or as a PNG if it has none."""
    return lambda index, image: served(encode_sample(samples, index, image))


def score_with_progress(
    samples: SegmentationDataset,
    predict: Predict,
    num_classes: int,
    limit: int | None,
    in_flight: int,
    tolerance: float,
    console: Console,
) -> Scores:
    """Runs :func:`training.evaluation.scoring.score` with a progress bar."""
    columns = TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        indices = first_indices(samples, limit)
        task = progress.add_task("", total=len(indices))
        return score(
            samples,
            predict,
            num_classes,
            indices,
            in_flight,
            tolerance,
            on_image=lambda: progress.advance(task),
        )


def the_one_served(served: ServedModel) -> tuple[str, str]:
    """Returns name and version behind all answers; of a family, the names and versions of its
    members.

    Raises:
        ServerError: two versions of one model: it was exchanged during the run.
    """
    answered = sorted(served.served) or [("unknown", "unknown")]
    names = [name for name, _ in answered]
    if len(set(names)) < len(names):
        models = ", ".join(f"{name} v{version}" for name, version in answered)
        raise ServerError(
            f"several versions answered ({models}); run again while none is exchanged"
        )
    return ", ".join(names), ", ".join(version for _, version in answered)
