# SPDX-License-Identifier: Apache-2.0
"""Bytes and messages that load for ever. Add files here; never change one that was released."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import BaseModel

from protocol.codec import NamedTensor, decode_message, digest_of, encode_message, read_layout
from protocol.header import Kind
from protocol.messages import (
    Assignment,
    Enrolment,
    EvaluationAssignment,
    Receipt,
    RunSpec,
    UpdateHeader,
    WorkerInRound,
    parse,
)
from protocol.run_archive import RunArchive

HERE = Path(__file__).parent
Float32Array = npt.NDArray[np.float32]

WEIGHT = np.array([[1, -2, 0.5], [0, 3.25, -0.125]], np.float32)
BIAS = np.array([0.1, -0.001, 65504], np.float32)
BIAS_AS_BF16 = np.array([0.10009765625, -0.00099945068359375, 65536], np.float32)
BIAS_AS_F16 = np.array([0.0999755859375, -0.0010004043579101562, 65504], np.float32)

BOX = {"scale": 127 * 7 / 1024, "shrinkage": 0.0009765625}
"""Levels of 7/1024 and of 127/1024, which float32 holds."""
ON_LEVELS = np.array([[127, -127, 0], [1, -64, 33]], np.float32) * np.float32(7 / 1024)
ON_FEW_LEVELS = np.array([7, -7, 1], np.float32) * np.float32(127 / 1024)
ROOTS = np.array([[0.125, 1.875, 0], [1, 0.5, 0.25]], np.float32)

# file -> (kind, digest, what was encoded, what is decoded)
Encoded = list[NamedTensor]
Decoded = dict[str, dict[str, Float32Array]]
GOLDEN: dict[str, tuple[Kind, str, Encoded, Decoded]] = {
    "state-f32": (
        "state",
        "7133182a562378aebceafdff612fd1dc45c9dacbbbeb301a0beb8b3e643c03ac",
        [NamedTensor("params", "fc.weight", WEIGHT), NamedTensor("params", "fc.bias", BIAS)],
        {"params": {"fc.weight": WEIGHT, "fc.bias": BIAS}},
    ),
    "update-bf16-delta-f32-hessian": (
        "update",
        "83357728b9fd7d43e9c83c9c415355a81d9ff809bcba904de6b50d499fb2bb1c",
        [
            NamedTensor("delta", "fc.weight", WEIGHT, "bf16"),
            NamedTensor("delta", "fc.bias", BIAS, "bf16"),
            NamedTensor("hessian", "fc.weight", np.abs(WEIGHT)),
            NamedTensor("hessian", "fc.bias", np.abs(BIAS)),
        ],
        {
            "delta": {"fc.weight": WEIGHT, "fc.bias": BIAS_AS_BF16},
            "hessian": {"fc.weight": np.abs(WEIGHT), "fc.bias": np.abs(BIAS)},
        },
    ),
    "update-f16": (
        "update",
        "acd85659d363fa9aa1f5c306598b31b5924cb1f0a62fd85e962ffa071a8cadcc",
        [NamedTensor("delta", "fc.bias", BIAS, "f16")],
        {"delta": {"fc.bias": BIAS_AS_F16}},
    ),
    "state-empty-and-scalar": (
        "state",
        "b254c6002c32f86327d7244145b688f0041b1c52be2abc6580dc60e652f03231",
        [
            NamedTensor("params", "empty", np.zeros((0, 4), np.float32)),
            NamedTensor("params", "scalar", np.array(2.5, np.float32)),
            NamedTensor("params", "empty.too", np.zeros((3, 0), np.float32)),
            NamedTensor("params", "one", np.array([-1.0], np.float32)),
        ],
        {
            "params": {
                "empty": np.zeros((0, 4), np.float32),
                "scalar": np.array(2.5, np.float32),
                "empty.too": np.zeros((3, 0), np.float32),
                "one": np.array([-1.0], np.float32),
            }
        },
    ),
    "update-integers": (
        "update",
        "08b9df783d13c8c30482a3a4f357e9f6500fc28512eb01eb7d531de4ed986143",
        [
            NamedTensor("delta", "fc.weight", ON_LEVELS, "bounded_int8", constants=BOX),
            NamedTensor("delta", "fc.bias", ON_FEW_LEVELS, "bounded_int4", constants=BOX),
            NamedTensor("hessian", "fc.weight", ROOTS**2, "sqrt_int8", constants={"scale": 255 / 128}),
            NamedTensor("hessian", "fc.bias", ROOTS[0] ** 2, "sqrt_int4", constants={"scale": 15 / 8}),
            NamedTensor("hessian", "zeros", np.zeros(3, np.float32), "sqrt_int4"),
        ],
        {
            "delta": {"fc.weight": ON_LEVELS, "fc.bias": ON_FEW_LEVELS},
            "hessian": {"fc.weight": ROOTS**2, "fc.bias": ROOTS[0] ** 2, "zeros": np.zeros(3, np.float32)},
        },
    ),
    "state-direction": (
        "state",
        "ed22f25ea6a61c100527b7dcc2fbd33e22b07ba4648754193b4e17205b907072",
        [
            NamedTensor(
                "direction", "fc.weight", np.array([1, -1, 0.25, -0.1, 0, 0.004], np.float32), "unit_int8"
            )
        ],
        {
            "direction": {
                "fc.weight": np.array([127, -127, 32, -13, 0, 1], np.float32) * np.float32(1 / 127),
            }
        },
    ),
    "state-without-tensors": (
        "state",
        "03060d2c195d5810ef2a90a786a9160d85b532b659734ef86095d579dfdc5189",
        [],
        {},
    ),
}
MESSAGES: dict[str, type[BaseModel]] = {
    "run-spec": RunSpec,
    "run-spec-least": RunSpec,
    "assignment": Assignment,
    "assignment-heartbeat": Assignment,
    "evaluation-assignment": EvaluationAssignment,
    "evaluation-assignment-heartbeat": EvaluationAssignment,
    "update-header": UpdateHeader,
    "receipt": Receipt,
    "receipt-not-counted": Receipt,
    "worker-in-round": WorkerInRound,
    "enrolment": Enrolment,
    "run-archive": RunArchive,
}


def test_every_file_of_the_folder_is_tested() -> None:
    assert {path.stem for path in HERE.glob("*.bin")} == set(GOLDEN)
    assert {path.stem for path in HERE.glob("*.json")} == set(MESSAGES)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_message_decodes_to_the_values_it_always_had(name: str) -> None:
    kind, digest, _, expected = GOLDEN[name]
    message = (HERE / f"{name}.bin").read_bytes()
    assert digest_of([message]) == digest
    assert read_layout(message).header.kind == kind
    decoded = decode_message(message)
    assert {bundle: list(tensors) for bundle, tensors in decoded.items()} == {
        bundle: list(tensors) for bundle, tensors in expected.items()
    }
    for bundle, tensors in expected.items():
        for tensor, values in tensors.items():
            assert decoded[bundle][tensor].shape == values.shape
            assert decoded[bundle][tensor].tobytes() == values.tobytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_the_same_tensors_are_the_same_bytes_today(name: str) -> None:
    kind, digest, tensors, _ = GOLDEN[name]
    buffers = encode_message(kind, tensors)
    assert b"".join(buffers) == (HERE / f"{name}.bin").read_bytes()
    assert digest_of(buffers) == digest


def assert_still_said(golden: object, said: object, where: str = "message") -> None:
    """All that is golden is said today, whatever has come beside it."""
    if isinstance(golden, dict):
        assert isinstance(said, dict), where
        for name, value in golden.items():
            assert_still_said(value, said[name], f"{where}.{name}")
    elif isinstance(golden, list):
        assert isinstance(said, list) and len(said) == len(golden), where
        for index, value in enumerate(golden):
            assert_still_said(value, said[index], f"{where}.{index}")
    else:
        assert said == golden, where


@pytest.mark.parametrize("name", MESSAGES)
def test_a_golden_json_message_loads_and_says_what_it_always_said(name: str) -> None:
    text = (HERE / f"{name}.json").read_text(encoding="utf-8")
    message = parse(MESSAGES[name], text)
    assert_still_said(json.loads(text), json.loads(message.model_dump_json()))
    assert parse(MESSAGES[name], message.model_dump_json()) == message


def test_the_golden_run_names_its_tensors_in_order() -> None:
    spec = parse(RunSpec, (HERE / "run-spec.json").read_bytes())
    assert [(tensor.name, tensor.shape) for tensor in spec.model] == [
        ("fc.weight", (10, 64)),
        ("fc.bias", (10,)),
    ]
