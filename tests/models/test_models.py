"""Every network: shapes, seeds, a tangent through every parameter, and a sentence for every mistake."""

import random

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from fastmpl.models import ModelError, build, set_draw, use_batch_statistics
from fastmpl.models.attention import use_math_attention

OWN = [
    ("wrn_10_1", (3, 8, 8)),
    ("wrn_16_2", (1, 28, 28)),
    ("conv", (1, 8, 8)),
    ("conv", (1, 28, 28)),
    ("perceptron", (1, 8, 8)),
    ("perceptron", (2,)),
    ("perceptron_tanh", (2,)),
]
TIMM = [
    ("timm:test_resnet", (3, 32, 32)),
    ("timm:test_efficientnet", (3, 64, 64)),
    ("timm:test_vit", (3, 160, 160)),
    ("timm:test_convnext", (3, 32, 32)),
]


def make(model: str, shape: tuple[int, ...], **changes: object) -> nn.Module:
    options: dict = {"dropout": 0.0, "norm": "batch", "width": 16, "depth": 3, "seed": 0} | changes
    return build(model, classes=10, image_shape=shape, **options)


@pytest.mark.parametrize(("model", "shape"), OWN + TIMM)
def test_network_gives_one_row_of_logits_per_image(model, shape):
    assert make(model, shape)(torch.randn(4, *shape)).shape == (4, 10)


def test_wide_resnet_28_2_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in make("wrn_28_2", (3, 32, 32)).parameters()) == 1_467_610


@pytest.mark.parametrize("pixels", [8, 13, 64])
def test_wide_resnet_takes_images_of_8_to_64_pixels(pixels):
    assert make("wrn_10_1", (3, pixels, pixels))(torch.randn(2, 3, pixels, pixels)).shape == (2, 10)


@pytest.mark.parametrize(
    ("model", "shape", "norm"),
    [(*m, "batch") for m in OWN + TIMM] + [(*m, "group") for m in OWN[:3] + TIMM[:2]],
)
def test_every_parameter_carries_its_tangent_to_the_logits(model, shape, norm):
    """Forward mode equals backward, one parameter at a time: an operator without a rule would give a silent zero."""
    network = make(model, shape, norm=norm, dropout=0.2).double()
    for parameter in network.parameters():  # branches that start at zero would hide what is behind them
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    images, weight = torch.randn(4, *shape).double(), torch.randn(4, 10).double()
    parameters = dict(network.named_parameters())
    with use_batch_statistics(network):
        gradients = torch.autograd.grad((network(images) * weight).sum(), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn_like(parameter)
        with torch.no_grad(), forward_ad.dual_level(), use_batch_statistics(network), use_math_attention(network):
            duals = parameters | {name: forward_ad.make_dual(parameter.detach(), direction)}
            tangent = forward_ad.unpack_dual(functional_call(network, duals, (images,))).tangent
        assert tangent is not None, name
        torch.testing.assert_close((tangent * weight).sum(), (gradient * direction).sum(), rtol=1e-6, atol=1e-9)
        # A shift that the next batch norm removes (EfficientNet's last norm of a block) has no effect in either mode.
        assert tangent.abs().max() > 0 or gradient.abs().max() < 1e-9, name
        assert tangent.abs().max() > 0 or model.startswith("timm:"), name


@pytest.mark.parametrize(("model", "shape"), [OWN[0], OWN[2], OWN[4], TIMM[0]])
def test_parameters_are_a_function_of_the_seed_alone(model, shape):
    first = make(model, shape, seed=5)
    torch.randn(7)
    again, other = make(model, shape, seed=5), make(model, shape, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("model", "shape"), [OWN[0], TIMM[0]])
def test_building_leaves_the_global_generators_as_they_were(model, shape):
    before, python = torch.get_rng_state(), random.getstate()
    make(model, shape, dropout=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python


@pytest.mark.parametrize(("model", "shape"), [OWN[0], OWN[2], *TIMM])
def test_group_norm_leaves_no_batch_norm(model, shape):
    network = make(model, shape, norm="group").eval()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    images = torch.randn(4, *shape)
    torch.testing.assert_close(network.train()(images)[:2], network(images[:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["resnet18", "efficientnet_b0", "test_vit", "mobilenetv3_small_050", "xception41"])
def test_timm_dropout_is_keyed_whether_module_or_function(model):
    size = 160 if model == "test_vit" else 64
    network = make(f"timm:{model}", (3, size, size), dropout=0.5)
    images = torch.randn(4, 3, size, size)
    with use_batch_statistics(network), torch.no_grad():
        set_draw(network, torch.tensor(1))
        first, again = network(images), network(images)
        set_draw(network, torch.tensor(2))
        other = network(images)
    torch.testing.assert_close(first, again, rtol=0, atol=1e-6)
    assert (first - other).abs().max() > 1e-4


@pytest.mark.parametrize(("model", "shape"), [("wrn_10_1", (3, 8, 8)), *TIMM])
def test_network_can_be_built_of_fake_tensors_and_trained(model, shape):
    real = make(model, shape, dropout=0.1)
    with FakeTensorMode():
        fake = make(model, shape, dropout=0.1)
        set_draw(fake, torch.zeros((), dtype=torch.int64))
        fake(torch.empty(2, *shape)).sum().backward()
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.grad.shape for n, p in fake.named_parameters()}


def test_moving_dropout_into_the_classifier_keeps_the_names_of_the_state_dict():
    assert make("timm:resnet18", (3, 32, 32), dropout=0.2).state_dict().keys() == (
        make("timm:resnet18", (3, 32, 32)).state_dict().keys()
    )


@pytest.mark.parametrize(
    ("model", "shape", "changes", "sentence"),
    [
        ("wrn_28", (3, 8, 8), {}, "'wrn_28_2'"),
        ("percepton", (2,), {}, "Did you mean 'perceptron'"),
        ("wrn_27_2", (3, 8, 8), {}, "6n \\+ 4"),
        ("conv", (2,), {}, 'use model = "perceptron"'),
        ("timm:resnet5O", (3, 32, 32), {}, "Did you mean 'timm:resnet50'"),
        ("conv", (3, 8, 8), {"dropout": 1.0}, "below 1"),
    ],
)
def test_a_mistake_is_one_sentence(model, shape, changes, sentence):
    with pytest.raises(ModelError, match=sentence) as error:
        make(model, shape, **changes)
    assert "\n" not in str(error.value)


def test_a_network_whose_own_code_draws_is_refused(monkeypatch):
    import timm

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 10)

        def forward(self, x):
            return self.linear(nn.functional.dropout(x.mean((2, 3)), 0.1, self.training))

    monkeypatch.setattr(timm, "create_model", lambda *a, **k: Noisy())
    with pytest.raises(ModelError, match="draws random numbers in its own code"):
        make("timm:resnet18", (3, 32, 32), dropout=0.1)
