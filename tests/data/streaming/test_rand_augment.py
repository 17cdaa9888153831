"""RandAugment of encoded images, operation by operation against torchvision's."""

import numpy as np
import pytest

pytest.importorskip("nvidia.dali", reason="install nvidia-dali-cuda130 to test the operations")
pytest.importorskip("torchvision")

from torchvision.transforms import v2

from fastmpl.data.streaming.rand_augment import ENHANCE, Kind, Operation, layer, layers
from tests.augmentation import Case, Images, cases, images, ours, theirs

EXACT = ("IDENTITY", "SHEAR_X", "SHEAR_Y", "TRANSLATE_X", "TRANSLATE_Y", "POSTERIZE", "SOLARIZE")
# the largest difference of a grey value, and of the mean: we round where torchvision cuts off
WITHIN = {"BRIGHTNESS": (1, 0.6), "COLOR": (2, 1.1), "CONTRAST": (2, 1.1), "AUTOCONTRAST": (1, 0.6)}


OF = images()


@pytest.fixture(scope="module")
def made() -> dict[Case, Images]:
    """Every case of ours; one pipeline makes them all."""
    every = cases()
    return dict(zip(every, ours(every, OF), strict=True))


@pytest.mark.parametrize("tensors", [False, True], ids=["PIL", "tensors"])
@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_an_operation_is_torchvision_s(made: dict[Case, Images], operation: Operation, tensors: bool) -> None:
    for case in (case for case in cases() if case.operation is operation):
        difference = np.abs(made[case].astype(int) - theirs(case, OF, tensors=tensors))
        if operation.name in EXACT:
            assert difference.max() == 0
        elif operation is Operation.ROTATE:  # where a pixel is read at the border of two, either may be taken
            assert (difference > 0).mean() < 0.005
        elif operation is Operation.SHARPNESS:  # theirs leaves the outermost pixels as they are
            assert difference[:, 1:-1, 1:-1].max() <= 1
        elif operation is Operation.EQUALIZE:  # OpenCV's table, where torchvision has PIL's
            assert difference.max() <= 8
            assert difference.mean() <= 3.5
        else:
            largest, mean = WITHIN[operation.name]
            assert difference.max() <= largest
            assert difference.mean() <= mean


def test_every_operation_but_identity_does_something(made: dict[Case, Images]) -> None:
    for case, changed in made.items():
        if case.magnitude == 30 and case.operation is not Operation.IDENTITY:
            assert (changed != OF).mean() > 0.2, case


def test_magnitude_0_changes_nothing_and_a_channel_of_one_value_is_not_stretched() -> None:
    drawn = [
        Case(op, 0, 0) for op in Operation if op not in (Operation.AUTOCONTRAST, Operation.EQUALIZE, Operation.SOLARIZE)
    ]
    flat = np.full((2, 8, 8, 3), 77, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert (ours(drawn, noise) == noise).all()
    assert (ours([Case(Operation.AUTOCONTRAST)], flat) == flat).all()


def test_every_operation_is_drawn_equally_often_and_signs_are_even() -> None:
    u = np.random.default_rng(0).random((20_000, 4), np.float32)
    first, second = layers(u, 2, 17, 224)
    kinds = np.bincount(np.concatenate([first.kind, second.kind]), minlength=10) / 40_000
    np.testing.assert_allclose(kinds[Kind.WARP], 5 / 14, atol=0.01)
    np.testing.assert_allclose(kinds[Kind.BRIGHTNESS :], 1 / 14, atol=0.005)
    bright = first.value[first.kind == Kind.BRIGHTNESS]
    np.testing.assert_allclose(np.unique(bright), [1 - ENHANCE * 17 / 30, 1 + ENHANCE * 17 / 30], atol=1e-6)
    np.testing.assert_allclose((bright > 1).mean(), 0.5, atol=0.05)


def test_a_translation_is_100_pixels_of_224_at_most_at_every_size() -> None:
    for size, largest in ((224, 100), (64, 29)):
        drawn = layer(np.full(1, Operation.TRANSLATE_X, np.int32), np.zeros(1, np.int32), 30, size)
        assert drawn.matrix[0, 0, 2] == -largest


def test_posterize_leaves_the_bits_that_torchvision_leaves_at_every_magnitude() -> None:
    space = v2.RandAugment()._AUGMENTATION_SPACE["Posterize"][0](31, 224, 224)
    for magnitude, bits in enumerate(space.tolist()):
        drawn = layer(np.full(1, Operation.POSTERIZE, np.int32), np.zeros(1, np.int32), magnitude, 224)
        assert int(drawn.value[0]) == 256 - 2 ** (8 - bits)
