"""The private details of DeepSpeed that sharded learners use are there, and a plain run never imports it."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAIN = """
import sys
from pathlib import Path
from fastmpl.run import trainer
from fastmpl.config import load
changes = {"run.output": sys.argv[1], "run.steps": 2, "data.batch_unlabelled": 20}
trainer.train(load(Path("launch/configs/digits.toml"), changes), quiet=True, report=False)
print(any(name.partition(".")[0] == "deepspeed" for name in sys.modules))
"""


def test_a_plain_run_never_imports_deepspeed(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="a run reads its images by DALI: pip install nvidia-dali-cuda130")
    command = [sys.executable, "-c", PLAIN, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.split()[-1] == "False"


def test_private_details_of_deepspeed_are_what_they_were() -> None:
    """Read in the sources, which is faster than to import them; what they do is tested on ranks."""
    pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
    from deepspeed.ops import __compatible_ops__
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
    from deepspeed.utils import groups

    assert "deepspeed_shm_comm" in __compatible_ops__
    assert hasattr(groups, "_WORLD_GROUP")
    fields = DeepSpeedZeroConfig.model_fields
    assert {"compute_grad_norm", "memory_efficient_linear", "sub_group_size"} <= set(fields)
    assert fields["memory_efficient_linear"].default is True  # so that it has to be switched off
    for name in (
        "_get_norm_groups",
        "_partition_all_parameters",
        "clear_backward_seen_flag",
    ):
        assert hasattr(DeepSpeedZeroOptimizer_Stage3, name)
    for name in ("step", "scaled_global_norm", "_optimizer_step"):
        assert hasattr(DeepSpeedZeroOptimizer, name)


def test_our_import_of_deepspeed_compiles_nothing_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("deepspeed", reason="pip install fastmpl[sharded]")
    from fastmpl.learners.zero.engine import LOGGER, deepspeed

    assert deepspeed().ops.__compatible_ops__["deepspeed_shm_comm"] is False
    logging.getLogger(LOGGER).warning("noise")
    assert capsys.readouterr() == ("", "")
