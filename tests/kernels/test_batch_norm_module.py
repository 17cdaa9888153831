"""BatchNormAct2d computes what nn.BatchNorm2d and its activation do, and a swap does not change a model's output."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fastmpl_kernels.batch_norm_act.module import BatchNormAct2d, fuse_batch_norm_act


def images(channels: int = 8) -> Tensor:
    x = torch.randn(4, channels, 6, 6, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("track", [True, False], ids=["tracking", "not tracking"])
@pytest.mark.parametrize("switched", [True, False], ids=["switched after", "built so"])
def test_module_equals_batch_norm_then_activation(training: bool, track: bool, switched: bool) -> None:
    built = True if switched else track
    ours = BatchNormAct2d(8, track_running_stats=built, activation="leaky_relu", slope=0.1).train(training)
    norm = nn.BatchNorm2d(8, track_running_stats=built).train(training)
    ours.track_running_stats = norm.track_running_stats = track
    theirs = nn.Sequential(norm, nn.LeakyReLU(0.1))
    for _ in range(2):
        torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.state_dict(), norm.state_dict(), rtol=1e-5, atol=1e-5)


def test_cumulative_average_equals_torch_s() -> None:
    ours, theirs = BatchNormAct2d(8, momentum=None, activation="none"), nn.BatchNorm2d(8, momentum=None)
    for scale in (1.0, 2.0, 3.0):
        ours(images() * scale)
        theirs(images() * scale)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-5)


def test_residual_is_added_before_the_activation() -> None:
    module, x = BatchNormAct2d(8, activation="relu"), images()
    expected = torch.relu(nn.BatchNorm2d(8)(x) + x.flip(0))
    torch.testing.assert_close(module(x, x.flip(0)), expected, rtol=1e-5, atol=1e-5)
    assert module.eval()(x, x.flip(0)).min() >= 0


def test_state_dict_has_the_names_of_batch_norm() -> None:
    assert list(BatchNormAct2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_sequential_gets_its_activation_fused_and_keeps_its_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    keys, parameters = list(model.state_dict()), list(model.parameters())
    original = copy.deepcopy(model)
    assert fuse_batch_norm_act(model) == 1
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert isinstance(model[1], BatchNormAct2d)
    assert model[1].activation == "silu"
    assert isinstance(model[2], nn.Identity)
    torch.testing.assert_close(model(images(3)), original(images(3)), rtol=1e-4, atol=1e-5)


class Branching(nn.Sequential):
    """A sequential by its class, whose own forward uses the norm's result twice."""

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self[0](x)
        activated: Tensor = self[1](normalised)
        return activated - normalised


def test_a_sequential_with_a_forward_of_its_own_keeps_its_activations() -> None:
    plain = Branching(nn.BatchNorm2d(4), nn.ReLU())
    fused = copy.deepcopy(plain)
    assert fuse_batch_norm_act(fused) == 0
    x = torch.randn(3, 4, 5, 5)
    torch.testing.assert_close(fused(x), plain(x))


def test_a_norm_and_an_activation_that_several_places_share_are_fused_where_they_are_a_pair() -> None:
    norm, act = nn.BatchNorm2d(4), nn.ReLU()
    plain = nn.Sequential(nn.Sequential(norm, act), nn.Conv2d(4, 4, 1), nn.Sequential(norm), nn.Conv2d(4, 4, 1), act)
    fused = copy.deepcopy(plain)
    assert fuse_batch_norm_act(fused) == 1
    x = torch.randn(3, 4, 5, 5)
    for _ in range(2):
        torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_unknown_activation_is_left_in_its_place() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.GELU())
    assert fuse_batch_norm_act(model) == 0
    assert isinstance(model[1], nn.GELU)


def test_names_alone_do_not_make_a_stranger_s_modules_a_pair() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn1, self.act1 = nn.BatchNorm2d(8), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act1(self.bn1(x).mean((2, 3)))  # type: ignore[no-any-return]

    model = Apart()
    original = copy.deepcopy(model)
    assert fuse_batch_norm_act(model) == 0
    torch.testing.assert_close(model(images()), original(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "fused"),
    [("resnet18", 9), ("resnet26d", 19), ("efficientnet_b0", 33), ("regnety_002", 27), ("mobilenetv3_small_050", 5)],
)
def test_timm_model_computes_the_same_with_fused_norms(name: str, fused: int) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).double().to(memory_format=torch.channels_last)
    swapped = copy.deepcopy(model)
    assert fuse_batch_norm_act(swapped) == fused
    assert list(swapped.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    for module in (*model.modules(), *swapped.modules()):
        if hasattr(module, "drop_rate"):
            module.drop_rate = 0.0
    torch.testing.assert_close(swapped.train()(x), model.train()(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(swapped.eval()(x), model.eval()(x), rtol=1e-6, atol=1e-6)
