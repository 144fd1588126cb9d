"""Temperature, upper limits and thresholds: properties of any predictions, and stated values."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binom
from simulated import CLASSES, predictions, quick

from trashsorting.core.card import read_card
from trashsorting.core.errors import ModelError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.evaluation.calibration import TEMPERATURES, choose_threshold, fit_temperature, upper_limit
from trashsorting.evaluation.metrics import evaluate, risk_coverage
from trashsorting.evaluation.oof import load_predictions
from trashsorting.inference.session import softmax

MEASURED = Path(__file__).resolve().parents[2] / "nbs/measured"


def mean_nll(logits: np.ndarray, targets: np.ndarray, temperature: float = 1.0) -> float:
    "Mean negative log-likelihood of the true classes."
    return -log_softmax(np.asarray(logits, float) / temperature, axis=1)[np.arange(len(targets)), targets].mean()


@quick
@given(predictions())
def test_the_temperature_minimises_nll_and_keeps_predictions(simulated):
    logits, targets = simulated
    temperature = fit_temperature(logits, targets)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    predicted = softmax(logits, temperature).argmax(axis=1)
    assert (logits[np.arange(len(logits)), predicted] == logits.max(axis=1)).all()
    best = mean_nll(logits, targets, temperature)
    for other in (1.0, temperature * 0.97, temperature * 1.03):
        if TEMPERATURES[0] <= other <= TEMPERATURES[1]:
            assert best <= mean_nll(logits, targets, other) + 1e-9


def test_scipy_finds_the_same_temperature():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (500, 6))
    targets = np.array([rng.choice(6, p=row) for row in softmax(logits, 2.5)])
    minimum = minimize_scalar(lambda t: mean_nll(logits, targets, t), bounds=(0.1, 10), method="bounded")
    assert math.isclose(fit_temperature(logits, targets), minimum.x, rel_tol=1e-4)
    assert math.isclose(fit_temperature(logits, targets), 2.2650836343218925, rel_tol=1e-10)
    assert math.isclose(mean_nll(logits, targets), 1.6188031859170278, rel_tol=1e-12)


def test_out_of_fold_predictions_reproduce_the_card():
    measured, note = load_predictions(MEASURED / "out_of_fold.csv"), read_card(SHIPPED_MODEL).decision_note
    temperature = fit_temperature(measured.logits, measured.targets)
    rule = choose_threshold(softmax(measured.logits, temperature), measured.targets, 0.04)
    assert f"{rule}" in note and f"{temperature:.3f}" in note
    assert rule.limit <= 0.04
    assert math.isclose(rule.threshold, read_card(SHIPPED_MODEL).unsure_below, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("errors", "n", "alpha", "limit"),
    [
        (1, 100, 0.05, 0.046559811453538956),
        (10, 1000, 0.05, 0.016903175120562504),
        (11, 1000, 0.01, 0.021377299640891533),
        (0, 59, 0.05, 0.04950760988822695),
        (3, 3, 0.05, 1),
        (0, 0, 0.05, 1),
    ],
)
def test_published_upper_limits(errors, n, alpha, limit):
    assert math.isclose(upper_limit(errors, n, alpha), limit, rel_tol=1e-10)


@quick
@given(st.integers(1, 400), st.data())
def test_the_upper_limit_has_the_stated_probability(n, data):
    errors, alpha = data.draw(st.integers(0, n)), data.draw(st.floats(0.001, 0.5))
    limit = upper_limit(errors, n, alpha)
    assert errors / n <= limit <= 1
    if errors < n:
        assert math.isclose(binom.cdf(errors, n, limit), alpha, rel_tol=1e-6)


@quick
@given(predictions(), st.floats(0.01, 0.9), st.sampled_from([None, 0.5, 0.95]))
def test_a_threshold_keeps_its_risk_on_its_own_photographs(simulated, risk, confidence):
    logits, targets = simulated
    probabilities = softmax(logits)
    correct = probabilities.argmax(axis=1) == targets
    try:
        rule = choose_threshold(probabilities, targets, risk, confidence)
    except ModelError as error:
        assert "no threshold keeps the risk" in str(error)
        if confidence is None:
            assert risk_coverage(probabilities, targets)[2].min() > risk
        return
    answered = probabilities.max(axis=1) >= rule.threshold
    assert answered.any() and (~correct[answered]).mean() <= risk + 1e-12
    assert (~correct[answered]).mean() <= rule.limit + 1e-12 and rule.limit <= risk
    scored = evaluate(probabilities, targets, CLASSES[: logits.shape[1]], unsure_below=rule.threshold)
    assert math.isclose(scored.coverage, rule.coverage)
    assert math.isclose(scored.answered_accuracy, correct[answered].mean())
    assert scored.accuracy == correct.mean(), "the threshold does not change the accuracy"
