"""What the run that makes an artifact takes from the run that asks for it."""

import pytest
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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["regularizer=pufferfish", "regularizer.share=2"], "share=2"),
        (["regularizer=fisher_merging", "regularizer.fisher=exct"], "Did you mean exact?"),
        (["regularizer=red_diff", "regularizer.lr=0"], "regularizer.lr=0"),
    ],
)
def test_mistakes_in_a_methods_options_show_before_what_it_starts_from_is_made(
    train, capsys, tmp_path, options, says
):
    code, _ = train(*options, f"runs_dir={tmp_path / 'runs'}")
    assert code == 2
    assert says in capsys.readouterr().err
    assert not list((tmp_path / "runs").rglob("*.ckpt"))
    assert not list((tmp_path / "runs").rglob("config.yaml"))
