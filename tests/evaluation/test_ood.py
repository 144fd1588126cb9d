"""Detection of out-of-distribution images: by definition, and stated values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from simulated import quick

from trashsorting.evaluation.ood import detect, energy, score_ood

scores = arrays(np.float64, st.integers(1, 40), elements=st.integers(0, 9).map(float))


@quick
@given(scores, scores)
def test_auroc_and_fpr_by_their_definitions(trash, other):
    metrics = score_ood(trash, other)
    higher, equal = trash[:, None] > other, trash[:, None] == other
    assert math.isclose(metrics.auroc, (higher + equal / 2).mean(), abs_tol=1e-12)
    threshold = max(value for value in trash if (trash >= value).mean() >= 0.95)
    assert math.isclose(metrics.fpr, (other >= threshold).mean())
    assert (metrics.n_trash, metrics.n_other) == (len(trash), len(other))


def test_known_values():
    rng = np.random.default_rng(2)
    trash = rng.normal(0, 2, (300, 6)) + 4 * np.eye(6)[rng.integers(0, 6, 300)]
    metrics = detect(trash, rng.normal(0, 1.5, (120, 6)), 1.7)
    assert metrics["probability"].auroc == pytest.approx(0.83025)
    assert metrics["probability"].fpr == pytest.approx(0.7)
    assert metrics["probability"].fpr_interval == pytest.approx((0.6128485749580974, 0.7747437582847525))
    assert metrics["energy"].auroc == pytest.approx(0.8621944444444445)
    assert metrics["energy"].fpr == pytest.approx(0.675)
    assert energy(trash[:2], 1.7) == pytest.approx([7.71783617, 4.66345919])


def test_a_shift_of_the_logits_changes_energy_and_not_probability():
    rng = np.random.default_rng(0)
    trash = rng.normal(0, 1, (200, 6)) + 8
    metrics = detect(trash, trash - 8)
    assert metrics["probability"].auroc == pytest.approx(0.5)
    assert metrics["energy"].auroc > 0.99
    assert np.allclose(energy(trash, 1.0), np.log(np.exp(trash).sum(axis=1)))
