"""What the run that makes an artifact takes from the run that asks for it."""

import yaml

from support import QUICK


def test_the_maker_trains_on_the_same_labels_with_the_same_recipe(train):
    """Another noise, map, seed, learning rate and network than the defaults': all of them reach the maker."""
    code, folder = train(
        *QUICK, "regularizer=forward_estimated", "dataset.noise.kind=asymmetric", "dataset.noise.rate=0.3",
        "dataset.noise.class_map={0: 6}", "seed=3", "seeds.noise=7", "optimizer.lr=0.011", "backbone.hidden=[9]",
        "trainer.limit_train_batches=2",
    )  # fmt: skip
    assert code == 0
    asked = yaml.safe_load((folder / "config.yaml").read_text())
    runs = [yaml.safe_load(path.read_text()) for path in folder.parent.rglob("config.yaml")]
    (maker,) = [run for run in runs if run["regularizer"]["name"] == "none"]
    for key in ("dataset", "backbone", "optimizer", "scheduler", "trainer", "seed", "seeds"):
        assert maker[key] == asked[key], key
    assert maker["dataset"]["noise"]["class_map"] == {0: 6}
    assert maker["seeds"]["noise"] == 7
