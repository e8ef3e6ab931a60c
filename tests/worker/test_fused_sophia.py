# SPDX-License-Identifier: Apache-2.0
"""Fed-Sophia's step as one kernel: on CUDA where it is; always by Triton's interpreter and compiler."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from worker.optimizers.fusing import fused_step_for

ROOT = Path(__file__).parents[2]
HAS_TRITON = find_spec("triton") is not None

if torch.cuda.is_available() and HAS_TRITON:
    from tests.worker.fused_step_cases import *  # noqa: F403


def test_the_kernel_holds_its_cases_in_tritons_interpreter(require_part: Callable[[bool, str], None]) -> None:
    require_part(HAS_TRITON, "triton")
    cases = "tests/worker/fused_step_cases.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cases],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", ["i32", "i64"])
@pytest.mark.parametrize("estimated", [False, True], ids=["plain", "refresh"])
def test_it_compiles_for_an_h100_without_one_and_moves_four_values_at_once_whatever_their_number(
    require_part: Callable[[bool, str], None], tmp_path: Path, estimated: bool, number: str
) -> None:
    """A thread has 16 values of a block: four loads for each tensor read, and four stores."""
    require_part(HAS_TRITON, "triton")
    ptx = ptx_for_an_h100(tmp_path, estimated, number)
    reads, writes = (5, 3) if estimated else (4, 2)
    assert len(re.findall(r"ld\.global\.v4\.", ptx)) == 4 * reads
    assert len(re.findall(r"st\.global\.v4\.", ptx)) == 4 * writes
    assert "div.rn.f32" in ptx and "div.full" not in ptx


def ptx_for_an_h100(cache: Path, estimated: bool, number: str) -> str:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worker.optimizers import fused_sophia

    kernel = fused_sophia._kernel
    tensors = ["parameters", "gradients", "momentum", "hessian", "new_momentum"]
    constants = {"DECAYS": True, "BLOCK": fused_sophia.BLOCK}
    if estimated:
        tensors += ["estimate", "new_hessian"]
    else:
        constants |= {"estimate": None, "new_hessian": None}
    types = dict.fromkeys(kernel.arg_names, "fp32")
    types |= dict.fromkeys(tensors, "*fp32") | dict.fromkeys(constants, "constexpr")
    types |= {"held_back": "*i64", "number": number}
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in tensors}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        options = {"num_warps": fused_sophia.NUM_WARPS, "enable_fp_fusion": False}
        return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]


def test_tensors_of_a_cpu_take_the_plain_step() -> None:
    assert fused_step_for((torch.ones(3),), (torch.ones(3),), None) is None


if torch.cuda.is_available() and HAS_TRITON:

    def test_tensors_of_a_cuda_device_take_the_kernel() -> None:
        ones = torch.ones(3, 4, device="cuda")
        assert fused_step_for((ones,), (ones,), None) is not None

    @pytest.mark.parametrize(
        "other",
        [
            torch.ones(4, 3, device="cuda").mT,
            torch.ones(3, 4, device="cuda", dtype=torch.float64),
            torch.ones(3, 4),
            torch.ones(12, device="cuda"),
        ],
        ids=["not contiguous", "float64", "on the CPU", "another shape"],
    )
    def test_tensors_that_are_not_alike_take_the_plain_step(other: torch.Tensor) -> None:
        assert fused_step_for((torch.ones(3, 4, device="cuda"),), (other,), None) is None
