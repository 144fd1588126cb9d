"""Logits and true classes for property tests, ties included."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

CLASSES = tuple("abcdef")
quick = settings(max_examples=60, deadline=None)


@st.composite
def predictions(draw, largest: int = 60) -> tuple[np.ndarray, np.ndarray]:
    "Logits for two to six classes, and true classes."
    n, columns = draw(st.integers(1, largest)), draw(st.integers(2, 6))
    logits = draw(arrays(np.float64, (n, columns), elements=st.integers(-40, 40).map(lambda tenth: tenth / 4)))
    return logits, draw(arrays(np.int64, n, elements=st.integers(0, columns - 1)))
