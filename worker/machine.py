# SPDX-License-Identifier: Apache-2.0
"""The machine that trains: its threads, and what a reader of figures must know of it."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from protocol.errors import DeviceUnavailable


@contextmanager
def intra_op_threads(number: int) -> Iterator[None]:
    """Let an operation of torch use so many threads on the CPU; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_PLAIN_ATTENTION = threading.Lock()
_in_plain_attention = ExitStack()
_number_in_plain_attention = 0


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let PyTorch's attention be plain operations, whose gradients have gradients; fused ones' have not.

    It is so for the whole process while anybody is in here.
    """
    global _number_in_plain_attention
    with _PLAIN_ATTENTION:
        if not _number_in_plain_attention:
            _in_plain_attention.enter_context(sdpa_kernel(SDPBackend.MATH))
        _number_in_plain_attention += 1
    try:
        yield
    finally:
        with _PLAIN_ATTENTION:
            _number_in_plain_attention -= 1
            if not _number_in_plain_attention:
                _in_plain_attention.close()


@contextmanager
def whole_float32() -> Iterator[None]:
    """Let a CUDA device compute what is float32 as such: TF32 rounds a thousand times coarser."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def device_name(device: torch.device) -> str:
    """What a CUDA device is sold as; the type of any other: `cpu`, `mps`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def choose_device(name: str) -> torch.device:
    """Give the device called `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the first of cuda, mps, cpu here.

    Raises:
        DeviceUnavailable: this machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if num_cuda else "mps" if has_mps else "cpu")
    here = ["cpu", *(["mps"] if has_mps else []), *(["cuda"] if num_cuda else [])]
    here += [f"cuda:{index}" for index in range(num_cuda)]
    if name not in here:
        raise DeviceUnavailable(f"device {name!r}: this machine has {', '.join(here)}, or say auto")
    return torch.device(name)


def device_uuid(device: torch.device) -> str | None:
    """What NVIDIA's tools call a CUDA device, whatever its number here is; None for any other device."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def description(device: torch.device, threads: int) -> dict[str, str | int]:
    """Device, processor, and versions."""
    return {
        "device": device_name(device),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": threads,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    """The processor's own name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
