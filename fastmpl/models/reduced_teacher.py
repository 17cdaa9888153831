"""The teacher of ReducedMPL: a small perceptron over the stored distribution of a large one.

The large teacher labelled every image once and is gone; what is trained is a correction of its distributions. The input
is a distribution q, the output are logits: log q plus what the perceptron adds. Its last layer starts at zero, so that
training starts at q itself, which is distillation. Memory and arithmetic do not depend on the large teacher.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

FLOOR = 2.0**-14  # the smallest normal half-precision number: below it a stored probability has lost its digits


def log_probabilities(q: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """log max(q, FLOOR): logits whose softmax is q, as far as half precision holds it."""
    return q.clamp(min=FLOOR).log()


class StoredTeacher(nn.Module):
    """A stored distribution's logits as they are: a teacher that does not learn."""

    def forward(self, q: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return log_probabilities(q)


class ReducedTeacher(nn.Module):
    """log q + f(log q), f being `depth` linear layers with ReLU between them, the last starting at zero.

    `width` units a hidden layer, He initialisation from `seed`; torch's generator is left as it was.
    """

    def __init__(self, classes: int, width: int, depth: int, seed: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = classes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for _ in range(depth - 1):
                hidden = nn.Linear(inputs, width)
                nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
                nn.init.zeros_(hidden.bias)
                layers += [hidden, nn.ReLU()]
                inputs = width
            last = nn.Linear(inputs, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(*layers, last)

    def forward(self, q: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        logits = log_probabilities(q)
        corrected: Tensor = logits + self.correction(logits)
        return corrected
