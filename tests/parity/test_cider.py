"""CIDEr-D agrees with pycocoevalcap's within 1e-6, on synthetic captions."""

import numpy as np
import pytest

from attnjax.metrics.cider import cider

Cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider


@pytest.mark.parametrize("seed", range(4))
def test_cider_is_pycocoevalcaps(seed):
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(12)])

    def sentence(longest=14):
        return " ".join(words[rng.zipf(1.5, rng.integers(1, longest)).clip(1, 12) - 1])

    references = [[sentence() for _ in range(rng.integers(1, 6))] for _ in range(30)]
    hypotheses = [sentence() for _ in references]
    hypotheses[:4] = [references[0][0], references[1][0] + " w11 w11", "unheard of", words[0]]
    expected, scores = Cider().compute_score(dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)})
    assert expected > 0.2 and len(np.unique(scores)) > 20
    assert cider(hypotheses, references) == pytest.approx(expected, abs=1e-6)
