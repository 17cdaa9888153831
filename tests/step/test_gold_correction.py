"""Gold loss correction: what it is where the answer is known, its gradient, and its step in micro-batches."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastmpl.methods.gold_correction import (
    GoldCorrection,
    corrected_cross_entropy,
    estimate_corruption,
)
from fastmpl.methods.views import Logits
from tests.step.captured import batches, config, trainee

NOISY, TRUSTED, CLASSES = 12, 6, 4
NO_RAMP = torch.zeros(())
FORM = {
    "method__name": "gold_correction",
    "method__corruption": "identity",
    "data__trusted": 8,
    "student__model": "perceptron",
}


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits in float64, and labels of every class."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, CLASSES, generator=g, dtype=torch.float64), torch.arange(count) % CLASSES


def some_corruption() -> Tensor:
    """Every share above 0, no two rows alike, not symmetric."""
    return torch.softmax(torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(3)).double(), -1)


def learn(method: GoldCorrection, noisy: Tensor, labels: Tensor, trusted: Tensor, truth: Tensor) -> Tensor:
    return method.learn(Logits(labelled=noisy, trusted=trusted), None, labels, truth, NO_RAMP).loss


def test_the_loss_is_the_cross_entropy_of_the_corrupted_distribution() -> None:
    (logits, labels), c = draw(NOISY), some_corruption()
    p = torch.softmax(logits, -1)
    by_hand = -sum(torch.log(sum(p[i, k] * c[k, labels[i]] for k in range(CLASSES))) for i in range(NOISY)) / NOISY
    torch.testing.assert_close(corrected_cross_entropy(logits, labels, c), by_hand)


def test_without_corruption_it_is_cross_entropy_on_both_kinds_of_labels() -> None:
    (noisy, labels), (trusted, truth) = draw(NOISY), draw(TRUSTED, seed=1)
    every, all_labels = torch.cat([noisy, trusted]).requires_grad_(), torch.cat([labels, truth])
    method = GoldCorrection(torch.eye(CLASSES), trusted_weight=TRUSTED / NOISY)  # each image counts alike
    found = learn(method, every[:NOISY], labels, every[NOISY:], truth) * NOISY / (NOISY + TRUSTED)
    expected = F.cross_entropy(every, all_labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, every)[0] for loss in (found, expected)))


def test_a_corruption_that_exchanges_classes_relabels_the_noisy_images() -> None:
    logits, labels = draw(NOISY)
    logits.requires_grad_()
    named = torch.tensor([2, 0, 3, 1])  # class k is labelled named[k]
    found = corrected_cross_entropy(logits, labels, torch.eye(CLASSES)[named])
    expected = F.cross_entropy(logits, named.argsort()[labels])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (found, expected)))


def test_the_gradient_is_that_of_finite_differences() -> None:
    (noisy, labels), (trusted, truth) = draw(NOISY), draw(TRUSTED, seed=1)
    method = GoldCorrection(some_corruption(), trusted_weight=0.7, label_smoothing=0.1)
    given = noisy.requires_grad_(), trusted.requires_grad_()
    assert torch.autograd.gradcheck(lambda noisy, trusted: learn(method, noisy, labels, trusted, truth), given)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_logits_of_any_size_give_the_loss_of_float64_and_a_bounded_gradient(
    size: float, dtype: torch.dtype, close: float
) -> None:
    """Probabilities that are 0 in float32 have logarithms."""
    logits, labels = draw(NOISY)
    c = estimate_corruption([(logits[:4] * 1e4, torch.tensor([0, 0, 1, 2]))], CLASSES).matrix
    given = (size * logits).to(dtype).requires_grad_()
    found = corrected_cross_entropy(given, labels, c)
    torch.testing.assert_close(found, corrected_cross_entropy(size * logits, labels, c).float(), rtol=close, atol=close)
    (gradient,) = torch.autograd.grad(found, given)
    assert 0 < gradient.abs().max() <= 1 / NOISY
    assert found.dtype == torch.float32 and gradient.isfinite().all()


def test_a_perfect_network_of_true_labels_finds_no_corruption() -> None:
    truth = torch.arange(40) % CLASSES
    found = estimate_corruption([(30.0 * F.one_hot(truth, CLASSES), truth)], CLASSES)
    torch.testing.assert_close(found.matrix, torch.eye(CLASSES), rtol=0, atol=1e-6)
    assert found.images.tolist() == [10] * CLASSES


def test_the_corruption_is_the_mean_prediction_of_each_class_whatever_the_batches() -> None:
    noise, truth = some_corruption(), torch.arange(40) % CLASSES
    logits = noise[truth].log()
    whole = estimate_corruption([(logits, truth)], CLASSES)
    torch.testing.assert_close(whole.matrix, noise.float())
    parts = estimate_corruption(zip(logits.split(7), truth.split(7), strict=True), CLASSES)
    torch.testing.assert_close(parts.matrix, whole.matrix)


def test_labels_of_a_class_without_trusted_images_are_taken_as_they_are() -> None:
    logits = some_corruption().log()[[0, 0, 2]]
    found = estimate_corruption([(logits, torch.tensor([0, 0, 2]))], CLASSES)
    assert found.images.tolist() == [2, 0, 1, 0]
    assert torch.equal(found.matrix[[1, 3]], torch.eye(CLASSES)[[1, 3]])
    torch.testing.assert_close(found.matrix[[0, 2]].sum(-1), torch.ones(2))


def test_micro_batches_take_the_step_of_the_whole_batch() -> None:
    whole, parts = (trainee(config(**FORM, system__accumulate=count), "cpu") for count in (1, 2))
    for batch in batches(config(**FORM), 3):
        metrics = [each.step(batch) for each in (whole, parts)]
        torch.testing.assert_close(metrics[0].student_loss, metrics[1].student_loss)
        torch.testing.assert_close(metrics[0].supervised_loss, metrics[1].supervised_loss)
    for name, value in whole.parts().state().items():
        torch.testing.assert_close(parts.parts().state()[name], value, rtol=1e-5, atol=1e-6)


def test_a_loaded_corruption_is_the_one_that_the_step_learns_through() -> None:
    """Labels that say nothing cost log K, whatever the network."""
    run = trainee(config(**FORM), "cpu")
    (batch,) = batches(config(**FORM), 1)
    run.parts().load(run.parts().state() | {"corruption/matrix": torch.full((10, 10), 0.1)})
    found = run.step(batch)
    torch.testing.assert_close(found.student_loss - found.supervised_loss, torch.tensor(10.0).log())
