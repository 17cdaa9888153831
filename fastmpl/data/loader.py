"""Makes the batches of a run from its streams of views, and the state that resumes them.

The state is a step, and a fingerprint of everything that decides what the batch of a step is. It is the same on every
rank and does not depend on the number of ranks, because each rank takes its part of the same global batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.data.draws import StreamName
from fastmpl.data.errors import DataError
from fastmpl.data.prefetch import Prefetcher
from fastmpl.data.view_stream import Replacement, Views, ViewStream

OpenStream = Callable[[StreamName, int], ViewStream]
# the stored probabilities [n, K] of a stream's images at a step, after some of them were replaced
LookUpStored = Callable[[StreamName, int, Sequence[Replacement]], Tensor]


class LabelledImages(NamedTuple):
    """Weak views of images, and the labels to learn from."""

    images: Float[Tensor, "n *image"]
    targets: Int[Tensor, "n"]
    index: Int[Tensor, "n"]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    replaced: tuple[Replacement, ...] = ()


class LabelledStream:
    """A view stream with `targets` [N], the labels to learn from of all images of the data set."""

    def __init__(self, views: ViewStream, targets: Int[Tensor, "N"]) -> None:
        self._views = views
        self._targets = targets

    def next(self) -> LabelledImages:
        """The images of the next step."""
        views = self._views.next()
        return LabelledImages(views.weak, self._targets[views.index], views.index, views.replaced)


class _OpenStreams(NamedTuple):
    labelled: LabelledStream
    unlabelled: ViewStream | None
    trusted: LabelledStream | None


class _MadeBatch(NamedTuple):
    """A batch, and its images that had to be replaced."""

    batch: Batch
    replaced: tuple[Replacement, ...]


def _no_views(labelled: LabelledImages) -> Views:
    """No unlabelled image, in both views."""
    return Views(labelled.images[:0], labelled.images[:0], labelled.index[:0])


class _BatchMaker:
    """Makes one batch after another, from `step` on. It holds no reference to the Loader, which may end before it."""

    def __init__(self, streams: _OpenStreams, look_up: LookUpStored | None, step: int) -> None:
        self._streams, self._look_up, self._step = streams, look_up, step

    def __call__(self) -> _MadeBatch:
        labelled = self._streams.labelled.next()
        trusted = self._streams.trusted.next() if self._streams.trusted else None
        views = self._streams.unlabelled.next() if self._streams.unlabelled else _no_views(labelled)
        assert views.strong is not None
        step, look_up = self._step, self._look_up
        self._step += 1
        batch = Batch(
            labelled=labelled.images,
            targets=labelled.targets,
            labelled_index=labelled.index,
            weak=views.weak,
            strong=views.strong,
            unlabelled_index=views.index,
            trusted=trusted.images if trusted else None,
            trusted_targets=trusted.targets if trusted else None,
            stored_labelled=look_up(StreamName.LABELLED, step, labelled.replaced) if look_up else None,
            stored_unlabelled=look_up(StreamName.UNLABELLED, step, views.replaced)
            if look_up and self._streams.unlabelled
            else None,
        )
        return _MadeBatch(batch, labelled.replaced + (trusted.replaced if trusted else ()) + views.replaced)


class Loader(Iterator[Batch]):
    """This rank's batches, without end. Streams are opened at the first batch, and again after `restore` or `close`.

    ahead: batches that a thread makes before they are asked for. `replaced`: the images of the latest batch that could
    not be read, and the images in their places.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        targets: Int[Tensor, "N"],
        *,
        trusted: bool,
        unlabelled: bool = True,
        fingerprint: Mapping[str, object],
        look_up: LookUpStored | None = None,
        ahead: int = 0,
    ) -> None:
        self._open = open_stream
        self._targets = targets
        self._has_trusted, self._has_unlabelled = trusted, unlabelled
        self._look_up = look_up
        self._fingerprint = dict(fingerprint)
        self._ahead = ahead
        self._step = 0
        self._made: Prefetcher[_MadeBatch] | None = None
        self.replaced: tuple[Replacement, ...] = ()

    def __next__(self) -> Batch:
        return self.next()

    def next(self) -> Batch:
        """The batch of the next step. On a GPU its memory belongs to the caller until the next call."""
        if self._made is None:
            self._made = Prefetcher(
                _BatchMaker(self._open_streams(), self._look_up, self._step), self._ahead, self._targets.device
            )
        batch, self.replaced = self._made.next()
        self._step += 1
        return batch

    def close(self) -> None:
        """Ends the thread and its streams; the next batch would open them again."""
        if self._made is not None:
            self._made.close()
        self._made = None

    def _open_streams(self) -> _OpenStreams:
        def labels(stream: StreamName) -> LabelledStream:
            return LabelledStream(self._open(stream, self._step), self._targets)

        trusted = labels(StreamName.TRUSTED) if self._has_trusted else None
        unlabelled = self._open(StreamName.UNLABELLED, self._step) if self._has_unlabelled else None
        return _OpenStreams(labels(StreamName.LABELLED), unlabelled, trusted)

    def state(self) -> dict[str, object]:
        """What `restore` needs, in types that JSON has: the step of the next batch, and the fingerprint."""
        return {"step": self._step, "fingerprint": dict(self._fingerprint)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continues at the step of `state`. Raises DataError, and changes nothing, if it belongs to other data."""
        step, there = state.get("step"), state.get("fingerprint")
        if not isinstance(step, int) or step < 0 or not isinstance(there, Mapping):
            raise DataError(
                "The checkpoint holds no position in the data. Resume from another checkpoint, or start a new run."
            )
        here = self._fingerprint
        differing = [k for k in {**here, **there} if here.get(k) != there.get(k)]
        if differing:
            what = ", ".join(f"{k} ({there.get(k)} there, {here.get(k)} here)" for k in differing)
            raise DataError(
                f"The checkpoint belongs to other data than this run: {what}. Resume with its settings, or start a new run."
            )
        self._step = step
        self.close()
