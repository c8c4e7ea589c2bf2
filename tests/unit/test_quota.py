"""The quota solver: integer optimum, exact sum, bounds."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, minimize

from spark_dbp.errors import InfeasibleError
from spark_dbp.kernels.quota_solver import solve_quotas
from spark_dbp.stages.quota import describe_quotas, plan_quotas, propose_temperature, weigh_by_softmax


@st.composite
def problems(draw, max_size=30, max_k=12):
    k = draw(st.integers(1, max_k))
    upper = draw(st.lists(st.integers(0, max_size), min_size=k, max_size=k))
    lower = [min(u, draw(st.integers(0, 3))) for u in upper]
    n_keep = draw(st.integers(sum(lower), sum(upper)))
    scale = draw(st.sampled_from([1.0, 1e-9, 1e3, 1e12]))
    halves = draw(st.booleans())  # many exact ties
    numbers = st.integers(-60, 60).map(lambda v: v / 2) if halves else st.floats(-40, 60)
    target = [draw(numbers) * scale for _ in range(k)]
    return target, lower, upper, n_keep


@given(problems())
@settings(max_examples=400, deadline=None)
def test_equals_filling_one_unit_at_a_time_in_exact_arithmetic(problem):
    target, lower, upper, n_keep = problem
    quotas = solve_quotas(target, lower, upper, n_keep)
    assert quotas.sum() == n_keep
    assert (quotas >= lower).all()
    assert (quotas <= upper).all()
    assert quotas.tolist() == oracle.quotas(target, lower, upper, n_keep)


@given(problems(), st.randoms())
@settings(max_examples=200, deadline=None)
def test_no_unit_moved_lowers_the_objective_and_order_does_not_matter(problem, random):
    target, lower, upper, n_keep = problem
    quotas = solve_quotas(target, lower, upper, n_keep)

    def cost(x):
        return sum(
            (oracle.Fraction(int(a)) - oracle.Fraction(float(t))) ** 2 for a, t in zip(x, target, strict=True)
        )

    best = cost(quotas)
    for i in range(len(quotas)):
        for j in range(len(quotas)):
            if i != j and quotas[i] > lower[i] and quotas[j] < upper[j]:
                moved = quotas.copy()
                moved[i] -= 1
                moved[j] += 1
                assert cost(moved) >= best
    order = list(range(len(target)))
    random.shuffle(order)
    shuffled = solve_quotas(np.array(target)[order], np.array(lower)[order], np.array(upper)[order], n_keep)
    assert cost(shuffled[np.argsort(order)]) == best


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_a_general_solver_on_the_continuous_problem(seed):
    rng = np.random.default_rng(seed)
    k = 15
    upper = rng.integers(5, 400, k)
    lower = np.minimum(1, upper)
    n_keep = int(upper.sum() * 0.4)
    target = weigh_by_softmax(rng.random(k), 0.3) * n_keep
    found = minimize(
        lambda x: ((x - target) ** 2).sum(),
        x0=upper * n_keep / upper.sum(),
        jac=lambda x: 2 * (x - target),
        bounds=Bounds(lower, upper),
        constraints=LinearConstraint(np.ones(k), n_keep, n_keep),
        method="SLSQP",
        # Costs are near 1e5: with 1e-9, below their rounding, one seed in four ends without success.
        options={"maxiter": 500, "ftol": 1e-7},
    )
    assert found.success
    # The integer optimum lies within a unit of the real one in every coordinate.
    assert np.abs(solve_quotas(target, lower, upper, n_keep) - found.x).max() < 1 + 1e-3


@pytest.mark.parametrize(("n_keep", "range_"), [(2, "between 3 and 30"), (31, "between 3 and 30")])
def test_infeasible_requests_name_the_feasible_range(n_keep, range_):
    with pytest.raises(InfeasibleError, match=range_):
        solve_quotas([1.0, 2.0, 3.0], [1, 1, 1], [10, 10, 10], n_keep)


@pytest.mark.parametrize(
    ("target", "lower", "upper", "message"),
    [
        ([np.nan], [0], [1], "not finite"),
        ([1.0], [2], [1], "0 <= lower <= upper"),
        ([1.0], [-1], [1], "0 <= lower <= upper"),
        ([1.0, 2.0], [0], [1], "shape"),
        ([1.0], [0.5], [1], "integers"),
    ],
)
def test_malformed_arguments(target, lower, upper, message):
    with pytest.raises(ValueError, match=message):
        solve_quotas(target, lower, upper, 1)


def test_a_hundred_thousand_clusters():
    rng = np.random.default_rng(0)
    upper = rng.integers(1, 10**6, 100_000)
    n_keep = int(upper.sum() * 0.3)
    target = weigh_by_softmax(rng.random(len(upper)), 0.1) * n_keep
    quotas = solve_quotas(target, np.ones_like(upper), upper, n_keep)
    assert quotas.sum() == n_keep
    gain = (quotas - target)[quotas < upper].min() - ((quotas - target)[quotas > 1].max() - 1)
    assert gain >= 0  # no unit is cheaper elsewhere


def test_softmax_does_not_overflow():
    weights = weigh_by_softmax([1.0, 2.0, 1000.0], 1e-6)
    assert weights.tolist() == [0.0, 0.0, 1.0]
    assert weigh_by_softmax(np.random.default_rng(0).random(10_000), 0.1).sum() == pytest.approx(1, abs=1e-12)


def test_softmax_is_the_same_bits_everywhere():
    """Whatever numpy, C library and processor: the digest of weights as they were first computed."""
    weights = weigh_by_softmax(np.arange(2000) / 1024, 0.1)
    assert hashlib.sha256(weights.astype("<f8").tobytes()).hexdigest()[:16] == "2009c635b26d3b58"


@pytest.mark.parametrize("complexity", ["d_intra*d_inter", "d_intra", "d_inter", "cluster_size", "uniform"])
@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_plan_covers_empty_clusters_and_floors(complexity, balance):
    sizes = np.array([100, 0, 3, 50])
    nan = np.nan
    plan = plan_quotas(
        sizes, [0.4, nan, 0.1, 0.2], [0.5, nan, 0.2, 0.3], 60, complexity=complexity, cluster_balance=balance
    )
    assert plan["quota"].sum() == 60
    assert plan["quota"][1] == 0
    assert plan["weight"].sum() == pytest.approx(1)
    assert (plan["quota"] >= np.minimum(max(1, int(balance * 60 / 3)), sizes)).all()
    if complexity == "cluster_size":
        assert plan["weight"].tolist() == pytest.approx((sizes / 153).tolist())
    if complexity == "uniform":
        assert plan["weight"].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_higher_complexity_gets_more():
    plan = plan_quotas([100, 100, 100], [0.1, 0.2, 0.3], [0.5, 0.5, 0.5], 90)
    assert plan["quota"][0] < plan["quota"][1] < plan["quota"][2]


@pytest.mark.parametrize(
    ("complexity", "temperature"),
    [
        ([0.0102, 0.0211], 0.005),
        ([0.0211, np.nan, 0.0102, 0.015], 0.005),
        ([0.0, 2.0], 0.9),
        ([0.0, 1e-7], 4e-08),
        ([0.3], None),
        ([], None),
        ([np.nan], None),
        ([0.0, 0.0], None),
        ([0.3, 0.3 + 1e-9], None),  # rounding
        ([0.0, np.inf], None),
        ([0.0, 5e-324], None),
    ],
)
def test_the_temperature_that_spreads_the_weights(complexity, temperature):
    assert propose_temperature(complexity) == temperature


def test_the_proposed_temperature_spreads_the_weights_by_about_ten():
    rng = np.random.default_rng(5)
    for _ in range(300):
        complexity = rng.random(rng.integers(2, 30)) * 10.0 ** rng.integers(-6, 1) + rng.random() * 0.01
        temperature = propose_temperature(complexity)
        assert float(f"{temperature:.0e}") == temperature
        weight = weigh_by_softmax(complexity, temperature)
        assert 5 < weight.max() / weight.min() < 32


def describe(sizes, d_intra, n_keep, complexity="d_intra", **settings) -> dict:
    plan = plan_quotas(sizes, d_intra, d_intra, n_keep, complexity=complexity, **settings)
    found = describe_quotas(sizes, plan, complexity)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


WIDTHS = np.arange(10) / 1000 + 0.3
SIZES = np.full(10, 100)


def test_nearly_equal_weights_are_told_with_a_temperature():
    found = describe(SIZES, WIDTHS, 300)
    assert (found["nearly_equal"], found["mostly_bound"]) == (True, False)
    assert found["weight_ratio"] == pytest.approx(np.exp(0.09))
    assert found["proposed_temperature"] == 0.004
    assert found["proposed_weight_ratio"] == pytest.approx(np.exp(0.009 / 0.004))
    spread = describe(SIZES, WIDTHS, 300, temperature=found["proposed_temperature"])
    assert spread["weight_ratio"] == found["proposed_weight_ratio"]
    assert not spread["nearly_equal"]
    assert spread["proposed_temperature"] is None
    assert spread["quotas"][1] > 5 * spread["quotas"][0]


def test_clusters_kept_whole_or_at_their_floor_are_told():
    frozen = describe(SIZES, WIDTHS, 100, temperature=1e-6)
    assert (frozen["at_floor"], frozen["mostly_bound"]) == (9, True)
    assert frozen["weight_ratio"] is None  # the smallest weight is 0
    assert frozen["proposed_temperature"] == 0.004
    # No temperature helps where nearly all is kept, or where there is hardly more than one for each cluster.
    much = describe(np.array([10] * 9 + [1000]), WIDTHS, 1080)
    assert (much["saturated"], much["mostly_bound"], much["proposed_temperature"]) == (9, True, None)
    few = describe(SIZES, WIDTHS, 11)
    assert (few["at_floor"], few["mostly_bound"], few["proposed_temperature"]) == (9, True, None)


@pytest.mark.parametrize(
    ("sizes", "widths", "n_keep", "more"),
    [
        (SIZES, WIDTHS, 1000, {}),  # all are kept
        (SIZES[:1], WIDTHS[:1], 30, {}),  # one cluster
        (np.array([0, 100, 0]), np.array([np.nan, 0.3, np.nan]), 30, {}),
        (SIZES, WIDTHS * 10, 300, {}),  # they differ enough
        (SIZES, WIDTHS, 300, {"complexity": "uniform"}),
        (SIZES, WIDTHS, 300, {"complexity": "cluster_size"}),
    ],
)
def test_nothing_is_told_where_there_is_nothing_to_tell(sizes, widths, n_keep, more):
    found = describe(sizes, widths, n_keep, **more)
    assert not found["nearly_equal"]
    assert not found["mostly_bound"]
    assert found["proposed_temperature"] is None


def test_clusters_of_one_complexity_have_no_temperature():
    found = describe(SIZES, np.full(10, 0.3), 300)
    assert (found["nearly_equal"], found["weight_ratio"]) == (True, 1.0)
    assert found["proposed_temperature"] is None
