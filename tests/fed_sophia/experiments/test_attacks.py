# SPDX-License-Identifier: Apache-2.0
"""Attacks: what each forges by hand, and that admission leaves what the honest alone would make."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fed_sophia.experiments import in_process, over_wire
from fed_sophia.experiments.attacks import ATTACKS, BOOST, HUGE, NOISE, Forgers, Tensors
from fed_sophia.experiments.engine import Evaluated, Outcome
from fed_sophia.experiments.trials import Trial
from protocol.bound import DeltaBound
from protocol.encodings import encoding_named
from protocol.errors import InvalidUsage
from tests.system.test_engines import A_TRIAL

BOUND = DeltaBound.after(10, learning_rate=0.001, clip_bound=4.0, weight_decay=0.5)
START = {"w": np.array([1.0, -2.0, 0.5], dtype=np.float32)}
ATTACKED = replace(A_TRIAL, participation=1.0, rounds=6, attackers=2)
"""Of the six workers, 4 and 5 are dishonest."""


def made(*deltas: tuple[float, float, float]) -> dict[int, dict[str, Tensors]]:
    return {
        slot: {
            "delta": {"w": np.array(delta, dtype=np.float32)},
            "hessian": {"w": np.ones(3, dtype=np.float32)},
        }
        for slot, delta in enumerate(deltas)
    }


def sent(attack: str, seed: int = 0, bound: DeltaBound | None = BOUND) -> Mapping[int, dict[str, Tensors]]:
    """What three workers send of which the last is dishonest."""
    honestly = made((0.01, -0.01, 0.0), (0.03, 0.0, 0.0), (0.02, 0.01, -0.01))
    return Forgers.last(attack, 1, 3).forged(honestly, START, bound, (seed, 1))


@pytest.mark.parametrize(
    ("attack", "bundle", "values"),
    [
        ("sign-flip", "delta", [-0.2, -0.1, 0.1]),
        ("scaling", "delta", [0.2, 0.1, -0.1]),
        ("nan", "delta", [np.nan] * 3),
        ("label-flip", "delta", [0.02, 0.01, -0.01]),
        ("hessian-huge", "hessian", [HUGE] * 3),
        ("hessian-zero", "hessian", [0.0] * 3),
        ("hessian-negative", "hessian", [-HUGE] * 3),
    ],
)
def test_what_is_forged_by_hand(attack: str, bundle: str, values: list[float]) -> None:
    assert BOOST == 10
    found = sent(attack)
    np.testing.assert_allclose(found[2][bundle]["w"], values, rtol=1e-6)
    other = "hessian" if bundle == "delta" else "delta"
    np.testing.assert_array_equal(found[2][other]["w"], sent("label-flip")[2][other]["w"])


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_the_honest_send_stays_as_they_made_it(attack: str) -> None:
    found = sent(attack)
    np.testing.assert_array_equal(found[0]["delta"]["w"], np.array([0.01, -0.01, 0.0], dtype=np.float32))
    np.testing.assert_array_equal(found[1]["delta"]["w"], np.array([0.03, 0.0, 0.0], dtype=np.float32))


def test_the_worst_in_the_box_goes_against_the_honest_mean_as_far_as_the_bound_lets_it() -> None:
    """The mean is (0.02, −0.005, 0): q is −1, 1 and, where the mean says nothing, 0."""
    forged = sent("in-box")[2]["delta"]["w"]
    np.testing.assert_allclose(BOUND.normalise(forged, START["w"]), [-1, 1, 0], atol=1e-6)
    BOUND.check("w", forged, START["w"], encoding_named("f32"))
    np.testing.assert_allclose(sent("in-box", bound=None)[2]["delta"]["w"], [-0.02, -0.01, 0.01])


def test_noise_is_far_beyond_any_honest_delta_and_of_the_forger_s_own_seed() -> None:
    large = {slot: {"delta": {"w": np.zeros(10_000, dtype=np.float32)}} for slot in range(3)}
    start = {"w": np.zeros(10_000, dtype=np.float32)}
    forgers = Forgers.last("noise", 2, 3)
    found = forgers.forged(large, start, BOUND, (0, 1))
    assert np.std(found[1]["delta"]["w"]) == pytest.approx(NOISE, rel=0.05)
    again, later = forgers.forged(large, start, BOUND, (0, 1)), forgers.forged(large, start, BOUND, (0, 2))
    np.testing.assert_array_equal(found[1]["delta"]["w"], again[1]["delta"]["w"])
    for other in (found[2], later[1]):
        assert not np.array_equal(found[1]["delta"]["w"], other["delta"]["w"])


def test_nothing_is_forged_in_a_round_without_the_bundle_or_without_a_forger() -> None:
    deltas = {slot: {"delta": bundles["delta"]} for slot, bundles in made((0, 0, 1), (0, 1, 0)).items()}
    assert Forgers.last("hessian-huge", 1, 2).forged(deltas, START, BOUND, (0, 1)) == deltas
    assert Forgers.last("nan", 1, 9).forged(deltas, START, BOUND, (0, 1)) == deltas


def test_a_cohort_of_forgers_alone_goes_by_its_own_mean() -> None:
    found = Forgers.last("in-box", 2, 2).forged(made((0, 0, 1), (0, 0, 1)), START, BOUND, (0, 1))
    np.testing.assert_allclose(BOUND.normalise(found[0]["delta"]["w"], START["w"]), [0, 0, -1], atol=1e-6)


# whole trials


def held(trial: Trial, folder: Path | None = None) -> tuple[list[Evaluated], Outcome]:
    evaluated: list[Evaluated] = []
    outcome = in_process.make_engine("cpu", 2, folder).run(trial, evaluated.append)
    return evaluated, outcome


def metrics(trial: Trial) -> list[Mapping[str, float]]:
    evaluated, outcome = held(trial)
    assert outcome.failure is None
    return [each.metrics for each in evaluated]


@pytest.mark.parametrize("attack", ["sign-flip", "scaling", "noise", "nan"])
def test_what_admission_refuses_leaves_the_model_that_the_honest_alone_make(attack: str) -> None:
    """To the bit: a scaled honest delta leaves the box too, and a round goes on without what is refused."""
    assert metrics(replace(ATTACKED, attack=attack)) == metrics(replace(ATTACKED, attack="absent"))


def test_an_update_is_refused_as_a_whole_in_the_rounds_in_which_it_brings_negative_curvature() -> None:
    """That is the first; in the next four there is nothing but honest deltas."""
    found, alone, everyone = (
        metrics(replace(ATTACKED, attack=attack, evaluate_every=1, rounds=2, attackers=attackers))
        for attack, attackers in (("hessian-negative", 2), ("absent", 2), ("hessian-negative", 0))
    )
    assert found[0] == alone[0] != everyone[0]
    assert found[1] not in (alone[1], everyone[1])


def test_what_is_admitted_unjudged_counts() -> None:
    honest = metrics(replace(ATTACKED, attackers=0))
    for attack in ("sign-flip", "hessian-huge", "label-flip", "in-box"):
        attacked = metrics(replace(ATTACKED, attack=attack, admission=False))
        assert attacked != honest, attack
        assert attacked != metrics(replace(ATTACKED, attack="absent")), attack


def test_nan_that_nobody_refuses_ends_the_trial_with_a_sentence() -> None:
    evaluated, outcome = held(replace(ATTACKED, attack="nan", admission=False))
    assert outcome.failure is not None
    assert outcome.failure.startswith("round 1: the next ")
    assert evaluated == []


@pytest.mark.parametrize("combiner", ["median", "trimmed_mean", "krum", "geometric_median", "norm_bounded"])
def test_one_nan_is_held_by_combiners_that_order_the_values_of_a_coordinate(combiner: str) -> None:
    trial = replace(ATTACKED, attack="nan", admission=False, attackers=1, combiners={"delta": combiner})
    _, outcome = held(trial)
    assert (outcome.failure is None) == (combiner in ("median", "trimmed_mean"))


def test_a_round_with_too_few_that_pass_ends_the_trial_with_a_sentence() -> None:
    """A cohort of three, of six workers of whom one is honest: soon nobody honest is invited."""
    trial = replace(ATTACKED, attack="nan", attackers=5, participation=0.5)
    _, outcome = held(trial)
    assert outcome.failure is not None
    assert "0 updates were admitted; the quorum is 1" in outcome.failure
    _, outcome = held(replace(trial, attack="absent"))
    assert outcome.failure is not None
    assert "nobody invited sends an update; the quorum is 1" in outcome.failure


def test_the_honest_alone_send_and_fetch_less() -> None:
    (everyone, *_), _ = held(replace(ATTACKED, attackers=0))
    (alone, *_), _ = held(replace(ATTACKED, attack="absent"))
    assert alone.bytes_up == everyone.bytes_up * 4 // 6
    assert alone.bytes_down == everyone.bytes_down * 4 // 6


def test_an_honest_trial_is_the_same_with_and_without_judges() -> None:
    """No honest delta and no honest estimate is refused."""
    honest = metrics(replace(ATTACKED, attackers=0))
    judged = metrics(replace(ATTACKED, attack="sign-flip", attackers=0))
    assert judged == honest


def test_a_longest_delta_is_heeded() -> None:
    plain = replace(ATTACKED, attackers=0, algorithm="fedavg")
    assert metrics(replace(plain, max_delta_norm=1e6)) == metrics(plain)
    assert metrics(replace(plain, max_delta_norm=0.01)) != metrics(plain)


def test_over_the_wire_everybody_is_honest() -> None:
    with pytest.raises(InvalidUsage, match="engines, any: an attack is only forged --in-process"):
        over_wire.make_engine("cpu", 1, None).run(replace(ATTACKED, attack="nan"), lambda _: None)
