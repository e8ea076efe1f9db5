"""Write tcsweep/data/torchvision.json: torchvision's classifiers, their weights and the input size of each as built.

Shipped as data so that a wrong model name needs no torch. Run it again when torchvision gains models:
    python scripts/list_models.py
"""

import json
from pathlib import Path

import torchvision
from torchvision.models import get_model_weights, list_models

SIZES = {"inception_v3": 299}  # everything else that has random weights is built for 224


def main() -> None:
    models = {}
    for name in sorted(list_models(module=torchvision.models)):
        size = SIZES.get(name, 224)
        weights = {w.name: w.transforms.keywords.get("crop_size", size) for w in get_model_weights(name)}
        models[name] = {"image_size": size, "weights": weights}
    data = {"torchvision": torchvision.__version__.split("+")[0], "models": models}
    path = Path(__file__).parent.parent / "tcsweep" / "data" / "torchvision.json"
    path.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
