"""`fastmpl export`: a run's student for other programs, and a comparison of what they would compute with torch.

A file says how to feed it: class names, image size and normalisation are in its metadata. The batch size is free.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmpl.commands.evaluate import image_sets
from fastmpl.commands.timm_folder import write_timm_folder
from fastmpl.data.errors import DataError
from fastmpl.data.evaluation import framing_of
from fastmpl.data.normalise import Normalisation
from fastmpl.errors import ConfigError, StorageError
from fastmpl.models.attention import set_attention
from fastmpl.run.classifier import Classifier, load_classifier
from fastmpl.run.headline import NetworkName
from fastmpl.run.tensor_file import encode_tensors

Form = Literal["onnx", "pt2", "safetensors", "timm"]
SUFFIXES: Final[dict[Form, str]] = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors", "timm": ""}
BATCHES: Final = (1, 7)  # sizes at which a file is compared with torch
LARGEST_DIFFERENCE: Final = 1e-4  # of logits of order 1 in float32, on kernels that add in another order
FACTS: Final = "fastmpl.json"  # of a .pt2 file

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # inputs [N, *image] -> outputs [N, K]


@dataclass(frozen=True)
class Wanted:
    """What is exported, where to, and what is put into the graph."""

    form: Form
    output: Path | None = None  # None: beside the run's files
    preprocess: bool = False  # the graph takes pixels in [0, 255] and normalises them itself
    softmax: bool = False  # the graph gives probabilities, not logits
    verify: bool = False
    network: NetworkName | None = None  # None: the one in student.safetensors


class Exported(NamedTuple):
    """The file or folder that was written, and sentences about it."""

    path: Path
    remarks: tuple[str, ...]


class DeployedNetwork(nn.Module):
    """A student between its preprocessing and its softmax, each where it is asked for."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, normalisation: Normalisation | None, *, softmax: bool) -> None:
        """normalisation: of pixels in [0, 255]; None where the inputs are normalised already, or are points."""
        super().__init__()
        self.network, self.preprocesses, self.softmax = network, normalisation is not None, softmax
        mean, std = normalisation or ((0.0,), (1.0,))
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        inputs = (images - self.mean) / self.std if self.preprocesses else images
        logits: Tensor = self.network(inputs)
        return logits.softmax(-1) if self.softmax else logits


def export(run: Path, wanted: Wanted) -> Exported:
    """Writes the student of `run` in another form, and compares it with torch where that is wanted.

    Raises ConfigError for a form that this student cannot have, StorageError where the file cannot be written or
    computes something else.
    """
    if wanted.form not in SUFFIXES:
        raise ConfigError(
            f"a network is not exported to {str(wanted.form)[:64]!r}. The forms are {', '.join(SUFFIXES)}."
        )
    student = load_classifier(run, wanted.network)
    set_attention(student.module, "math")  # a graph of plain products runs everywhere
    if wanted.preprocess and student.normalisation is None:
        raise ConfigError(f"{run} classifies points, which have no preprocessing: leave --preprocess out.")
    if wanted.form in ("safetensors", "timm") and (wanted.preprocess or wanted.softmax):
        raise ConfigError(f"--to {wanted.form} holds weights and no graph: leave --preprocess and --softmax out.")
    network = DeployedNetwork(
        student.module, student.normalisation if wanted.preprocess else None, softmax=wanted.softmax
    ).eval()
    path = wanted.output or run / f"student{SUFFIXES[wanted.form] or '_timm'}"
    if wanted.form == "safetensors" and wanted.output is None:
        path = run / "student_export.safetensors"  # student.safetensors is the run's own
    facts = describe(student, wanted)
    writers: dict[Form, Callable[[], Run]] = {
        "onnx": lambda: _write_onnx(network, student, facts, path),
        "pt2": lambda: _write_pt2(network, student, facts, path),
        "safetensors": lambda: _write_safetensors(student, facts, path),
        "timm": lambda: _run_with(write_timm_folder(student, run, path)),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        computed = writers[wanted.form]()
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}. Name another place by --output.") from error
    remarks = [f"It holds the {student.description}.", *([student.remark] if student.remark else [])]
    if wanted.verify:
        remarks += _compare(network, computed, student, wanted)
    return Exported(path, tuple(remarks))


def describe(student: Classifier, wanted: Wanted) -> dict[str, str]:
    """The metadata of an exported file. The normalisation is of pixels in [0, 255]."""
    facts = {
        "classes": json.dumps(student.classes, ensure_ascii=False),
        "image_shape": json.dumps(student.image_shape),
        "model": student.model,
        "network": student.description,
        "input": "pixels in [0, 255]" if wanted.preprocess else "normalised: (pixel - mean) / std",
        "output": "probabilities" if wanted.softmax else "logits",
    }
    if student.normalisation is not None:
        shown = student.normalisation._asdict() | framing_of(student.config.data)._asdict()
        facts |= {name: json.dumps(values) for name, values in shown.items()}
    return facts


def _example(student: Classifier) -> tuple[Tensor, Any]:
    """An input of two images, and the mark of its free batch size."""
    return torch.zeros(2, *student.image_shape), ({0: torch.export.Dim("batch")},)


def _write_onnx(network: nn.Module, student: Classifier, facts: dict[str, str], path: Path) -> Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise ConfigError(
            f"--to onnx needs the packages onnx, onnxscript and onnxruntime ({error.name} is missing): "
            'pip install "fastmpl[export]".'
        ) from error
    example, free = _example(student)
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=free,
        input_names=["images"],
        output_names=[facts["output"]],
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(facts)
    program.save(str(path), external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"images": images})[0]
        return found

    return run


def _write_pt2(network: nn.Module, student: Classifier, facts: dict[str, str], path: Path) -> Run:
    example, free = _example(student)
    program = torch.export.export(network, (example,), dynamic_shapes=free)
    with warnings.catch_warnings():  # of weights in another memory format, which are written whole
        warnings.filterwarnings("ignore", "No complete tensor found in the group", UserWarning)
        torch.export.save(program, path, extra_files={FACTS: json.dumps(facts, ensure_ascii=False)})
        loaded = torch.export.load(path).module()
    return _run_with(loaded)


def _write_safetensors(student: Classifier, facts: dict[str, str], path: Path) -> Run:
    with path.open("wb") as file:
        file.writelines(encode_tensors(student.module.state_dict(), facts))
    student.module.load_state_dict(safetensors.torch.load_file(path))
    return _run_with(student.module)


def _run_with(network: nn.Module) -> Run:
    @torch.no_grad()
    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = network(torch.from_numpy(images)).float().numpy()
        return found

    return run


def _compare(network: DeployedNetwork, computed: Run, student: Classifier, wanted: Wanted) -> Iterator[str]:
    """The largest difference to torch, batch by batch. Raises StorageError if the file computes something else."""
    images, whose = _verification_images(student)
    if network.preprocesses:
        images = images * network.std + network.mean
    expected = _run_with(network)
    for count in BATCHES:
        batch = images[:count].contiguous().numpy()
        difference = float(np.abs(computed(batch) - expected(batch)).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise StorageError(
                f"--to {wanted.form} computes something else than torch on {count} {whose}: they differ by "
                f"{difference:.3g}. Please report it with the name of the network, {student.model}."
            )
        yield f"batch {count}: differs from torch by at most {difference:.2g} on {whose}"


def _verification_images(student: Classifier) -> tuple[Tensor, str]:
    """Inputs as the network sees them: images of the run, or noise where they are gone."""
    try:
        name, held = next(image_sets(student, None))
        images, _ = next(iter(held.batches(torch.device("cpu"))))
        if len(images) >= max(BATCHES):
            return images.float(), f"{name} images"
    except DataError:
        pass
    return torch.randn(max(BATCHES), *student.image_shape, generator=torch.Generator().manual_seed(0)), "random inputs"
