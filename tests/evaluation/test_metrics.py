"""Metrics and their intervals: properties of any predictions, comparison with scikit-learn, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from command import call
from hypothesis import given
from hypothesis import strategies as st
from simulated import CLASSES, predictions, quick
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score

from trashsorting.core.card import Evaluation, ModelCard, read_card, write_card
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_sample
from trashsorting.evaluation.metrics import (
    N_BINS,
    area_under_risk_coverage,
    bootstrap,
    evaluate,
    expected_calibration_error,
    resample_confusions,
    risk_coverage,
    table,
    wilson,
)
from trashsorting.inference.predictor import Predictor
from trashsorting.inference.session import softmax


@quick
@given(predictions(), st.booleans())
def test_every_interval_contains_its_metric(simulated, grouped):
    logits, targets = simulated
    classes = CLASSES[: logits.shape[1]]
    evaluation = evaluate(softmax(logits), targets, classes, groups=targets // 2 if grouped else None)
    resampled = evaluation.bootstrap
    for interval in (evaluation.accuracy_interval, resampled.accuracy):
        assert 0 <= interval[0] <= evaluation.accuracy <= interval[1] <= 1
    assert 0 <= resampled.macro_f1[0] <= evaluation.macro_f1 <= resampled.macro_f1[1] <= 1
    for label, metrics in evaluation.per_class.items():
        for interval in (metrics.precision_interval, resampled.precision[label]):
            assert interval[0] <= metrics.precision <= interval[1]
        for interval in (metrics.recall_interval, resampled.recall[label]):
            assert interval[0] <= metrics.recall <= interval[1]
    assert resampled.resampled == ("groups" if grouped else "photographs")
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


@quick
@given(predictions())
def test_metrics_equal_scikit_learn(simulated):
    logits, targets = simulated
    predicted, present = logits.argmax(axis=1), np.unique(targets)
    evaluation = evaluate(softmax(logits), targets, CLASSES[: logits.shape[1]])
    assert math.isclose(evaluation.accuracy, accuracy_score(targets, predicted))
    macro_f1 = f1_score(targets, predicted, labels=present, average="macro", zero_division=0)
    assert math.isclose(evaluation.macro_f1, macro_f1)
    for score, name in ((precision_score, "precision"), (recall_score, "recall")):
        expected = score(targets, predicted, labels=range(logits.shape[1]), average=None, zero_division=0)
        assert np.allclose([getattr(metrics, name) for metrics in evaluation.per_class.values()], expected)
    nll = log_loss(targets, softmax(logits), labels=range(logits.shape[1]))
    assert math.isclose(evaluation.nll, nll, abs_tol=1e-9)


@quick
@given(predictions())
def test_calibration_error_by_its_definition(simulated):
    logits, targets = simulated
    probabilities = softmax(logits)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    total = 0.0
    for index in range(N_BINS):
        inside = (confidence > index / N_BINS) & (confidence <= (index + 1) / N_BINS)
        if inside.any():
            total += inside.sum() / len(targets) * abs(confidence[inside].mean() - correct[inside].mean())
    error = expected_calibration_error(probabilities, targets)
    assert 0 <= error <= 1
    assert math.isclose(error, total, abs_tol=1e-12)


@quick
@given(predictions())
def test_risk_and_coverage_are_independent_of_order(simulated):
    logits, targets = simulated
    curve = risk_coverage(softmax(logits), targets)
    reversed_curve = risk_coverage(softmax(logits)[::-1], targets[::-1])
    assert all(np.allclose(*columns) for columns in zip(curve, reversed_curve, strict=True))
    _, coverage, risk = curve
    assert (np.diff(coverage) > 0).all() and coverage[-1] == 1
    assert 0 <= area_under_risk_coverage(coverage, risk) <= 1 + 1e-12


def test_groups_widen_the_interval_and_groups_of_one_do_not():
    rng = np.random.default_rng(3)
    targets = np.repeat(rng.integers(0, 3, 80), 4)
    predicted = np.where(np.repeat(rng.random(80) < 0.85, 4), targets, (targets + 1) % 3)

    def width(groups):
        return float(np.diff(bootstrap(targets, predicted, CLASSES[:3], groups).accuracy)[0])

    assert width(np.repeat(np.arange(80), 4)) > 1.6 * width(None)
    assert width(np.arange(320)) == pytest.approx(width(None), abs=0.01)


def test_the_bootstrap_agrees_with_resampling_photographs():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 150)
    predicted = np.where(rng.random(150) < 0.8, targets, 0)
    matrices = resample_confusions(targets, predicted, 3, resamples=2000, seed=1)
    drawn = rng.integers(0, 150, (2000, 150))
    accuracies = matrices.trace(axis1=1, axis2=2) / 150, (targets[drawn] == predicted[drawn]).mean(axis=1)
    quantiles = [np.percentile(column, [2.5, 50, 97.5]) for column in accuracies]
    assert np.allclose(*quantiles, atol=0.011)


@pytest.mark.parametrize(
    ("probabilities", "targets", "ece", "aurc"),
    [
        (np.eye(2)[[0, 1, 1]], [0, 1, 1], 0, 0),  # all correct
        (np.eye(2)[[1, 0, 0]], [0, 1, 1], 1, 1),  # all wrong, with probability 1
        (np.full((4, 2), 0.5), [0, 0, 1, 1], 0, 0.5),  # constant and calibrated
        (np.full((5, 5), 0.2), [0, 1, 2, 3, 4], 0, 0.8),  # the same with five classes
    ],
)
def test_edge_cases(probabilities, targets, ece, aurc):
    evaluation = evaluate(probabilities, np.array(targets), CLASSES[: probabilities.shape[1]])
    assert (evaluation.ece, evaluation.aurc) == (pytest.approx(ece), pytest.approx(aurc))
    assert evaluation.coverage == 1 and evaluation.answered_accuracy == evaluation.accuracy


def test_logits_have_no_calibration_error():
    evaluation = evaluate(np.array([[4.0, 1.0], [0.0, 2.0]]), np.array([0, 1]), ("a", "b"))
    assert evaluation.accuracy == 1 and evaluation.ece is None and evaluation.coverage is None
    assert "ECE" not in table(evaluation)


def test_wilson_at_its_limits():
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    "The shipped model with a threshold that makes some predictions *unsure*."
    model = tmp_path_factory.mktemp("model") / "strict.onnx"
    model.write_bytes(SHIPPED_MODEL.read_bytes())
    card = read_card(SHIPPED_MODEL)
    changed = {"temperature": card.temperature * 3, "unsure_below": 0.75, "decision_note": "for a test"}
    write_card(model, card.model_copy(update=changed))
    return model


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    "Two drawn data sets; the second has fewer classes."
    folder = tmp_path_factory.mktemp("sets")
    return draw_sample(folder / "first", 2), draw_sample(folder / "second", 3, ("glass", "paper"))


def test_a_card_without_temperature_and_threshold_is_valid():
    fields = read_card(SHIPPED_MODEL).model_dump(mode="json")
    for key in ("temperature", "unsure_below", "decision_note"):
        fields.pop(key)
    card = ModelCard.model_validate(fields)
    assert (card.temperature, card.unsure_below) == (1, None)


def test_predict_prints_unsure_below_the_threshold(model, sets):
    predictions = json.loads(call("predict", sets[0], "--json", "--model", model).stdout)
    assert len(predictions) == 12
    assert all(prediction["unsure"] == (prediction["confidence"] < 0.75) for prediction in predictions)
    lines = call("predict", sets[0], "--top-k", "2", "--model", model).stdout.splitlines()
    assert [line.endswith("  unsure") for line in lines] == [prediction["unsure"] for prediction in predictions]
    pairs = zip(predictions, lines, strict=True)
    assert all(prediction["predicted_class"] in line for prediction, line in pairs)


def test_the_temperature_is_applied_and_changes_no_prediction(model, sets):
    files = sorted(sets[0].rglob("*.png"))
    predictors = Predictor(model), Predictor(SHIPPED_MODEL)
    for file in files:
        warm, shipped = (predictor.predict_one(file) for predictor in predictors)
        assert warm.predicted_class == shipped.predicted_class
        classes = predictors[1].card.classes
        logs = [np.log([result.all_probabilities[label] for label in classes]) for result in (warm, shipped)]
        assert np.allclose(3 * (logs[0] - logs[0][0]), logs[1] - logs[1][0], atol=1e-6)


def test_evaluate_uses_the_threshold_of_the_card(model, sets, tmp_path):
    done = call("evaluate", sets[0], "--json", tmp_path / "metrics.json", "--model", model)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_bytes())
    predictions = json.loads(call("predict", sets[0], "--json", "--model", model).stdout)
    assert metrics["coverage"] == pytest.approx(np.mean([not prediction["unsure"] for prediction in predictions]))
    assert metrics["unsure_below"] == 0.75 and 0 <= metrics["ece"] <= 1 and metrics["bootstrap"]["units"] == 12
    for text in ("ECE, 15 bins", "unsure below 0.750", "bootstrap over 12 photographs", "Wilson"):
        assert text in done.stdout


def test_evaluate_compares_several_folders(model, sets, tmp_path):
    done = call("evaluate", *sets, "--json", tmp_path / "both.json", "--model", model)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both.json").read_bytes())
    assert list(both) == [str(folder) for folder in sets]
    assert [metrics["n"] for metrics in both.values()] == [12, 6]
    lines = done.stdout.splitlines()
    for folder in sets:
        assert sum(line.startswith(str(folder)) for line in lines) == 2  # metrics, and recall by class
        assert f"{both[str(folder)]['accuracy']:.3f}" in next(line for line in lines if line.startswith(str(folder)))
    second = call("evaluate", sets[1], "--json", tmp_path / "second.json", "--model", model)
    assert second.returncode == 0
    metrics = json.loads((tmp_path / "second.json").read_bytes())
    assert {**metrics, "ms_per_image": 0} == {**both[str(sets[1])], "ms_per_image": 0}


def test_a_split_applies_to_the_first_folder(model, sets, tmp_path):
    manifest, metrics = tmp_path / "manifest.csv", tmp_path / "metrics.json"
    written = call("data", "manifest", sets[0], "--out", manifest)
    assert written.returncode == 0, written.stderr
    done = call("evaluate", *sets, "--split", manifest, "--json", metrics, "--model", model)
    assert done.returncode == 0, done.stderr
    assert [evaluation["n"] for evaluation in json.loads(metrics.read_bytes()).values()] == [6, 6]
