"""StreamOpener of views and their labels -> the batches of a run, and the state that resumes them.

The state is a step and a fingerprint of everything that decides what a step's batch is. It is the same on every rank,
and does not name the number of ranks: each takes its part of the same global batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from fastmpl.data.batch import Batch
from fastmpl.data.draws import StreamName
from fastmpl.data.errors import DataError
from fastmpl.data.prefetch import Prefetcher
from fastmpl.data.view_stream import Replacement, ViewStream

Open = Callable[[StreamName, int], ViewStream]
# a stream's stored distributions [n, K] at a step, in which some images stand in for others
Stored = Callable[[StreamName, int, Sequence[Replacement]], Tensor]


class LabelledImages(NamedTuple):
    """Weak views with the labels to learn from."""

    images: Float[Tensor, "n *image"]
    targets: Int[Tensor, "n"]
    index: Int[Tensor, "n"]  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    replaced: tuple[Replacement, ...] = ()


class LabelledStream:
    """A view stream and `targets` [N], the label of every image of the data set that has one."""

    def __init__(self, views: ViewStream, targets: Int[Tensor, "N"]) -> None:
        self._views = views
        self._targets = targets

    def next(self) -> LabelledImages:
        """The next step's images."""
        views = self._views.next()
        return LabelledImages(views.weak, self._targets[views.index], views.index, views.replaced)


class _OpenStreams(NamedTuple):
    labelled: LabelledStream
    unlabelled: ViewStream
    trusted: LabelledStream | None


class _MadeBatch(NamedTuple):
    """A batch, and the images that it lacks."""

    batch: Batch
    replaced: tuple[Replacement, ...]


class _BatchMaker:
    """Makes one batch after another, from `step` on. Knows nothing of the loader, which may end before its thread."""

    def __init__(self, streams: _OpenStreams, stored: Stored | None, step: int) -> None:
        self._streams, self._stored, self._step = streams, stored, step

    def __call__(self) -> _MadeBatch:
        labelled = self._streams.labelled.next()
        trusted = self._streams.trusted.next() if self._streams.trusted else None
        views = self._streams.unlabelled.next()
        assert views.strong is not None
        step, stored = self._step, self._stored
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
            stored_labelled=stored(StreamName.LABELLED, step, labelled.replaced) if stored else None,
            stored_unlabelled=stored(StreamName.UNLABELLED, step, views.replaced) if stored else None,
        )
        return _MadeBatch(batch, labelled.replaced + (trusted.replaced if trusted else ()) + views.replaced)


class Loader(Iterator[Batch]):
    """This rank's batches, without end. StreamOpener are opened at the first batch, and again after `restore`.

    ahead: batches that a thread makes before they are asked for. `replaced`: the images of the latest batch that could
    not be read, and those in their places.
    """

    def __init__(
        self,
        open_stream: Open,
        targets: Int[Tensor, "N"],
        *,
        trusted: bool,
        fingerprint: Mapping[str, object],
        stored: Stored | None = None,
        ahead: int = 0,
    ) -> None:
        self._open = open_stream
        self._targets = targets
        self._has_trusted = trusted
        self._stored = stored
        self._fingerprint = dict(fingerprint)
        self._ahead = ahead
        self._step = 0
        self._made: Prefetcher[_MadeBatch] | None = None
        self.replaced: tuple[Replacement, ...] = ()

    def __next__(self) -> Batch:
        return self.next()

    def next(self) -> Batch:
        """The batch of the next step. On a GPU its tensors are the caller's until the next call; else for ever."""
        if self._made is None:
            self._made = Prefetcher(
                _BatchMaker(self._opened(), self._stored, self._step), self._ahead, self._targets.device
            )
        batch, self.replaced = self._made.next()
        self._step += 1
        return batch

    def close(self) -> None:
        """Ends the thread; the next batch would start another."""
        if self._made is not None:
            self._made.close()
        self._made = None

    def _opened(self) -> _OpenStreams:
        def labels(stream: StreamName) -> LabelledStream:
            return LabelledStream(self._open(stream, self._step), self._targets)

        trusted = labels(StreamName.TRUSTED) if self._has_trusted else None
        return _OpenStreams(labels(StreamName.LABELLED), self._open(StreamName.UNLABELLED, self._step), trusted)

    def state(self) -> dict[str, object]:
        """What `restore` needs, as JSON can hold it: the next batch's step and the fingerprint."""
        return {"step": self._step, "fingerprint": dict(self._fingerprint)}

    def restore(self, state: Mapping[str, object]) -> None:
        """Continues at `state`'s step. Raises DataError, and changes nothing, if it is of other data or settings."""
        step, there = state.get("step"), state.get("fingerprint")
        if not isinstance(step, int) or step < 0 or not isinstance(there, Mapping):
            raise DataError(
                "The checkpoint holds no position in the data: resume from another one, or start a new run."
            )
        here = self._fingerprint
        differing = [k for k in {**here, **there} if here.get(k) != there.get(k)]
        if differing:
            what = ", ".join(f"{k} ({there.get(k)} there, {here.get(k)} here)" for k in differing)
            raise DataError(
                f"The checkpoint is of other data than this run: {what}. Resume with its settings, or start a new run."
            )
        self._step = step
        self.close()
