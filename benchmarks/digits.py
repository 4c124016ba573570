"""Image classification from PNG bytes through the server: accuracy with its interval, and the bound of the drop.

    python benchmarks/digits.py --save

The images are scikit-learn's handwritten digits, the models small ones that are trained from nothing: a vision
transformer in int8 and a ResNet in float32. What Triton answers to each PNG file is compared with PyTorch's answer;
`raw_pixels` is a plain baseline: logistic regression on the 64 pixels. What is done stays in `--workspace`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import finish
from numpy.typing import NDArray
from proved import checks_of, proved, task_options
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deploykit.data.png import file_of_url, png_pixels
from deploykit.data.sample import digit_rows
from deploykit.parity.intervals import clopper_pearson
from deploykit.recipe import Recipe, load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "digits.yaml"
MODELS = {
    "vit": [],
    "resnet": ["name=digits_resnet", "model=sample:digits_resnet", "quantize.scheme=none", "finetune.epochs=20"],
}


def main() -> None:
    parser = task_options(__doc__, "digits")
    parser.add_argument("--model", choices=sorted(MODELS), action="append", help="both unless told")
    options = parser.parse_args()
    figures: dict[str, Any] = {"raw_pixels": raw_pixels()}
    for name in options.model or MODELS:
        recipe = load_recipe(RECIPE, [*MODELS[name], *options.set])
        figures[name] = measured(recipe, options.workspace, options.repository)
    finish(options.name, figures, as_json=options.json, save=options.save)


def measured(recipe: Recipe, workspace: Path, repository: Path) -> dict[str, Any]:
    """What one recipe came to, from PNG bytes through the server."""
    result, parity = proved(recipe, workspace, repository)
    assert parity.candidate is not None
    served = round(parity.candidate * parity.n)
    return {
        "accuracy": {"pytorch": parity.reference, "served": [parity.candidate, *clopper_pearson(served, parity.n)]},
        "n": parity.n,
        "drop_upper_95": parity.drop_upper,
        "other_answers": parity.flips,
        "verdict": parity.verdict,
        "checks": checks_of(parity),
        "scheme": result.scheme,
        "size_mb": {"pytorch": result.reference.size_mb, "shipped": result.shipped.size_mb},
        "epochs": recipe.finetune.epochs,
    }


def raw_pixels() -> dict[str, Any]:
    """Logistic regression on the pixels: accuracy on the test images with its interval."""
    (train, known), (test, wanted) = (pixels(part) for part in ("train", "test"))
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    right = model.fit(train, known).predict(test) == wanted
    return {"accuracy": [float(right.mean()), *clopper_pearson(int(right.sum()), len(right))], "n": len(right)}


def pixels(part: Any) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """The images of a part, [images, 64], and their digits."""
    rows = digit_rows(part)
    values = [png_pixels(file_of_url(row.text))[:, :, 0].ravel() for row in rows]
    return np.array(values, dtype=np.float64), np.array([row.label for row in rows])


if __name__ == "__main__":
    main()
