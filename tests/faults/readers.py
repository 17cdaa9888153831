"""Every reader of bytes that come from elsewhere, each with a valid input and the file of it that is changed."""

import gzip
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from fastmpl.commands.status import status
from fastmpl.config import load
from fastmpl.data.checks import checked
from fastmpl.data.files.decode import decode
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.packing import pack
from fastmpl.data.packing.pack_shard import PackSettings, ShardJob
from fastmpl.data.readers import cache, shards
from fastmpl.data.readers.idx import read_idx
from fastmpl.data.readers.streamed_sources import READERS as SOURCES
from fastmpl.data.stores.store import checksum, open_store
from fastmpl.data.stores.store_writer import StorePlan, StoreWriter
from fastmpl.data.stores.tables import read_table
from fastmpl.distributed.ranks import ALONE
from fastmpl.report.reading import read_run
from fastmpl.run import checkpoint
from fastmpl.run.checkpoint import Checkpoint
from fastmpl.run.checkpoint_files import FACTS, MANIFEST, TENSORS
from fastmpl.run.classifier import load_classifier
from fastmpl.run.folder import read_status
from fastmpl.run.pretrained import read_start
from fastmpl.telemetry.metrics import Log
from fastmpl.telemetry.replaced_images import ReplacedImagesFile
from tests import mini_imagenet
from tests.faults.forged import fingerprint
from tests.faults.mutations import mutate, mutate_json
from tests.mini_imagenet import Picture
from tests.run.short_runs import CONFIGS


class Reader(NamedTuple):
    """`make` writes a valid input into a folder and gives the file to change; `read` reads the folder."""

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    change: Callable[..., bytes] = mutate


def _run(folder: Path) -> Path:
    """The folder of a run, without training one."""
    (folder / "config.toml").write_bytes((CONFIGS / "digits.toml").read_bytes())
    (folder / "STATUS.json").write_text(
        json.dumps({"state": "running", "step": 3, "process": 1, "host": "a", "notes": ["b"]})
    )
    lines = [
        {"kind": "train", "step": 1, "images_per_second": 3.0, "student_loss": None},
        {
            "kind": "evaluation",
            "step": 1,
            "network": "student",
            "split": "test",
            "accuracy": 0.5,
            "loss": 1.0,
            "images": 9,
        },
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "replaced.jsonl").write_text(json.dumps({"step": 1, "file": "a", "reason": "b", "by": "c"}) + "\n")
    results = {
        "steps": 3,
        "last": {"student": {"test": 0.5}},
        "selected": {"step": 1, "network": "student", "test": 0.5},
    }
    (folder / "results.json").write_text(
        json.dumps(results | {"finetuned": None, "seconds": 1.0, "versions": {"a": "b"}})
    )
    return folder


def _file_of_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: _run(folder) / name


def _read_whole_run(folder: Path) -> None:
    list(status(folder))
    read_run(folder)
    read_status(folder)


def _truncate(folder: Path) -> None:
    with Log(folder, loggers=[]) as log:
        log.truncate_after(1)
    ReplacedImagesFile(folder, ALONE, ["a"]).truncate_after(1)


def _checkpoint(folder: Path) -> Path:
    weight = torch.randn(4, 3)
    facts = {"data": {"step": 3, "fingerprint": {"a": 1}}, "best": None, "seconds": 1.0, "pretrained": {}}
    return checkpoint.save(folder, Checkpoint(3, {"weight": weight, "step/step": torch.tensor(3)}, facts))


def _rehash(path: Path) -> None:
    """Makes the manifest agree with the files, as a forger would."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    manifest["files"] = {name: fingerprint((path / name).read_bytes()) for name in (TENSORS, FACTS)}
    (path / MANIFEST).write_text(json.dumps(manifest))


def _read_checkpoint(folder: Path) -> None:
    checkpoint.read_newest(folder, lambda sentence: None)
    checkpoint.read(folder / "step-3")


def _read_rehashed(folder: Path) -> None:
    _rehash(folder / "step-3")
    checkpoint.read(folder / "step-3")


def _student(folder: Path) -> Path:
    _run(folder)
    from fastmpl.models import build_network
    from fastmpl.run.student_file import FileFacts, save_network

    config = load(folder / "config.toml")
    module = build_network(config.student, classes=3, image_shape=(3, 8, 8), seed=0)
    facts = FileFacts(("a", "b", "c"), (3, 8, 8), None)
    return save_network(folder, module.state_dict(), facts)


def _weights(folder: Path) -> Path:
    (folder / "weights.safetensors").write_bytes(safetensors.torch.save({"a": torch.zeros(3), "b": torch.ones(2, 2)}))
    return folder / "weights.safetensors"


PLAN = StorePlan(20, 6, 3, images="abc", teacher="a test", shard_rows=8, class_names=tuple("abcdef"))


def _store(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        writer = StoreWriter(folder, PLAN)
        for shard in writer.missing():
            first, last = PLAN.range(shard)
            writer.write(shard, [np.full((last - first, 6), 1 / 6, np.float32)])
        writer.finish()
        return folder / name

    return make


def _read_store(folder: Path) -> None:
    store = open_store(folder).fit(images="abc", classes=tuple("fedcba"))
    store.probabilities(np.arange(20))
    store.top(np.arange(20))


def _read_rehashed_store(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_bytes())
    for shard in header["shards"]:
        shard["blake2b"] = checksum(folder / shard["file"])
    (folder / "header.json").write_text(json.dumps(header))
    _read_store(folder)


def _continue_store(folder: Path) -> None:
    writer = StoreWriter(folder, PLAN)
    list(writer.missing())
    writer.finish()


def _csv(folder: Path) -> Path:
    lines = ["image,cat,dog,hen", *(f"{name},0.5,0.25,0.25" for name in "abc")]
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
    return folder / "scores.csv"


def _npy(folder: Path) -> Path:
    np.save(folder / "scores.npy", np.array([[0, 0.5, 0.25, 0.25], [1, 1, 0, 0], [2, 0, 0, 1]], np.float32))
    return folder / "scores.npy"


def _read_scores(folder: Path) -> None:
    (path,) = (path for path in folder.iterdir() if path.name.startswith("scores"))
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    read_table(path, ("a", "b", "c") if path.suffix == ".csv" else ("0", "1", "2"), ("cat", "dog", "hen"), scratch)


def _pictures() -> Iterator[Picture]:
    for part in ("labelled", "unlabelled", "test"):
        for number in range(6):
            yield Picture(part, f"n{number}", number % 3 if part != "unlabelled" else -1, bytes([number]) * 50)


def _source(source: str, name: str) -> Reader:
    def make(folder: Path) -> Path:
        mini_imagenet.WRITERS[source](folder / "root", _pictures())
        (folder / "root/classes.txt").write_text("\n".join(mini_imagenet.CLASSES[:3]) + "\n")
        return folder / "root" / name

    def read(folder: Path) -> None:
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        arrays = SOURCES[source](str(folder / "root"))
        for index in range(len(arrays.train_labels)):
            arrays.train_images.full_name(index)  # type: ignore[union-attr]

    return Reader(make, read)


def _job(folder: Path) -> ShardJob:
    images = Files(folder, Names(["a"]))
    return ShardJob(folder / "train/train-000000.tar", images, 0, np.array([0]), ("a",), PackSettings())


def _pack(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "train").mkdir()
        with tarfile.open(folder / "train/train-000000.tar", "w"):
            pass
        (folder / "train/train-000000.idx").write_text("v1.2 0\n")
        size = (folder / "train/train-000000.tar").stat().st_size
        note: dict[str, Any] = {
            "images": 1,
            "bytes": size,
            "sha256": "0" * 64,
            "left_out": [{"file": "a", "reason": "b"}],
        }
        (folder / "train/train-000000.json").write_text(json.dumps(note))
        shard = {"file": "train/train-000000.tar", **note}
        (folder / "manifest.json").write_text(json.dumps({"format": "a", "shards": [shard]}))
        (folder / "plan.json").write_text(json.dumps({"format": "a", "size": 3}))
        return folder / name

    return make


def _read_pack(folder: Path) -> None:
    for sentence in pack.verify(folder):
        assert sentence.startswith(f"{folder}/")  # nothing outside the pack is looked at
        assert "/.." not in sentence
    _ = [one["reason"] for one in (pack._read_note(_job(folder)) or {"left_out": []})["left_out"]]
    pack._claim_output(folder, {"format": "a", "size": 3})


def _cached(folder: Path) -> Path:
    key = cache._key(folder, ["a", "b"], 4)
    (folder / cache.PIXELS).write_bytes(bytes(2 * 4 * 4 * 3))
    (folder / cache.FACTS).write_text(json.dumps({"key": key, "kept": [0, 1], "problems": [["a", "b", False, 1]]}))
    return folder / cache.FACTS


def _read_cached(folder: Path) -> None:
    found = cache._open_cached(folder, cache._key(folder, ["a", "b"], 4), 4, 2)
    if found is not None:
        _ = [["a", "b"][place] for place in found.kept], [problem.file + problem.reason for problem in found.problems]


def _index(folder: Path) -> Path:
    mini_imagenet.write_tars(folder / "root", _pictures())
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    SOURCES["webdataset"](str(folder / "root"))
    return min((folder / "cache/fastmpl").glob("index-*.npz"))


def _read_index(folder: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    file = min((folder / "cache/fastmpl").glob("index-*.npz"))
    found = shards._load_index(file, ["a.tar"])
    if found is not None:
        _ = list(found.names), list(found.words), [problem.file for problem in found.problems]


def _checked(folder: Path) -> Path:
    lines = [{"format": checked.FORMAT}, {"set": "train", "index": 1, "file": "a", "reason": "b", "used": False}]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "list.jsonl"


def _read_checked(folder: Path) -> None:
    found = checked._read_list(folder / "list.jsonl")
    checked._good_positions(found, "train", 3)
    _ = [line.file + line.reason for line in found]


def _idx(folder: Path) -> Path:
    (folder / "images.gz").write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 4) + bytes(32)))
    return folder / "images.gz"


def _picture(folder: Path) -> Path:
    (folder / "a.jpg").write_bytes(mini_imagenet.jpeg(0, 0, 0, (24, 20)))
    return folder / "a.jpg"


READERS: dict[str, Reader] = {
    "configuration": Reader(_file_of_run("config.toml"), lambda folder: load(folder / "config.toml")),
    "status": Reader(_file_of_run("STATUS.json"), _read_whole_run),
    "status, as JSON": Reader(_file_of_run("STATUS.json"), _read_whole_run, mutate_json),
    "metrics": Reader(_file_of_run("metrics.jsonl"), lambda folder: (_read_whole_run(folder), _truncate(folder))),
    "replaced images": Reader(_file_of_run("replaced.jsonl"), _truncate),
    "results": Reader(_file_of_run("results.json"), _read_whole_run),
    "results, as JSON": Reader(_file_of_run("results.json"), _read_whole_run, mutate_json),
    "manifest": Reader(lambda folder: _checkpoint(folder) / MANIFEST, _read_checkpoint),
    "manifest, as JSON": Reader(lambda folder: _checkpoint(folder) / MANIFEST, _read_checkpoint, mutate_json),
    "tensors": Reader(lambda folder: _checkpoint(folder) / TENSORS, _read_rehashed),
    "facts": Reader(lambda folder: _checkpoint(folder) / FACTS, _read_rehashed),
    "student": Reader(_student, load_classifier),
    "weights": Reader(_weights, lambda folder: read_start(str(folder / "weights.safetensors"), "student", ("a", "b"))),
    "store's header": Reader(_store("header.json"), _read_store),
    "store's header, as JSON": Reader(_store("header.json"), _read_store, mutate_json),
    "store's rows": Reader(_store("shard-00001.bin"), _read_rehashed_store),
    "store's plan": Reader(_store("plan.json"), _continue_store, mutate_json),
    "store's notes": Reader(_store("shard-00000.json"), _continue_store),
    "store's notes, as JSON": Reader(_store("shard-00000.json"), _continue_store, mutate_json),
    "table in CSV": Reader(_csv, _read_scores),
    "table in NPY": Reader(_npy, _read_scores),
    "file list": _source("file_list", "labelled.txt"),
    "list of classes": _source("file_list", "classes.txt"),
    "tar": _source("webdataset", "labelled/00000.tar"),
    "TFRecord": _source("tfrecord", "labelled/00000"),
    "pack's manifest": Reader(_pack("manifest.json"), _read_pack),
    "pack's manifest, as JSON": Reader(_pack("manifest.json"), _read_pack, mutate_json),
    "pack's notes": Reader(_pack("train/train-000000.json"), _read_pack, mutate_json),
    "pack's plan": Reader(_pack("plan.json"), _read_pack, mutate_json),
    "cached pictures": Reader(_cached, _read_cached),
    "cached pictures, as JSON": Reader(_cached, _read_cached, mutate_json),
    "index of shards": Reader(_index, _read_index),
    "list of bad images": Reader(_checked, _read_checked),
    "IDX": Reader(_idx, lambda folder: read_idx(folder / "images.gz")),
    "picture": Reader(_picture, lambda folder: decode(folder / "a.jpg", 8)),
}
