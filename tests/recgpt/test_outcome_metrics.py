"""Metrics of probabilities against numbers worked out by hand and slow references."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgpt.errors import RecGPTError
from recgpt.outcome_metrics import (
    METRICS,
    auc,
    calibration,
    ece,
    expected_ece,
    gauc,
    logloss,
    measure,
    normalised_entropy,
    outcome_metrics,
    paired,
)

NAN = math.nan


def slow_auc(y, p) -> float:
    """Every pair, one by one."""
    pairs = [(a, b) for a, y_a in zip(p, y, strict=True) for b, y_b in zip(p, y, strict=True) if y_a == 1 and y_b == 0]
    return sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs) if pairs else NAN


def slow_gauc(y, p, user) -> tuple[float, int, int]:
    """One user at a time."""
    total = weight = users = 0.0
    for one in set(user):
        rows = [i for i, u in enumerate(user) if u == one]
        value = slow_auc([y[i] for i in rows], [p[i] for i in rows])
        if not math.isnan(value):
            total, weight, users = total + len(rows) * value, weight + len(rows), users + 1
    return (total / weight if weight else NAN), int(users), int(weight)


def slow_ece(y, p, bins=15) -> float:
    order = sorted(range(len(p)), key=lambda i: p[i])  # stable
    parts = [part for part in np.array_split(np.array(order), bins) if len(part)]
    return sum(len(b) * abs(np.mean([p[i] for i in b]) - np.mean([y[i] for i in b])) for b in parts) / len(p)


def random_rows(n: int, n_users: int, seed: int = 0, levels: int = 40):
    """Outcomes that follow p, users of very different sizes, many equal probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.integers(0, levels + 1, n) / levels
    y = (rng.random(n) < p).astype(np.float64)
    user = (n_users * rng.random(n) ** 2).astype(np.int64) * 7 - 3
    return y, p, user


class TestByHand:
    def test_auc_counts_pairs_and_halves_ties(self):
        # Positives .8 and .4; negatives .4 and .1: .8 beats both, .4 ties with one and beats one.
        assert auc([1, 1, 0, 0], [0.8, 0.4, 0.4, 0.1]) == (2 + 1.5) / 4
        assert auc([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0.5
        assert auc([1, 0], [0.1, 0.9]) == 0.0

    def test_gauc_weighs_users_by_their_rows(self):
        user = ["a", "b", "a", "b", "a", "c"]
        y, p = [1, 0, 0, 1, 0, 1], [0.6, 0.7, 0.5, 0.2, 0.9, 0.5]
        # a: .6 over .5, under .9 = 1/2, three rows; b: 0, two rows; c has one class only.
        assert gauc(y, p, user) == ((3 * 0.5 + 2 * 0.0) / 5, 2, 5)

    def test_logloss(self):
        assert logloss([1, 0], [0.25, 0.5]) == pytest.approx((math.log(4) + math.log(2)) / 2)
        # Clipped: a certain mistake costs -ln(1e-7) and no more.
        assert logloss([1, 0], [0.0, 1.0]) == pytest.approx(16.11809565)
        assert logloss([0, 1], [0.0, 1.0]) == pytest.approx(1e-7, rel=1e-6)

    def test_normalised_entropy_of_the_rate_is_one(self):
        y = [1, 0, 0, 0]
        assert normalised_entropy(y, [0.25] * 4) == pytest.approx(1.0)
        entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
        assert normalised_entropy(y, [0.5] * 4) == pytest.approx(math.log(2) / entropy)

    def test_ece(self):
        # Sorted: .1 .2 | .6 .9. Bins: mean p .15 and rate 0; mean p .75 and rate .5.
        y, p = [1, 0, 0, 0], [0.9, 0.1, 0.6, 0.2]
        assert ece(y, p, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.25)
        assert ece(y, p, bins=1) == pytest.approx(0.2)
        # Five rows in two bins: three and two.
        assert ece([0, 0, 1, 1, 1], [0.1, 0.2, 0.3, 0.8, 0.9], bins=2) == pytest.approx(
            3 / 5 * (1 / 3 - 0.2) + 2 / 5 * 0.15
        )

    def test_equal_probabilities_stay_in_row_order(self):
        assert ece([1, 1, 0, 0], [0.5] * 4, bins=2) == 0.5
        assert ece([1, 0, 1, 0], [0.5] * 4, bins=2) == 0.0

    def test_expected_ece_of_one_bin_is_the_mean_gap_of_coin_tosses(self):
        # Two tosses of a coin: gap |1 - heads| / 2 = .5 half of the time, else 0.
        assert expected_ece([0.5, 0.5], draws=20_000, bins=1) == pytest.approx(0.25, abs=0.01)
        assert expected_ece([0.0, 1.0, 1.0]) == 0.0

    def test_calibration_table(self):
        table = calibration([0, 0, 1, 0, 1, 1, 1, 1, 1, 1], np.arange(10) / 10, bins=2)
        assert [(row["p"], row["rate"], row["rows"]) for row in table] == [
            (pytest.approx(0.2), 0.4, 5),
            (pytest.approx(0.7), 1.0, 5),
        ]
        # Wilson's interval of 5 in 5: [n / (n + z^2), 1].
        assert table[1]["low"] == pytest.approx(5 / (5 + 1.96**2), abs=1e-4)
        assert table[1]["high"] == pytest.approx(1.0)
        # Of 2 in 5, from the formula's own source: .1176 to .7693.
        assert (table[0]["low"], table[0]["high"]) == (pytest.approx(0.1176, abs=1e-4), pytest.approx(0.7693, abs=1e-4))
        assert len(calibration([0, 1], [0.2, 0.7])) == 2  # empty bins are left out

    def test_all_in_one_dict(self):
        found = outcome_metrics([1, 0, 1, NAN], [0.8, 0.4, 0.3, 0.9], ["a", "a", "b", "b"], bootstrap=0)
        assert {key: found[key] for key in ("auc", "gauc", "rows", "users", "gauc_rows")} == {
            "auc": 0.5,
            "gauc": 1.0,
            "rows": 3,
            "users": 1,
            "gauc_rows": 2,
        }
        assert found["rate"] == pytest.approx(2 / 3)
        assert found["mean_p"] == pytest.approx(0.5)
        assert found["interval"] == dict.fromkeys(METRICS)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, NAN]), st.integers(0, 6), st.integers(0, 3)), min_size=0, max_size=40
    ),
    st.integers(1, 9),
)
@settings(max_examples=150, deadline=None)
def test_metrics_equal_slow_references(rows: list[tuple[float, int, int]], bins: int) -> None:
    y, p, user = ([row[i] for row in rows] for i in range(3))
    p = [value / 6 for value in p]
    known = [i for i, value in enumerate(y) if not math.isnan(value)]
    ky, kp, ku = ([column[i] for i in known] for column in (y, p, user))
    assert auc(y, p) == pytest.approx(slow_auc(ky, kp), nan_ok=True, abs=1e-12)
    value, users, n = slow_gauc(ky, kp, ku)
    assert gauc(y, p, user) == (pytest.approx(value, nan_ok=True, abs=1e-12), users, n)
    found = outcome_metrics(y, p, user, bootstrap=0)
    for name, slow in (("auc", slow_auc(ky, kp)), ("gauc", value)):
        assert (found[name] is None) == math.isnan(slow)
        assert found[name] is None or found[name] == pytest.approx(slow, abs=1e-12)
    if known:
        assert ece(y, p, bins) == pytest.approx(slow_ece(ky, kp, bins), abs=1e-12)
        assert found["ece"] == pytest.approx(slow_ece(ky, kp), abs=1e-12)
        assert found["logloss"] == pytest.approx(logloss(ky, kp))
        rate = sum(ky) / len(ky)
        if 0 < rate < 1:
            entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
            assert found["ne"] == pytest.approx(logloss(ky, kp) / entropy) == normalised_entropy(y, p)
        else:
            assert found["ne"] is None
    else:
        assert all(found[name] is None for name in (*METRICS, "ece_expected", "rate", "mean_p"))


def test_one_class_is_undefined_in_one_way() -> None:
    assert math.isnan(auc([1, 1], [0.2, 0.3]))
    assert math.isnan(gauc([1, 1], [0.2, 0.3], [1, 2])[0])
    assert math.isnan(normalised_entropy([0, 0], [0.2, 0.3]))
    assert math.isnan(logloss([], []))
    assert math.isnan(ece([], []))
    assert math.isnan(expected_ece([]))
    found = outcome_metrics([0, 0, 0], [0.2, 0.3, 0.1], [1, 2, 3])
    assert (found["auc"], found["gauc"], found["ne"]) == (None, None, None)
    assert (found["interval"]["auc"], found["interval"]["gauc"]) == (None, None)
    assert found["logloss"] == pytest.approx(-(math.log(0.8) + math.log(0.7) + math.log(0.9)) / 3)
    assert found["interval"]["logloss"] is not None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("missing", [0, 1])
def test_unknown_outcomes_are_left_out(missing: int) -> None:
    y, p, user = random_rows(300, 20)
    hidden = np.arange(300) % 3 == missing
    some = np.where(hidden, np.nan, y)
    assert outcome_metrics(some, p, user, 20) == outcome_metrics(y[~hidden], p[~hidden], user[~hidden], 20)


def test_what_is_no_outcome_or_probability_is_refused() -> None:
    with pytest.raises(RecGPTError, match=r"y: a value is none of 0, 1 and NaN"):
        auc([0, 0.5], [0.1, 0.2])
    for bad in (1.1, -0.1, NAN):
        with pytest.raises(RecGPTError, match="p: a value is no probability"):
            logloss([0, 1], [0.1, bad])
    assert math.isfinite(logloss([0, NAN], [0.1, NAN]))  # nothing is asked of a row that does not count
    with pytest.raises(RecGPTError, match="shapes y .2., p .3."):
        auc([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(RecGPTError, match="bins: 0"):
        ece([0, 1], [0.1, 0.2], bins=0)


class TestBootstrap:
    def test_a_resample_equals_repeating_the_rows_of_its_users(self):
        """Users drawn again by hand, their rows written out as often, the plain functions on those."""
        y, p, user = random_rows(400, 30)
        names = np.unique(user)
        rng = np.random.Generator(np.random.PCG64(5))
        measured = measure(y, p, user, bootstrap=6, seed=5)
        shift = []
        for r in range(6):
            count = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
            times = count[np.searchsorted(names, user)]
            long_y, long_p, long_user = (np.repeat(column, times) for column in (y, p, user))
            assert (times > 1).any()
            assert (times == 0).any()
            expected = {
                "auc": slow_auc(long_y, long_p),
                "gauc": slow_gauc(long_y, long_p, long_user)[0],
                "logloss": logloss(long_y, long_p),
                "ne": normalised_entropy(long_y, long_p),
            }
            for name, value in expected.items():
                assert measured.samples[name][r] == pytest.approx(value, abs=1e-12)
            shift.append(measured.samples["ece"][r] - slow_ece(long_y, long_p))
        assert shift == pytest.approx([shift[0]] * 6, abs=1e-12)
        assert measured.samples["ece"].mean() == pytest.approx(ece(y, p))

    def test_intervals_hold_the_value_and_narrow_with_users(self):
        widths = []
        for n in (1_000, 16_000):
            y, p, user = random_rows(n, n // 5)
            found = outcome_metrics(y, p, user, bootstrap=200)
            for name in METRICS:
                low, high = found["interval"][name]
                assert low < found[name] < high
            widths.append(found["interval"]["auc"][1] - found["interval"]["auc"][0])
        assert widths[0] / widths[1] == pytest.approx(4, rel=0.3)

    def test_users_not_rows_are_resampled(self):
        """Ten copies of each row are no news about users: the intervals stay (of rows: 3.2 times as narrow)."""
        y, p, user = random_rows(600, 60)
        one = outcome_metrics(y, p, user)["interval"]["auc"]
        ten = outcome_metrics(np.repeat(y, 10), np.repeat(p, 10), np.repeat(user, 10))["interval"]["auc"]
        assert ten == pytest.approx(one, abs=1e-12)

    def test_a_bootstrap_is_a_function_of_its_seed(self):
        rows = random_rows(300, 30)
        assert outcome_metrics(*rows, 20, seed=1) == outcome_metrics(*rows, 20, seed=1)
        assert outcome_metrics(*rows, 20, seed=1)["interval"] != outcome_metrics(*rows, 20, seed=2)["interval"]

    def test_auc_interval_covers_the_truth(self):
        """The AUC of p = U(0, 1) with outcomes drawn from it is 5/6; 95 % of the intervals should hold it."""
        held = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            p = rng.random(400)
            low, high = outcome_metrics(rng.random(400) < p, p, np.arange(400), seed=seed)["interval"]["auc"]
            held += low <= 5 / 6 <= high
        assert 87 <= held <= 100

    def test_a_single_user_has_no_interval(self):
        assert outcome_metrics([0, 1], [0.1, 0.2], ["a", "a"])["interval"] == dict.fromkeys(METRICS)


class TestPaired:
    def test_a_system_equals_itself(self):
        measured = measure(*random_rows(300, 30), bootstrap=20)
        assert paired(measured, measured) == {name: {"difference": 0.0, "low": 0.0, "high": 0.0} for name in METRICS}

    def test_differences_are_taken_within_a_resample(self):
        """A little better on every user: the two intervals overlap, that of the difference excludes 0."""
        y, p, user = random_rows(4_000, 800)
        worse = 0.5 + 0.9 * (p - 0.5)
        a, b = measure(y, p, user), measure(y, worse, user)
        gap = paired(a, b)["logloss"]
        assert a.metrics["interval"]["logloss"][1] > b.metrics["interval"]["logloss"][0]
        assert gap["high"] < 0
        assert gap["difference"] == pytest.approx(logloss(y, p) - logloss(y, worse))
        by_hand = np.quantile(a.samples["logloss"] - b.samples["logloss"], (0.025, 0.975))
        assert (gap["low"], gap["high"]) == pytest.approx(tuple(by_hand))
        assert paired(b, a)["logloss"]["difference"] == -gap["difference"]

    def test_other_rows_are_refused(self):
        y, p, user = random_rows(100, 10)
        with pytest.raises(RecGPTError, match="not measured on the same rows"):
            paired(measure(y, p, user, 5), measure(y[1:], p[1:], user[1:], 5))
        with pytest.raises(RecGPTError, match="not measured on the same rows"):
            paired(measure(y, p, user, 5), measure(y, p, user, 6))


def test_doubled_rows_change_no_metric() -> None:
    y, p, user = random_rows(15 * 40, 50)
    once, twice = (outcome_metrics(*(np.repeat(c, n) for c in (y, p, user)), bootstrap=30) for n in (1, 2))
    for name in (*METRICS, "rate", "mean_p", "users"):
        assert twice[name] == pytest.approx(once[name], abs=1e-12)
    for name in ("auc", "gauc", "logloss", "ne"):
        assert twice["interval"][name] == pytest.approx(once["interval"][name], abs=1e-12)
    assert twice["rows"] == 2 * once["rows"]


class TestExpectedEce:
    def test_shrinks_with_the_root_of_the_rows(self):
        p = np.random.default_rng(0).random(1_500)
        few, many = expected_ece(p), expected_ece(np.repeat(p, 16))
        assert few / many == pytest.approx(4, rel=0.08)

    def test_equals_the_mean_ece_of_calibrated_outcomes(self):
        """Labels drawn from p, measured by `ece` itself; and by the normal limit, .8 standard errors a bin."""
        p = np.full(15 * 400, 0.2)
        rng = np.random.default_rng(3)
        drawn = np.mean([ece(rng.random(len(p)) < p, p) for _ in range(200)])
        assert expected_ece(p, draws=400) == pytest.approx(drawn, rel=0.05)
        assert drawn == pytest.approx(math.sqrt(2 / math.pi * 0.2 * 0.8 / 400), rel=0.05)

    def test_tells_a_calibrated_model_from_another(self):
        rng = np.random.default_rng(4)
        p = rng.random(20_000)
        y = rng.random(20_000) < p
        right, wrong = (outcome_metrics(y, q, np.arange(20_000), 0) for q in (p, p**1.2))
        assert right["ece"] < 1.5 * right["ece_expected"]
        assert wrong["ece"] > 4 * wrong["ece_expected"]

    def test_is_a_function_of_its_seed(self):
        p = np.random.default_rng(0).random(100)
        assert expected_ece(p, seed=1) == expected_ece(p, seed=1) != expected_ece(p, seed=2)
