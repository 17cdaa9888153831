"""The Triton kernels of batch_norm_act, compiled: one for each phase, with a residual and leaky ReLU where it has them."""

from typing import Any

from benchmarks.machine_code import ELEMENT_BYTES, MachineCode, compile_kernel
from fastmpl_kernels.batch_norm_act.settings import NUMBER
from fastmpl_kernels.batch_norm_act.triton_constants import COLUMNS, PARTS, constants_kernel, moments_kernel
from fastmpl_kernels.batch_norm_act.triton_impl import derivative_kernel, forward_kernel
from fastmpl_kernels.batch_norm_act.triton_sums import gradient_sums_kernel, sums_kernel
from fastmpl_kernels.batch_norm_act.triton_tiles import tile

X, TABLE, SUMS = "*x", "*fp32", "*fp64"  # "*x" stands for a pointer to the activation's type
CONSTANTS = {"ACT": NUMBER["leaky_relu"], "RESIDUAL": True}
# The parameters of batch norm's kernels by phase, without their sizes.
PHASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "moments": (
        moments_kernel,
        {
            "sums": SUMS,
            **dict.fromkeys(("moments", "weight", "bias", "table", "running_mean", "running_var"), TABLE),
            "P": "i32",
            "momentum": "fp32",
            "eps": "fp32",
            "RUNNING": True,
        },
    ),
    "forward": (
        forward_kernel,
        {
            **dict.fromkeys(("x_at", "residual_at", "y_at"), X),
            "moments": TABLE,
            "table": TABLE,
            "M": "i32",
            "slope": "fp32",
            **CONSTANTS,
        },
    ),
    "gradient_sums": (
        gradient_sums_kernel,
        {
            **dict.fromkeys(("dy_at", "x_at", "residual_at"), X),
            "moments": TABLE,
            "weight": TABLE,
            "bias": TABLE,
            "out": SUMS,
            "M": "i32",
            "rows_per_part": "i32",
            "slope": "fp32",
            **CONSTANTS,
        },
    ),
    "constants": (
        constants_kernel,
        {
            **dict.fromkeys(("moments", "weight", "bias", "weight_tangent", "bias_tangent"), TABLE),
            **dict.fromkeys(("dweight", "dbias", "table"), TABLE),
            "sums": SUMS,
            "local": SUMS,
            "P": "i32",
            "Q": "i32",
            "TANGENT": False,
            "RANKS": False,
        },
    ),
}
for _phase in ("sums", "add_sums"):
    PHASES[_phase] = (
        sums_kernel,
        {"x_at": X, "addend_at": X, "out": SUMS, "M": "i32", "rows_per_part": "i32", "ADD": _phase == "add_sums"},
    )
for _phase in ("gradient", "joined_gradient", "tangent"):
    _views = ("in_at", "x_at", "residual_at", "residual_in_at", "out_at", "residual_out_at")
    PHASES[_phase] = (
        derivative_kernel,
        {
            **dict.fromkeys(_views, X),
            "moments": TABLE,
            "table": TABLE,
            "M": "i32",
            "slope": "fp32",
            **CONSTANTS,
            "TANGENT": _phase == "tangent",
            "JOINED": _phase == "joined_gradient",
        },
    )
FINALISERS = ("moments", "constants")


def compile_phase(phase: str, dtype: str, channels: int, capability: int) -> MachineCode:
    """The machine code of one of batch norm's kernels."""
    kernel, parameters = PHASES[phase]
    arguments = {name: f"*{dtype}" if kind == X else kind for name, kind in parameters.items()}
    if phase in FINALISERS:
        return compile_kernel(kernel, {**arguments, "C": channels, "PARTS": PARTS, "K": COLUMNS}, capability, 4)
    rows, columns = tile(channels, ELEMENT_BYTES[dtype])
    return compile_kernel(kernel, {**arguments, "C": channels, "R": rows, "K": columns}, capability, 4)
