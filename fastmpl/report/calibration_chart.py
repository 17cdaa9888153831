"""How far a confidence can be trusted: the reliability diagram and the expected calibration error.

Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017: images are sorted into bins of equal
width by the probability of their predicted class; in each bin the share of right answers is compared with the mean
probability. With few images in a bin the error is overestimated.
"""

from typing import Final, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fastmpl.report.drawing import COLOUR, Chart, Key, draw, percent_axis
from fastmpl.telemetry.predictions import Predictions

BINS: Final = 15


class Bins(NamedTuple):
    """By bin of confidence: the number of images, the share of right answers and the mean confidence; NaN where empty."""

    images: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean over images of |accuracy - confidence| of their bins, in [0, 1]."""
        filled = self.images > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((gaps * self.images[filled]).sum() / max(self.images.sum(), 1))

    @property
    def excess(self) -> float:
        """Mean confidence minus accuracy over all images: above zero, the network is too sure of itself."""
        filled = self.images > 0
        gaps = (self.confidence - self.accuracy)[filled]
        return float((gaps * self.images[filled]).sum() / max(self.images.sum(), 1))


def sort_into_bins(found: Predictions) -> Bins:
    """The bins of the predictions of one split; a confidence of 1 is in the last one."""
    sure = found.confidence.astype(np.float64)
    place = np.clip((sure * BINS).astype(np.int64), 0, BINS - 1)
    images = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        accuracy, confidence = (
            np.bincount(place, weights=values, minlength=BINS) / images for values in (found.right, sure)
        )
    return Bins(images, accuracy, confidence)


def draw_reliability(bins: Bins) -> Chart:
    """Accuracy over confidence, beside the diagonal of a network that is as often right as it says."""

    def paint(axes: Axes) -> None:
        middles = (np.arange(BINS) + 0.5) / BINS
        axes.bar(middles, bins.images / bins.images.sum(), 1 / BINS, color=COLOUR["muted"], alpha=0.3, linewidth=0)
        axes.plot([0, 1], [0, 1], color=COLOUR["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
        filled = bins.images > 0
        axes.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color=COLOUR["student"], markersize=3.5)
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, 1.02)
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        axes.set_xlabel("confidence", color=COLOUR["muted"])

    title = "Can its confidence be trusted?"
    side = "too sure of itself" if bins.excess > 0 else "less sure than it could be"
    caption = (
        f"Share of right answers by confidence. On the dashed line it is as often right as it says. Expected calibration "
        f"error {100 * bins.error:.1f} % ({BINS} bins); on average it is {side}, by {100 * abs(bins.excess):.1f} points."
    )
    legend = [Key("right answers", "student"), Key("share of all images", "share")]
    return Chart(title, caption, legend, draw(title, (3.6, 3.4), paint))
