"""The views of encoded images: the drawn windows of the decoded pictures, in the form that a step wants."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test the pipeline of encoded images")

from fastmpl.data import dali
from fastmpl.data.build import build
from fastmpl.data.device_stream import KeepAlive
from fastmpl.data.draws import StreamName
from fastmpl.data.evaluation import make_evaluation_set
from fastmpl.data.files.encoded import Files, Names
from fastmpl.data.normalise import IMAGENET, Normalisation
from fastmpl.data.sampler import Sampler
from fastmpl.data.streaming import encoded_pipeline
from fastmpl.data.streaming.crops import Crops, draw
from fastmpl.data.streaming.encoded_pipeline import EncodedStream, Machine
from fastmpl.data.streaming.reading import Reader
from fastmpl.data.streaming.windows import CentreCrop, resize_image
from tests import mini_imagenet

SIZE, BATCH = 32, 8
HOW = Crops(SIZE, (0.08, 1.0), (3 / 4, 4 / 3), True, 0, 0, 10)
RAW = Normalisation((0.0,) * 3, (1.0,) * 3)
Make = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """JPEGs of several sizes, a grey one, one that lies on its side, and a PNG with transparency."""
    root = tmp_path_factory.mktemp("encoded")
    files = {f"{n}.jpg": mini_imagenet.jpeg(n, 0, n, size) for n, size in enumerate([(120, 90), (90, 121), (200, 64)])}
    picture = Image.open(io.BytesIO(files["0.jpg"]))
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = {
        "grey.jpg": (picture.convert("L"), {}),
        "turned.jpg": (picture, {"exif": turned}),
        "rgba.png": (picture.convert("RGBA"), {}),
    }
    for name, (image, options) in odd.items():
        out = io.BytesIO()
        image.save(out, "PNG" if name.endswith("png") else "JPEG", **options)
        files[name] = out.getvalue()
    for name, content in files.items():
        (root / name).write_bytes(content)
    return Files(root, Names(files))


def sampler(images: Files) -> Sampler:
    return Sampler(np.arange(len(images)), BATCH, StreamName.UNLABELLED, seed=5)


def stream(images: Files, how: Crops = HOW, constants: Normalisation = RAW, **options: object) -> EncodedStream:
    asked = {"two_views": True, "where": Machine(), **options}
    where = asked.pop("where")
    assert isinstance(where, Machine)
    return EncodedStream(Reader(images, np.arange(len(images)), 5), sampler(images), how, constants, where, **asked)  # type: ignore[arg-type]


def upright(images: Files, index: int) -> np.ndarray:
    """The picture as PIL decodes it."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(Image.open(images.root / images.names[index]))
    return np.asarray(image.convert("RGB"))


def test_both_views_are_the_drawn_windows_of_the_indexed_pictures(images: Files) -> None:
    opened, passes = stream(images), sampler(images)
    for step in range(3):
        seen, rows = opened.next(), passes.samples(step)
        assert torch.equal(seen.index, torch.from_numpy(rows.index))
        pictures = [upright(images, int(i)) for i in rows.index]
        sides = np.array([picture.shape[:2] for picture in pictures])
        weak, strong = draw(passes, rows, sides[:, 0], sides[:, 1], HOW)
        assert seen.strong is not None
        for view, drawn in ((seen.weak, weak), (seen.strong, strong.crop)):
            for row, picture in enumerate(pictures):
                y, x, h, w = drawn.window[row]
                expected = resize_image(picture[y : y + h, x : x + w], SIZE, SIZE).astype(np.float32)
                expected = expected[:, ::-1] if drawn.mirror[row] else expected
                found = view[row].permute(1, 2, 0).numpy()
                there = np.ones((SIZE, SIZE), bool)
                if view is seen.strong:
                    (top, left), (tall, wide) = strong.cut_start[row].astype(int), strong.cut_shape[row].astype(int)
                    there[top : top + tall, left : left + wide] = False
                    assert (found[~there] == 0).all()
                assert np.abs(found - expected)[there].mean() < 1.0  # decoders differ by rounding


def test_decoding_a_part_changes_no_byte(images: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    part = stream(images).next()

    def whole(content: dali.Node, start: dali.Node, shape: dali.Node) -> dali.Node:
        return dali.fn.slice(encoded_pipeline.decode(content, Machine()), start, shape, axes=[0, 1])

    monkeypatch.setattr(encoded_pipeline, "decode_part", whole)
    torch.testing.assert_close(part[:3], stream(images).next()[:3], atol=0, rtol=0)


def test_a_batch_is_channels_last_in_memory_of_dali_and_normalised(images: Files) -> None:
    raw, normal = stream(images).next(), stream(images, constants=IMAGENET).next()
    assert normal.weak.shape == (BATCH, 3, SIZE, SIZE)
    assert normal.weak.is_contiguous(memory_format=torch.channels_last)
    assert not normal.weak.untyped_storage().resizable()  # nobody copied it
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    torch.testing.assert_close(normal.weak, (raw.weak - mean) / std, atol=1e-5, rtol=0)


def test_bf16_is_the_float32_view_rounded_once(images: Files) -> None:
    full, half = (
        stream(images, constants=IMAGENET).next(),
        stream(images, constants=IMAGENET, dtype=torch.bfloat16).next(),
    )
    assert half.weak.dtype == torch.bfloat16
    assert half.weak.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.weak, full.weak.bfloat16(), atol=0, rtol=0)


def test_threads_and_batches_made_ahead_do_not_change_a_pixel(images: Files) -> None:
    how = HOW._replace(operations=2, magnitude=17)
    streams = [stream(images, how, where=Machine(threads=t, ahead=a)) for t, a in ((1, 1), (3, 2))]
    for _ in range(3):
        one, other = (opened.next() for opened in streams)
        torch.testing.assert_close(one[:3], other[:3], atol=0, rtol=0)


def test_batches_are_the_caller_s_to_keep(images: Files) -> None:
    opened = stream(images)
    kept = [opened.next() for _ in range(5)]
    copies = [views.weak.clone() for views in kept]
    for _ in range(8):
        opened.next()
    for views, copy in zip(kept, copies, strict=True):
        assert torch.equal(views.weak, copy)


def test_rand_augment_is_in_the_strong_view_alone(images: Files) -> None:
    plain, augmented = stream(images).next(), stream(images, HOW._replace(operations=2, magnitude=17)).next()
    assert torch.equal(plain.weak, augmented.weak)
    assert plain.strong is not None
    assert augmented.strong is not None
    assert (plain.strong != augmented.strong).flatten(1).any(1).float().mean() > 0.7


def test_evaluation_is_torchvision_s_resize_and_centre_crop(images: Files, settings: Make) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    theirs = v2.Compose([v2.Resize(round(SIZE / 0.875), antialias=True), v2.CenterCrop(SIZE), v2.PILToTensor()])
    asked = settings(image_size=SIZE, centre_crop=0.875)
    held = make_evaluation_set(images, np.arange(len(images)), asked, RAW)
    (found, labels), *more = held.batches()
    assert not more
    assert labels.tolist() == list(range(len(images)))
    expected = torch.stack([theirs(Image.fromarray(upright(images, i))) for i in range(len(images))]).float()
    assert (found - expected).abs().mean() < 1.0
    assert torch.equal(held.images, found)


def test_evaluated_images_are_shared_by_ranks_and_one_that_cannot_be_read_is_left_out(
    settings: Make, tmp_path: Path
) -> None:
    for number in range(5):  # and one that is gone
        (tmp_path / f"{number}").write_bytes(mini_imagenet.jpeg(number, 0, number, (40, 30)) if number != 3 else b"no")
    held = make_evaluation_set(Files(tmp_path, Names(map(str, range(6)))), np.arange(6), settings(image_size=16), RAW)
    assert [labels.tolist() for _, labels in held.batches()] == [[0, 1, 2, 4]]
    parts = [held.part(rank, 3) for rank in range(3)]
    assert [len(part) for part in parts] == [2, 2, 2]
    seen = [row for part in parts for images, _ in part.batches() for row in images]
    assert torch.equal(torch.stack(seen), held.images)
    assert list(held.part(6, 7).batches()) == []  # more ranks than images


def test_a_centre_crop_is_the_middle_of_a_picture_of_any_shape() -> None:
    wide = np.zeros((8, 40, 3), np.uint8)
    wide[:, 16:24] = 200
    (middle,) = CentreCrop(8, 8, 1)([wide])
    assert (middle == 200).all()


def test_images_grow_by_the_step_and_a_resumed_run_starts_at_its_size(settings: Make, tmp_path: Path) -> None:
    root = mini_imagenet.write_folder(tmp_path, mini_imagenet.pictures(2, 8, 1, size=(90, 70)))
    asked = settings(source="folder", root=str(root), decode="always", labels=0, validation=0, image_size=96,
                     start_size=32, grow_steps=4, batch_labelled=4, batch_unlabelled=4)  # fmt: skip
    data = build(asked, seed=0)
    batches = [data.train.next() for _ in range(6)]
    assert [batch.weak.shape[-1] for batch in batches] == [32, 32, 64, 64, 96, 96]
    assert all(batch.labelled.shape[-1] == batch.weak.shape[-1] for batch in batches)
    again = build(asked, seed=0)
    again.train.restore({**data.train.state(), "step": 3})
    torch.testing.assert_close(tuple(again.train.next())[:6], tuple(batches[3])[:6], atol=0, rtol=0)
    assert data.finetune("labelled", 4).next().images.shape[-1] == 96
    for loader in (data, again):
        loader.train.close()


def test_dali_s_memory_is_kept_while_a_gpu_may_still_convert_it(images: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[list[torch.Tensor]] = []
    monkeypatch.setattr(KeepAlive, "keep", lambda self, made: kept.append(made))
    seen = stream(images, dtype=torch.bfloat16).next()
    assert [view.dtype for view in (seen.weak, seen.strong) if view is not None] == [torch.bfloat16] * 2
    ((weak, strong),) = kept
    assert weak.dtype == strong.dtype == torch.float32
    assert torch.equal(weak.bfloat16(), seen.weak)
    stream(images).next()
    assert len(kept) == 1  # nothing was converted: the caller holds the memory itself
