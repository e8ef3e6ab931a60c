# SPDX-License-Identifier: Apache-2.0
"""JSON messages: what a caller sends is strict, what a server answers may say more."""

import json

import pytest
from pydantic import BaseModel

from protocol import messages
from protocol.errors import InvalidMessage
from protocol.messages import (
    ANY_ASSIGNMENT,
    Answered,
    Assignment,
    EvaluationAssignment,
    RoundStatus,
    RunSpec,
    RunStatus,
    RunSummary,
    Said,
    UpdateHeader,
    parse,
)

DIGEST = "ab" * 32
SPEC = {
    "name": "digits-1",
    "task": "digits",
    "algorithm": "fed-sophia-shared",
    "model": [{"name": "fc.weight", "shape": [10, 64]}, {"name": "fc.bias", "shape": [10]}],
    "params_digest": DIGEST,
    "rounds": 20,
    "cohort_size": 4,
    "quorum": 3,
}
ASSIGNMENT = {
    "assignment_id": "a1", "run_id": "r1", "round": 3, "version": 2, "slot": 0, "phase": "train",
    "task": "digits", "tensors": {"params": DIGEST}, "bundles": ["delta"], "encodings": {"delta": "f32"},
    "optimizer": "sgd", "settings": {"learning_rate": 0.1}, "local_steps": 10, "batch_size": 32,
    "seed": 7, "deadline_ms": 1_700_000_000_000,
}  # fmt: skip
UPDATE = {
    "digest": DIGEST, "size_bytes": 1000, "bundles": ["delta"], "encodings": {"delta": "f32"},
    "num_examples": 60, "local_steps": 10,
}  # fmt: skip
EXAMPLES: dict[str, dict[str, object]] = {
    "Enrolment": {"name": "laptop-1", "public_key": "p" * 43, "proof": "a.b.c", "tasks": ["digits"]},
    "AccessTokenRequest": {"assertion": "a.b.c"},
    "AccessToken": {"access_token": "fsa_x", "expires_s": 900},
    "KeyRotation": {"public_key": "p" * 43, "proof": "a.b.c", "consent": "d.e.f"},
    "Enrolled": {"worker_id": "w1", "role": "trainer", "protocol_version": 1},
    "JoinTokenRequest": {},
    "JoinTokenIssued": {
        "token_id": "t1", "join_token": "secret", "uses": 1, "role": "trainer", "expires_ms": 1,
    },
    "JoinTokenSummary": {
        "token_id": "t1", "label": "default", "role": "trainer", "uses_left": 1, "created_ms": 1,
        "expires_ms": 2,
    },
    "WorkerSummary": {
        "worker_id": "w1", "name": "laptop-1", "role": "trainer", "tasks": ["digits"], "enrolled_ms": 1,
        "last_seen_ms": 2,
    },
    "TensorSpec": {"name": "w", "shape": [2, 3]},
    "AdaptiveDeadline": {"spread": 3.0, "floor_s": 2.0, "ceiling_s": 60.0},
    "AsynchronousRounds": {"max_staleness": 5, "concurrency": 8},
    "TargetMetric": {"name": "test_accuracy", "at_least": 0.8},
    "BestVersions": {"metric": "test_accuracy", "count": 2},
    "Retention": {"last": 3, "every": 10},
    "RunSpec": SPEC,
    "RunStanding": {"run_id": "r1", "status": "finished"},
    "RunSummary": {
        "run_id": "r1", "spec": SPEC, "status": "running", "round": 1, "version": 0,
        "tensors": {"params": DIGEST}, "members": 4, "created_ms": 1,
    },
    "RoundSummary": {
        "round": 1, "status": "committed", "base_version": 0, "invited": 4, "admitted": 4, "declined": 0,
        "opened_ms": 1, "deadline_ms": 2, "bytes_up": 0, "bytes_down": 0,
    },
    "WorkerInRound": {
        "slot": 3, "worker_id": "w1", "name": "laptop-1", "assignment_id": "a1",
        "standing": "refused", "reason": "outside-bound",
    },
    "VersionSummary": {"version": 1, "tensors": {"params": DIGEST}, "created_ms": 1},
    "Assignment": ASSIGNMENT,
    "EvaluationAssignment": {"run_id": "r1", "version": 1, "task": "digits", "tensors": {"params": DIGEST}},
    "UpdateHeader": UPDATE,
    "StoreRequest": {"url": "https://s3.example/key?X-Amz-Signature=0", "headers": {"Content-Length": "1"}},
    "UploadOffer": {"upload_url": "/v1/uploads/u1", "offset": 0},
    "Receipt": {"assignment_id": "a1", "digest": DIGEST, "received_ms": 1, "outcome": "pending"},
    "Decline": {"reason": "on battery"},
    "Heartbeat": {},
    "MetricsReport": {"version": 1, "num_examples": 10, "metrics": {"accuracy": 0.5}},
    "Problem": {
        "type": "about:blank", "title": "Not found", "status": 404, "detail": "no such run",
        "code": "not-found", "retryable": False,
    },
}  # fmt: skip


def classes_under(root: type[BaseModel]) -> list[str]:
    return sorted(
        name
        for name, found in vars(messages).items()
        if isinstance(found, type) and issubclass(found, root) and found is not root
    )


def a_spec(**changes: object) -> dict[str, object]:
    return SPEC | changes


def message_class(name: str) -> type[BaseModel]:
    found: type[BaseModel] = getattr(messages, name)
    return found


def test_there_is_an_example_of_every_message() -> None:
    assert sorted(EXAMPLES) == sorted(classes_under(Said) + classes_under(Answered))


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_message_comes_back_from_json_as_it_was(name: str) -> None:
    message = parse(message_class(name), EXAMPLES[name])
    assert parse(message_class(name), message.model_dump_json()) == message
    assert parse(message_class(name), message.model_dump_json().encode()) == message
    assert json.loads(message.model_dump_json())


@pytest.mark.parametrize("name", classes_under(Said))
def test_an_unknown_field_in_what_a_caller_sends_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidMessage, match=rf"{name}\.colour"):
        parse(message_class(name), EXAMPLES[name] | {"colour": "red"})


@pytest.mark.parametrize("name", classes_under(Answered))
def test_an_unknown_field_in_an_answer_is_ignored(name: str) -> None:
    assert parse(message_class(name), EXAMPLES[name] | {"colour": "red"}) == parse(
        message_class(name), EXAMPLES[name]
    )


def test_a_newer_server_may_say_more_of_a_run() -> None:
    newer = EXAMPLES["RunSummary"] | {"spec": a_spec(sponsor="nobody")}
    assert parse(RunSummary, newer) == parse(RunSummary, EXAMPLES["RunSummary"])
    assert parse(RunSummary, json.dumps(newer)) == parse(RunSummary, EXAMPLES["RunSummary"])


def test_a_run_that_would_not_be_begun_any_more_can_still_be_read() -> None:
    """Else one such run would stop the server from looking at all the others."""
    plain = {"hyperparameters": {}, "encodings": {}, "algorithm": "curvature-weighted"}
    for changes in ({"asynchronous": {}, "combiners": {}}, {"combiners": {"hessian": "median"}}):
        spec = json.dumps(a_spec(**plain, **changes))
        with pytest.raises(InvalidMessage, match="curvature-weighted"):
            parse(RunSpec, spec)
        assert RunSpec.stored(spec).algorithm == "curvature-weighted"


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_a_message_cannot_be_changed(name: str) -> None:
    message = parse(message_class(name), EXAMPLES[name])
    field = next(iter(type(message).model_fields))
    with pytest.raises(ValueError, match="frozen"):
        setattr(message, field, None)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"quorum": 5}, "quorum 5 is larger than cohort_size 4"),
        ({"quorum": 0}, "quorum"),
        ({"algorithm": "adam"}, "algorithm 'adam'"),
        ({"hyperparameters": {"warmup": 1}}, "hyper-parameter warmup"),
        ({"hyperparameters": {"clip_bound": -1}}, "hyper-parameter clip_bound"),
        ({"hyperparameters": {"weight_decay": 10, "clip_bound": 1e-3}}, "weight_decay"),
        ({"model": [{"name": "w", "shape": [2]}, {"name": "w", "shape": [3]}]}, "model: a tensor name"),
        ({"model": []}, "model"),
        ({"model": [{"name": "w", "shape": [-1]}]}, r"model\.0\.shape\.0"),
        ({"model": [{"name": "w", "shape": [1] * 17}]}, r"model\.0\.shape"),
        ({"model": [{"name": "w", "shape": [2**30]}]}, r"model\.0: .*Split it"),
        ({"model": [{"name": "w", "shape": [0, 2**39, 2**39]}]}, r"model\.0"),
        ({"model": [{"name": "w", "shape": [2], "dtype": "float64"}]}, r"model\.0\.dtype"),
        ({"model": [{"name": f"{i:0256d}", "shape": [2]} for i in range(2_000)]}, "model: the header"),
        (
            {
                "algorithm": "scaffold",
                "hyperparameters": {},
                "combiners": {},
                "encodings": {},
                "asynchronous": {},
            },
            "asynchronous: scaffold cannot be, because its control variates",
        ),
        (
            {
                "algorithm": "curvature-weighted",
                "hyperparameters": {},
                "combiners": {},
                "encodings": {},
                "asynchronous": {},
            },
            "asynchronous: curvature-weighted cannot be, because it weighs each delta",
        ),
        (
            {
                "algorithm": "curvature-weighted",
                "hyperparameters": {},
                "combiners": {"hessian": "trimmed_mean"},
                "encodings": {},
            },
            "combiners: curvature-weighted has its own, because deltas",
        ),
        ({"combiners": {"params": "mean"}}, "combiners: fed-sophia-shared sends no bundle 'params'"),
        ({"encodings": {"buffers": "f32"}}, "encodings: fed-sophia-shared sends no bundle 'buffers'"),
        ({"encodings": {"hessian": "bounded_int8"}}, "encodings: bounded_int8 is for delta, not for hessian"),
        ({"encodings": {"delta": "sqrt_int4"}}, "encodings: sqrt_int4 is for hessian, not for delta"),
        ({"encodings": {"delta": "unit_int8"}}, "encodings: unit_int8 is for direction, not for delta"),
        ({"encodings": {"direction": "sqrt_int8"}}, "encodings: sqrt_int8 is for hessian, not for direction"),
        ({"encodings": {"delta": "f8"}}, "encodings: expected some of f32, bf16, f16"),
        ({"params_digest": "AB" * 32}, "params_digest"),
        ({"name": "../up"}, "name"),
        ({"rounds": 0}, "rounds"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"schema_version": 2}, "schema_version"),
        ({"schema_version": True}, "schema_version"),
        ({"schema_version": 1.0}, "schema_version"),
        ({"rounds": "3"}, "rounds"),
        ({"quorum": True}, "quorum"),
        ({"cohort_size": 4.0}, "cohort_size"),
        ({"model": [{"name": "w", "shape": [2.0]}]}, r"model\.0\.shape"),
        ({"hyperparameters": {"clip_bound": "7"}}, "hyperparameters"),
        ({"hyperparameters": {"refresh_rounds": True}}, "refresh_rounds"),
        ({"hyperparameters": {"refresh_rounds": 2.5}}, "refresh_rounds"),
        ({"hyperparameters": {f"h{index}": 1 for index in range(65)}}, "hyperparameters"),
        ({"algorithm": "a" * 1_000}, "algorithm"),
        ({"batch_size": 7}, "batch_size 7"),
        ({"cohort_size": None}, "one of cohort_size and cohort_fraction"),
        ({"cohort_fraction": 0.5}, "one of cohort_size and cohort_fraction"),
        ({"cohort_size": None, "cohort_fraction": 0.5}, "min_workers"),
        ({"cohort_size": None, "cohort_fraction": 0.5, "min_workers": 4}, "quorum 3 is larger"),
        ({"over_selection": 0.9}, "over_selection"),
        ({"adaptive_deadline": {"floor_s": 2, "ceiling_s": 1}}, "adaptive_deadline"),
        ({"target_metric": {"name": "loss"}}, "one of at_least and at_most"),
        ({"target_metric": {"name": "loss", "at_least": 1, "at_most": 2}}, "one of at_least and at_most"),
        ({"max_duration_s": 0}, "max_duration_s"),
        ({"max_delta_norm": 0}, "max_delta_norm"),
        ({"max_delta_norm": 1e10}, "max_delta_norm"),
        ({"max_extensions": -1}, "max_extensions"),
    ],
)
def test_a_run_that_does_not_fit_together_is_refused_and_the_field_is_named(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidMessage, match=field):
        parse(RunSpec, a_spec(**changes))


def test_what_a_run_leaves_out_is_filled_in() -> None:
    spec = parse(RunSpec, SPEC)
    assert spec.encoding_of("delta") == "f32"
    assert spec.model[0].num_elements == 640
    assert spec.payload_bytes(("delta", "hessian")) == 2 * 4 * 650
    halved = parse(RunSpec, a_spec(encodings={"delta": "bf16"}))
    assert halved.payload_bytes(("delta", "hessian")) == (2 + 4) * 650


def test_a_run_of_thousands_of_tensors_with_ordinary_names_is_accepted() -> None:
    tensors = [{"name": f"blocks.{index}.attn.weight", "shape": [64, 64]} for index in range(3_500)]
    assert len(parse(RunSpec, a_spec(model=tensors)).model) == 3_500


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"metrics": {"loss": float("nan")}}, "metrics.loss"),
        ({"metrics": {"loss": float("inf")}}, "metrics.loss"),
        ({"metrics": {"Loss of today": 1.0}}, "metrics"),
        ({"metrics": {f"m{index}": 1.0 for index in range(33)}}, "metrics"),
        ({"num_examples": 0}, "num_examples"),
        ({"num_examples": 10_000_001}, "num_examples"),
        ({"local_steps": 0}, "local_steps"),
        ({"size_bytes": 0}, "size_bytes"),
        ({"digest": DIGEST[:-1]}, "digest"),
        ({"size_bytes": "1000"}, "size_bytes"),
        ({"num_examples": True}, "num_examples"),
        ({"metrics": {"loss": True}}, "metrics.loss"),
        ({"bundles": ["delta"] * 17}, "bundles"),
        ({"encodings": {f"b{index}": "f32" for index in range(17)}}, "encodings"),
    ],
)
def test_a_declaration_out_of_range_is_refused_and_the_field_is_named(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidMessage, match=rf"UpdateHeader\.{field}"):
        parse(UpdateHeader, UPDATE | changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"public_key": "p" * 42}, "public_key"),
        ({"public_key": "p" * 42 + "="}, "public_key"),
        ({"public_key": "p" * 44}, "public_key"),
        ({"public_key": "p" * 43 + "\n"}, "public_key"),
        ({"proof": ""}, "proof"),
        ({"proof": "p" * 2049}, "proof"),
        ({"schema_version": 1}, "schema_version"),
        ({"schema_version": 3}, "schema_version"),
        ({"secret": "s" * 43}, "secret"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [""]}, "tasks"),
        ({"name": "-x"}, "name"),
        ({"name": "x\n"}, "name"),
        ({"protocol_max": 0}, "protocol_max"),
    ],
)
def test_an_enrolment_out_of_range_is_refused_and_the_field_is_named(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidMessage, match=rf"Enrolment\.{field}"):
        parse(message_class("Enrolment"), EXAMPLES["Enrolment"] | changes)


def test_a_refusal_repeats_no_secret() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        parse(message_class("Enrolment"), EXAMPLES["Enrolment"] | {"proof": "hunter2!" * 1000})
    assert "hunter2" not in refusal.value.detail


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"', b"[" * 100_000, b"NaN"])
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match="UpdateHeader"):
        parse(UpdateHeader, body)


def test_the_kind_says_which_assignment_it_is() -> None:
    train = ANY_ASSIGNMENT.validate_json(parse(Assignment, ASSIGNMENT).model_dump_json())
    evaluate = ANY_ASSIGNMENT.validate_json(
        parse(EvaluationAssignment, EXAMPLES["EvaluationAssignment"]).model_dump_json()
    )
    assert isinstance(train, Assignment)
    assert isinstance(evaluate, EvaluationAssignment)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"local_steps": 0}, "local_steps"),
        ({"local_steps": 10**18}, "local_steps"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 10**13}, "batch_size"),
        ({"round": -1}, "round"),
        ({"assignment_id": "../x"}, "assignment_id"),
        ({"settings": {"hessian_every": float("nan")}}, "settings"),
        ({"tensors": {f"b{index}": DIGEST for index in range(17)}}, "tensors"),
    ],
)
def test_an_assignment_that_no_worker_should_believe_is_refused(
    changes: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidMessage, match=rf"Assignment\.{field}"):
        parse(Assignment, ASSIGNMENT | changes)


def test_runs_and_rounds_end_in_the_statuses_that_say_so() -> None:
    assert {status for status in RunStatus if status.ended} == {
        RunStatus.FINISHED,
        RunStatus.FAILED,
        RunStatus.CANCELLED,
    }
    assert {status for status in RoundStatus if status.ended} == {
        RoundStatus.COMMITTED,
        RoundStatus.ABANDONED,
    }
