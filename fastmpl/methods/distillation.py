"""Distillation: the student learns the distribution of a fixed teacher, and nothing else.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, without its supervised term: what Meta
Pseudo Labels becomes when its teacher is frozen.
"""

from fastmpl.methods.pseudo_label import PseudoLabel
from fastmpl.methods.views import View


def distillation(*, label_view: View, temperature: float, student_label_smoothing: float = 0.0) -> PseudoLabel:
    """Soft pseudo labels of a fixed teacher, without threshold and without a supervised loss."""
    return PseudoLabel(
        targets="soft",
        labeller="fixed",
        label_view=label_view,
        temperature=temperature,
        supervised_weight=0.0,
        student_label_smoothing=student_label_smoothing,
    )
