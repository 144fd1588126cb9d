"""False alarms: windows of one fold of the cross-validation, against a reference of the others."""

from pathlib import Path

import numpy as np
import pytest

from trashsorting.core.drift import FEATURES, Observations, output_features
from trashsorting.evaluation.calibration import fit_temperature
from trashsorting.evaluation.drift import false_alarms_by_fold
from trashsorting.evaluation.oof import load_predictions


@pytest.fixture(scope="module")
def folds():
    return load_predictions(Path(__file__).parents[2] / "nbs" / "measured" / "out_of_fold.csv")


@pytest.mark.parametrize("size", [20, 50, 200])
def test_windows_of_a_fold_do_not_differ_from_the_other_folds(folds, predictor, size):
    """Without a tolerance, 14 of 500 windows of 200 are alarms, 12 of them of one fold, whose energies lie higher."""
    features = np.full((len(folds.files), len(FEATURES)), np.nan)
    features[:, :3] = output_features(folds.logits, fit_temperature(folds.logits, folds.targets))
    observations = Observations(features, folds.logits.argmax(axis=1))
    alarms = false_alarms_by_fold(predictor.card, observations, folds.folds, windows=100, size=size)
    assert sum(alarms.values()) <= 2, alarms  # the level expects 0.5 of 500
