"""A run whose classifier is interpolated with a zero-shot one."""

import pytest
import torch

from trashsorting.core.config import TrainConfig, check_config
from trashsorting.core.errors import ModelError, TrashsortingError
from trashsorting.data.manifest import read_folder
from trashsorting.data.sample import draw_sample
from trashsorting.data.splits import split_by_hash
from trashsorting.training.run import load_run, train

SHORT = {"image_size": 64, "train_size": 64, "batch_size": 8, "num_workers": 0, "epochs": 0, "stored_views": 2}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return split_by_hash(read_folder(draw_sample(tmp_path_factory.mktemp("sample"), per_class=6)))


def test_only_classes_that_imagenet_knows_are_changed(manifest, tmp_path):
    weights = []
    for weight in (0.0, 0.5):
        out = tmp_path / str(weight)
        train(manifest, TrainConfig(zero_shot_weight=weight, **SHORT), out).tracker.finish()
        weights.append(load_run(out).model.state_dict())
    before, after = weights
    different = [name for name in before if not torch.equal(before[name], after[name])]
    assert different == ["classifier.weight", "classifier.bias"]
    changed = (before["classifier.weight"] != after["classifier.weight"]).any(1)
    assert changed.tolist() == [label != "trash" for label in manifest.labels]


def test_without_imagenets_weights_it_is_refused():
    with pytest.raises(TrashsortingError, match="zero_shot_weight needs ImageNet's weights: set pretrained to true"):
        check_config(zero_shot_weight=0.5, pretrained=False)


def test_other_classes_are_refused_in_words(tmp_path):
    folder = draw_sample(tmp_path / "sample", per_class=4)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"kind{number}")
    with pytest.raises(ModelError, match="needs two classes of cardboard, glass"):
        train(split_by_hash(read_folder(folder)), TrainConfig(zero_shot_weight=0.5, **SHORT), tmp_path / "run")
