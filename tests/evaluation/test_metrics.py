"""Figures, calibration, thresholds and folds: what must hold for any predictions, and what other libraries say."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from command import call
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from scipy.stats import beta
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score, roc_auc_score

from trashsorting.core.card import Evaluation, ModelCard, read_card, write_card
from trashsorting.core.errors import ModelError
from trashsorting.core.settings import SHIPPED_MODEL
from trashsorting.data.sample import draw_sample
from trashsorting.evaluation.calibration import TEMPERATURES, choose_threshold, fit_temperature, mean_nll, upper_limit
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
from trashsorting.evaluation.ood import auroc, detect, energy, fpr_at_tpr
from trashsorting.evaluation.oof import Predictions, load_predictions, pool, save_predictions
from trashsorting.inference.predictor import Predictor
from trashsorting.inference.session import softmax

CLASSES = tuple("abcdef")
quick = settings(max_examples=60, deadline=None)


@st.composite
def predictions(draw, largest: int = 60) -> tuple[np.ndarray, np.ndarray]:
    "Logits for two to six classes, ties and all, and true classes."
    n, columns = draw(st.integers(1, largest)), draw(st.integers(2, 6))
    logits = draw(arrays(np.float64, (n, columns), elements=st.integers(-40, 40).map(lambda tenth: tenth / 4)))
    return logits, draw(arrays(np.int64, n, elements=st.integers(0, columns - 1)))


@quick
@given(predictions(), st.booleans())
def test_every_interval_holds_its_figure(made, grouped):
    logits, targets = made
    classes = CLASSES[: logits.shape[1]]
    found = evaluate(softmax(logits), targets, classes, groups=targets // 2 if grouped else None)
    for interval in (found.accuracy_interval, found.bootstrap.accuracy):
        assert 0 <= interval[0] <= found.accuracy <= interval[1] <= 1
    assert 0 <= found.bootstrap.macro_f1[0] <= found.macro_f1 <= found.bootstrap.macro_f1[1] <= 1
    for label, one in found.per_class.items():
        for interval in (one.precision_interval, found.bootstrap.precision[label]):
            assert interval[0] <= one.precision <= interval[1]
        for interval in (one.recall_interval, found.bootstrap.recall[label]):
            assert interval[0] <= one.recall <= interval[1]
    assert found.bootstrap.resampled == ("groups" if grouped else "photographs")
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


@quick
@given(predictions())
def test_scikit_learn_agrees(made):
    logits, targets = made
    said, present = logits.argmax(axis=1), np.unique(targets)
    found = evaluate(softmax(logits), targets, CLASSES[: logits.shape[1]])
    assert math.isclose(found.accuracy, accuracy_score(targets, said))
    assert math.isclose(found.macro_f1, f1_score(targets, said, labels=present, average="macro", zero_division=0))
    for score, name in ((precision_score, "precision"), (recall_score, "recall")):
        theirs = score(targets, said, labels=range(logits.shape[1]), average=None, zero_division=0)
        assert np.allclose([getattr(one, name) for one in found.per_class.values()], theirs)
    assert math.isclose(found.nll, log_loss(targets, softmax(logits), labels=range(logits.shape[1])), abs_tol=1e-9)


@quick
@given(predictions())
def test_calibration_error_by_its_definition(made):
    logits, targets = made
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    total = 0.0
    for index in range(N_BINS):
        inside = (confidence > index / N_BINS) & (confidence <= (index + 1) / N_BINS)
        if inside.any():
            total += inside.sum() / len(targets) * abs(confidence[inside].mean() - right[inside].mean())
    error = expected_calibration_error(probabilities, targets)
    assert 0 <= error <= 1
    assert math.isclose(error, total, abs_tol=1e-12)


@quick
@given(predictions())
def test_a_temperature_changes_no_answer_and_no_better_one_is_near(made):
    logits, targets = made
    temperature = fit_temperature(logits, targets)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1] or temperature == 1
    most = logits.max(axis=1, keepdims=True)
    said = softmax(logits, temperature).argmax(axis=1)
    assert (logits[np.arange(len(logits)), said] == most[:, 0]).all()
    best = mean_nll(logits, targets, temperature)
    for other in (1.0, temperature * 0.97, temperature * 1.03):
        if TEMPERATURES[0] <= other <= TEMPERATURES[1]:
            assert best <= mean_nll(logits, targets, other) + 1e-9


def test_scipy_finds_the_same_temperature():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (500, 6))
    targets = np.array([rng.choice(6, p=row) for row in softmax(logits, 2.5)])
    theirs = minimize_scalar(lambda t: mean_nll(logits, targets, t), bounds=(0.1, 10), method="bounded")
    assert math.isclose(fit_temperature(logits, targets), theirs.x, rel_tol=1e-4)


@quick
@given(predictions(), st.floats(0.01, 0.9), st.sampled_from([None, 0.5, 0.95]))
def test_a_threshold_meets_its_risk_where_it_was_chosen(made, risk, confidence):
    logits, targets = made
    probabilities = softmax(logits)
    right = probabilities.argmax(axis=1) == targets
    try:
        rule = choose_threshold(probabilities, targets, risk, confidence)
    except ModelError as error:
        assert "no threshold keeps the risk" in str(error)
        if confidence is None:  # then even the surest photographs hold a mistake too many
            assert risk_coverage(probabilities, targets)[2].min() > risk
        return
    answered = probabilities.max(axis=1) >= rule.threshold
    assert answered.any() and (~right[answered]).mean() <= risk + 1e-12
    assert (~right[answered]).mean() <= rule.limit + 1e-12 and rule.limit <= risk
    scored = evaluate(probabilities, targets, CLASSES[: logits.shape[1]], unsure_below=rule.threshold)
    assert math.isclose(scored.coverage, rule.coverage)
    assert math.isclose(scored.answered_accuracy, right[answered].mean())
    assert scored.accuracy == right.mean(), "forced top-1, whatever the threshold"


@quick
@given(st.integers(1, 400), st.data())
def test_the_upper_limit_is_clopper_and_pearsons(n, data):
    wrong, doubt = data.draw(st.integers(0, n)), data.draw(st.floats(0.001, 0.5))
    expected = 1.0 if wrong == n else beta.ppf(1 - doubt, wrong + 1, n - wrong)
    assert math.isclose(upper_limit(wrong, n, doubt), expected, abs_tol=1e-9)
    assert wrong / n <= upper_limit(wrong, n, doubt)


@quick
@given(predictions())
def test_risk_and_coverage_do_not_depend_on_the_order(made):
    logits, targets = made
    turned = risk_coverage(softmax(logits)[::-1], targets[::-1])
    straight = risk_coverage(softmax(logits), targets)
    assert all(np.allclose(one, other) for one, other in zip(straight, turned, strict=True))
    _, coverage, risk = straight
    assert (np.diff(coverage) > 0).all() and coverage[-1] == 1
    assert 0 <= area_under_risk_coverage(coverage, risk) <= 1 + 1e-12


@quick
@given(
    arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 9).map(float)),
    arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 9).map(float)),
)
def test_scikit_learn_finds_the_same_area(trash, other):
    truth = np.repeat([1, 0], [len(trash), len(other)])
    assert math.isclose(auroc(trash, other), roc_auc_score(truth, np.concatenate([trash, other])), abs_tol=1e-12)
    share, threshold = fpr_at_tpr(trash, other)
    assert (trash >= threshold).mean() >= 0.95
    assert math.isclose(share, (other >= threshold).mean())


def test_energy_sees_what_probabilities_cannot():
    "The same differences, at another height."
    rng = np.random.default_rng(0)
    trash = rng.normal(0, 1, (200, 6)) + 8
    found = detect(trash, trash - 8)
    assert found["probability"].auroc == pytest.approx(0.5)
    assert found["energy"].auroc > 0.99
    assert np.allclose(energy(trash, 1.0), np.log(np.exp(trash).sum(axis=1)))


def test_groups_widen_the_interval_and_single_groups_do_not():
    rng = np.random.default_rng(3)
    targets = np.repeat(rng.integers(0, 3, 80), 4)
    said = np.where(np.repeat(rng.random(80) < 0.85, 4), targets, (targets + 1) % 3)
    width = lambda groups: float(np.diff(bootstrap(targets, said, CLASSES[:3], groups).accuracy)[0])  # noqa: E731
    assert width(np.repeat(np.arange(80), 4)) > 1.6 * width(None)
    assert width(np.arange(320)) == pytest.approx(width(None), abs=0.01)


def test_the_bootstrap_agrees_with_drawing_photographs_one_by_one():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 150)
    said = np.where(rng.random(150) < 0.8, targets, 0)
    ours = resample_confusions(targets, said, 3, resamples=2000, seed=1).trace(axis1=1, axis2=2) / 150
    drawn = rng.integers(0, 150, (2000, 150))
    theirs = (targets[drawn] == said[drawn]).mean(axis=1)
    assert np.allclose(np.percentile(ours, [2.5, 50, 97.5]), np.percentile(theirs, [2.5, 50, 97.5]), atol=0.011)


@pytest.mark.parametrize(
    ("probabilities", "targets", "ece", "aurc"),
    [
        (np.eye(2)[[0, 1, 1]], [0, 1, 1], 0, 0),  # perfect
        (np.eye(2)[[1, 0, 0]], [0, 1, 1], 1, 1),  # always sure, always wrong
        (np.full((4, 2), 0.5), [0, 0, 1, 1], 0, 0.5),  # constant, and honest about it
        (np.full((5, 5), 0.2), [0, 1, 2, 3, 4], 0, 0.8),  # the same with five classes
    ],
)
def test_edge_cases(probabilities, targets, ece, aurc):
    found = evaluate(probabilities, np.array(targets), CLASSES[: probabilities.shape[1]])
    assert (found.ece, found.aurc) == (pytest.approx(ece), pytest.approx(aurc))
    assert found.coverage == 1 and found.answered_accuracy == found.accuracy


def test_logits_give_no_calibration():
    found = evaluate(np.array([[4.0, 1.0], [0.0, 2.0]]), np.array([0, 1]), ("a", "b"))
    assert found.accuracy == 1 and found.ece is None and found.coverage is None
    assert "ECE" not in table(found)


def test_wilson_at_its_ends():
    assert wilson(0, 0) == (0, 1)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1


@quick
@given(predictions(), st.integers(2, 5))
def test_predictions_survive_their_file(tmp_path_factory, made, folds):
    logits, targets = made
    logits = (logits * np.pi).astype(np.float32)
    files = tuple(f"a b/ü,{number}.jpg" for number in range(len(targets)))
    one = Predictions(CLASSES[: logits.shape[1]], files, targets, np.arange(len(targets)) % folds, logits)
    back = load_predictions(save_predictions(one, tmp_path_factory.mktemp("folds") / "folds.csv"))
    assert (back.classes, back.files) == (one.classes, one.files)
    assert all((getattr(back, name) == getattr(one, name)).all() for name in ("targets", "folds", "logits"))
    parts = [one.subset(fold) for fold in np.unique(one.folds)]
    assert sorted(pool(parts).files) == sorted(files)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    "The model that ships, under a card with a temperature and a threshold that is out of reach for some."
    model = tmp_path_factory.mktemp("model") / "strict.onnx"
    model.write_bytes(SHIPPED_MODEL.read_bytes())
    plain = read_card(SHIPPED_MODEL)
    changed = {"temperature": plain.temperature * 3, "unsure_below": 0.75, "decision_note": "for a test"}
    write_card(model, plain.model_copy(update=changed))
    return model


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    "Two drawn data sets; the second has fewer classes."
    folder = tmp_path_factory.mktemp("sets")
    return draw_sample(folder / "first", 2), draw_sample(folder / "second", 3, ("glass", "paper"))


def test_a_card_without_the_new_fields_is_a_card():
    early = read_card(SHIPPED_MODEL).model_dump(mode="json")
    for key in ("temperature", "unsure_below", "decision_note"):
        early.pop(key)
    read = ModelCard.model_validate(early)
    assert (read.temperature, read.unsure_below) == (1, None)


def test_predict_says_unsure_where_the_card_does(model, sets):
    said = json.loads(call("predict", sets[0], "--json", "--model", model).stdout)
    assert len(said) == 12 and all(one["unsure"] == (one["confidence"] < 0.75) for one in said)
    lines = call("predict", sets[0], "--top-k", "2", "--model", model).stdout.splitlines()
    assert [line.endswith("  unsure") for line in lines] == [one["unsure"] for one in said]
    assert all(one["predicted_class"] in line for one, line in zip(said, lines, strict=True))


def test_the_temperature_is_applied_and_names_the_same_class(model, sets):
    files = sorted(sets[0].rglob("*.png"))
    warm, plain = Predictor(model), Predictor(SHIPPED_MODEL)
    for file in files:
        one, other = warm.predict_one(file), plain.predict_one(file)
        assert one.predicted_class == other.predicted_class
        logs = [np.log([said.all_probabilities[label] for label in plain.card.classes]) for said in (one, other)]
        assert np.allclose(3 * (logs[0] - logs[0][0]), logs[1] - logs[1][0], atol=1e-6)


def test_evaluate_prints_what_the_card_allows(model, sets, tmp_path):
    done = call("evaluate", sets[0], "--json", tmp_path / "one.json", "--model", model)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "one.json").read_bytes())
    said = json.loads(call("predict", sets[0], "--json", "--model", model).stdout)
    assert figures["coverage"] == pytest.approx(np.mean([not one["unsure"] for one in said]))
    assert figures["unsure_below"] == 0.75 and 0 <= figures["ece"] <= 1 and figures["bootstrap"]["units"] == 12
    for words in ("ECE, 15 bins", "unsure below 0.750", "bootstrap over 12 photographs", "Wilson"):
        assert words in done.stdout


def test_evaluate_puts_several_folders_side_by_side(model, sets, tmp_path):
    done = call("evaluate", *sets, "--json", tmp_path / "both.json", "--model", model)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both.json").read_bytes())
    assert list(both) == [str(folder) for folder in sets]
    assert [one["n"] for one in both.values()] == [12, 6]
    lines = done.stdout.splitlines()
    for folder in sets:
        assert sum(line.startswith(str(folder)) for line in lines) == 2  # figures, and recall by class
        assert f"{both[str(folder)]['accuracy']:.3f}" in next(line for line in lines if line.startswith(str(folder)))
    alone = call("evaluate", sets[1], "--json", tmp_path / "alone.json", "--model", model)
    assert alone.returncode == 0
    same = json.loads((tmp_path / "alone.json").read_bytes())
    assert {**same, "ms_per_image": 0} == {**both[str(sets[1])], "ms_per_image": 0}


def test_a_split_is_the_first_folders(model, sets, tmp_path):
    made = call("data", "manifest", sets[0], "--out", tmp_path / "manifest.csv")
    assert made.returncode == 0, made.stderr
    done = call(
        "evaluate", *sets, "--split", tmp_path / "manifest.csv", "--json", tmp_path / "b.json", "--model", model
    )
    assert done.returncode == 0, done.stderr
    assert [one["n"] for one in json.loads((tmp_path / "b.json").read_bytes()).values()] == [6, 6]
