"""How evaluation travels: counts of each client, collected."""

from __future__ import annotations

from core.folds import Collect, product

# `counts` has, for each split and predictor, `<split>/<predictor>` [2, C] (correct, total) and `<split>/<predictor>/loss`.
EVALUATION_FOLD = product({"counts": Collect()})
