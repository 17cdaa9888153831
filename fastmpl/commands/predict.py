"""What a finished run's student says of pictures: files or folders in, a table out."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpl.data.errors import DataError, printable
from fastmpl.data.evaluation import shown_side
from fastmpl.data.files.decode import Decoded, decode_all, fit
from fastmpl.data.files.listing import list_image_files
from fastmpl.data.normalise import centre, centre_view
from fastmpl.data.settings import interpolation_of
from fastmpl.errors import ConfigError
from fastmpl.run.classifier import Classifier, load_classifier
from fastmpl.run.headline import NetworkName

Format = Literal["csv", "json"]
PASS = 64  # images a pass


class Prediction(NamedTuple):
    """The likeliest class of an image and its probability; or, without a label, why the file cannot be read."""

    file: str
    label: str | None
    confidence: float
    probabilities: dict[str, float]
    problem: str = ""


def list_images(paths: Iterable[Path], tell: Callable[[str], None]) -> list[Path]:
    """The files named, and the images below the folders named, in order; `tell` gets what a folder has besides."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{printable(path)} does not exist. Name image files, or folders of them.")
        if not path.is_dir():
            files.append(path)
            continue
        (found,) = list_image_files(path, ["."])
        files += [path / name for name in found.names]
        for problem in found.problems:
            more = f" and {problem.count - 1:,} more" if problem.count > 1 else ""
            tell(f"skipped {printable(problem.file)}{more}: {printable(problem.reason)}")
    if not files:
        raise DataError(f"{', '.join(map(printable, paths))} has no image files.")
    return files


@torch.no_grad()
def _classify(student: Classifier, found: Sequence[tuple[Path, Decoded]], device: torch.device) -> Iterator[Prediction]:
    pixels = [decoded.pixels for _, decoded in found if decoded.pixels is not None]
    rows: Iterator[list[float]] = iter(())
    if pixels:
        assert student.normalisation is not None
        size = student.image_shape[-1]
        images = torch.from_numpy(centre(np.stack(pixels), size)).to(device)
        logits = student.infer(centre_view(images, size, student.normalisation))
        rows = iter(torch.softmax(logits.float(), -1).tolist())
    for path, decoded in found:
        if decoded.pixels is None:
            yield Prediction(printable(path), None, 0.0, {}, decoded.remark)
            continue
        probabilities = dict(zip(student.classes, next(rows), strict=True))
        label = max(probabilities, key=probabilities.__getitem__)
        yield Prediction(printable(path), label, probabilities[label], probabilities)


def predict(
    run: Path,
    paths: Sequence[Path],
    tell: Callable[[str], None] = lambda line: None,
    network: NetworkName | None = None,
) -> Iterator[Prediction]:
    """One prediction a file, in order; images are read as those of a training folder are (`fastmpl.data.files.decode`).

    network: None for the one in student.safetensors. Raises ConfigError where `run` has no such network or classifies
    points, DataError where a path does not exist.
    """
    student, files = load_classifier(run, network), list_images(paths, tell)
    if student.remark:
        print(printable(student.remark), file=sys.stderr)
    if student.normalisation is None:
        raise ConfigError(f"{run} classifies points or stored features, not images.")
    return predict_files(student, files, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def predict_pixels(student: Classifier, pixels: NDArray[np.uint8], device: torch.device) -> Iterator[Prediction]:
    """One prediction an image; pixels: uint8 [H, W, 3] or [N, H, W, 3]. Raises DataError for another form."""
    rgb = pixels.dtype == np.uint8 and pixels.ndim in (3, 4) and pixels.shape[-1] == 3
    if not rgb or 0 in pixels.shape[-3:]:
        raise DataError(
            f"an array of {pixels.dtype} {list(pixels.shape)} is no RGB image. Give uint8 [H, W, 3] or [N, H, W, 3]."
        )
    student.module.to(device)
    images = pixels[None] if pixels.ndim == 3 else pixels
    settings = student.config.data
    for start in range(0, len(images), PASS):
        fitted = [fit(one, shown_side(settings), interpolation_of(settings)) for one in images[start : start + PASS]]
        named = [(Path(f"array {start + number}"), one) for number, one in enumerate(fitted)]
        yield from _classify(student, named, device)


def predict_files(student: Classifier, files: Sequence[Path], device: torch.device) -> Iterator[Prediction]:
    """One prediction a file, in order."""
    student.module.to(device)
    data = student.config.data
    pairs = zip(files, decode_all(files, shown_side(data), interpolation_of(data)), strict=True)
    while chunk := list(islice(pairs, PASS)):
        yield from _classify(student, chunk, device)


def _write_csv(predictions: Iterable[Prediction], out: TextIO) -> Iterator[Prediction]:
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("file", "label", "confidence", "problem"))
    for found in predictions:
        confidence = "" if found.label is None else f"{found.confidence:.6f}"
        table.writerow((found.file, printable(found.label or ""), confidence, found.problem))
        yield found


def _write_json(predictions: Iterable[Prediction], out: TextIO) -> Iterator[Prediction]:
    separator = "[\n"
    for found in predictions:
        facts = {name: value for name, value in found._asdict().items() if value not in (None, "", {})}
        out.write(separator + json.dumps({"file": found.file, "problem": found.problem} if found.problem else facts))
        separator = ",\n"
        yield found
    out.write("\n]\n")


def write_table(predictions: Iterable[Prediction], form: Format, out: TextIO) -> None:
    """Writes the table as it is made. Raises DataError at its end where no file could be read."""
    writer = _write_csv if form == "csv" else _write_json
    labelled = sum(found.label is not None for found in writer(predictions, out))
    if not labelled:
        raise DataError("none of the files can be read as an image; the table says why.")
