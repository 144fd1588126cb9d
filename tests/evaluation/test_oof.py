"""Out-of-fold predictions in a file."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from simulated import CLASSES, predictions, quick

from trashsorting.evaluation.oof import Predictions, load_predictions, pool, save_predictions


@quick
@given(predictions(), st.integers(2, 5))
def test_loaded_predictions_are_equal_to_the_saved_ones(tmp_path_factory, simulated, folds):
    logits, targets = simulated
    logits = (logits * np.pi).astype(np.float32)
    files = tuple(f"a b/ü,{number}.jpg" for number in range(len(targets)))
    saved = Predictions(CLASSES[: logits.shape[1]], files, targets, np.arange(len(targets)) % folds, logits)
    loaded = load_predictions(save_predictions(saved, tmp_path_factory.mktemp("folds") / "folds.csv"))
    assert (loaded.classes, loaded.files) == (saved.classes, saved.files)
    assert all((getattr(loaded, name) == getattr(saved, name)).all() for name in ("targets", "folds", "logits"))
    subsets = [saved.subset(fold) for fold in np.unique(saved.folds)]
    assert sorted(pool(subsets).files) == sorted(files)
