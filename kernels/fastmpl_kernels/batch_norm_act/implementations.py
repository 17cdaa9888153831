"""Which implementation computes the phases of batch_norm_act: phases.py, the native library, or Triton.

All three have functions of the same names and arguments (phases.py lists them), which take the records of settings.py.
"""

import functools
from types import ModuleType
from typing import Any

from torch import Tensor

from fastmpl_kernels import dispatch
from fastmpl_kernels.batch_norm_act import native, phases
from fastmpl_kernels.batch_norm_act.settings import Norm, Running
from fastmpl_kernels.library import available

OP = "batch_norm_act"
SMALLEST_PART = 65536  # elements of x that one Triton program sums, at least
MOST_PROGRAMS = 512  # of a summing pass, each for 128 channels of a part: enough for a GPU, few to add up
CHANNELS = 128


def parts(rows: int, channels: int) -> int:
    """The number of parts of Triton's sums, all of which hold rows. It depends on the shape alone, so that results do not
    depend on the GPU."""
    most = MOST_PROGRAMS // min(MOST_PROGRAMS, -(-channels // CHANNELS))
    count = max(1, min(most, rows * channels // SMALLEST_PART, rows // 16))
    return -(-rows // -(-rows // count))


def backend_of(x: Tensor) -> dispatch.Backend:
    """The backend for tensors of x's type and device."""
    return dispatch.select(OP, (x,), available if x.dtype in native.DTYPES else None)


class TritonPhases:
    """The phases in Triton. Where it cannot run a kernel, phases.py computes that phase, and all others from then on."""

    def __init__(self) -> None:
        self._known: set[tuple[object, ...]] = set()  # what has run once, so that it compiles
        self.sums = functools.partial(self._call, "sums")
        self.gradient_sums = functools.partial(self._call, "gradient_sums")
        self.gradient = functools.partial(self._call, "gradient")
        self.backward = functools.partial(self._call, "backward")
        self.tangent = functools.partial(self._call, "tangent")
        # no kernels compute a value and its tangent together: on a GPU `unpack_duals` asks for train and tangent instead
        self.dual_sums, self.dual, self.dual_train = phases.dual_sums, phases.dual, phases.dual_train

    def forward(self, x: Tensor, partial: Tensor, norm: Norm, running: Running) -> Any:
        return self._call_that_writes("forward", x, norm, running, partial)

    def train(self, x: Tensor, norm: Norm, running: Running, addend: Tensor | None = None) -> Any:
        return self._call_that_writes("train", x, norm, running, addend=addend)

    def _call(self, phase: str, *arguments: Any) -> Any:
        if OP not in dispatch.fallbacks():
            try:
                return dispatch.launch(OP, arguments[0], _launch, phase, *arguments)
            except dispatch.KernelFailure:  # recorded and said by the dispatcher
                pass
        return getattr(phases, phase)(*arguments)

    def _call_that_writes(
        self, phase: str, x: Tensor, norm: Norm, running: Running, *partial: Tensor, addend: Tensor | None = None
    ) -> Any:
        """Of its kernels the first adds an addend to x, and the second moves the running statistics. If a later one then
        fails, the phase starts again, and must not do so twice; so a first call keeps copies."""
        arguments = (x, *partial, norm, running) if addend is None else (x, *partial, norm, running, addend)
        written = [t for t in (running.mean, running.var, None if addend is None else x) if t is not None]
        kind = (norm.activation, norm.residual is None, running.mean is None, addend is None)
        key = (phase, x.device, x.dtype, x.shape[1], *kind)
        if key in self._known or not written or OP in dispatch.fallbacks():
            return self._call(phase, *arguments)
        before = [t.clone() for t in written]
        try:
            results = dispatch.launch(OP, x, _launch, phase, *arguments)
        except dispatch.KernelFailure:
            for tensor, value in zip(written, before, strict=True):
                tensor.copy_(value)
            return getattr(phases, phase)(*arguments)
        self._known.add(key)
        return results


def _launch(phase: str, *arguments: Any) -> Any:
    from fastmpl_kernels.batch_norm_act import triton_impl  # needs Triton: only where it was chosen

    return getattr(triton_impl, phase)(*arguments)


TRITON = TritonPhases()
Kernels = ModuleType | TritonPhases


def kernels_for(x: Tensor) -> Kernels:
    """The implementation of every phase for tensors of x's type and device; its functions have phases.py's names."""
    backend = backend_of(x)
    if backend == "triton":
        return TRITON
    return native if backend == "native" else phases
