"""What makes a run another run, what does not, and when code counts as changed."""

import copy
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from regbench import identity as module
from regbench import registry
from regbench.composing import compose_config
from regbench.errors import UserError
from regbench.identity import code_fingerprint, hash_of, identity, resolve
from support import ROOT

BASE = ["regularizer=mixup", "dataset=digits", "backbone=mlp"]
NO_RUNS = {}


def named(*overrides: str, data="content", artifacts=NO_RUNS) -> str:
    """The hash of a run with these overrides."""
    return hash_of(identity(resolve(compose_config([*BASE, *overrides])), data, artifacts))


SAME = [
    ["dataset.root=elsewhere"],
    ["dataset.workers=3"],
    ["dataset.eval_batch_size=7"],
    ["logger=none"],
    ["logger=[csv,tensorboard]"],
    ["trainer.log_every_n_steps=1"],
    ["progress=bar", "debug=true", "runs_dir=x", "run_name=y", "run_group=g", "run_tags=[z]"],
    ["seeds.order=0"],  # pinned to the value that it has anyway
    ["++artifacts.teacher.overrides=['a=1']"],  # its hash counts, which is given apart
    ["accelerator.name=other"],
    ["optimizer.lr=0.050"],
]
OTHER = [
    ["seed=1"],
    *([f"seeds.{stream}=5"] for stream in ("data", "noise", "init", "order", "evaluation")),
    ["regularizer=cutmix"],
    ["regularizer.alpha=0.5"],
    ["optimizer.lr=0.01"],
    ["optimizer=adam"],
    ["scheduler=constant"],
    ["backbone=small_cnn"],
    ["backbone.hidden=32"],
    ["dataset.batch_size=64"],
    ["dataset.train_size=100"],
    ["dataset.val_fraction=0.2"],
    ["dataset.augment.flip=true"],
    ["dataset.version=2"],
    ["accelerator.precision=bf16-mixed"],
    ["accelerator.threads=1"],
    ["accelerator=cpu"],
    ["accelerator.compile=true"],
    ["trainer.max_epochs=3"],
    ["trainer.limit_train_batches=2"],
    ["checkpoint.select=last"],
    ["callbacks=early_stopping"],
]


def test_two_runs_have_one_name_where_nothing_that_counts_differs():
    names = {str(overrides): named(*overrides) for overrides in [[], *SAME]}
    assert len(set(names.values())) == 1, names


def test_whatever_can_change_a_number_makes_another_run():
    names = {str(overrides): named(*overrides) for overrides in [[], *OTHER]}
    names |= {"data": named(data="other"), "artifact": named(artifacts={"teacher": "a"})}
    names |= {"role": named(artifacts={"student": "a"}), "its hash": named(artifacts={"teacher": "b"})}
    assert len(set(names.values())) == len(names), names


def test_the_name_is_sha256_of_the_sorted_json():
    # printf '{"a": "λ", "b": [1, null]}' | sha256sum
    assert hash_of({"b": [1, None], "a": "λ"}) == "4c5702a070620be6"


def test_versions_of_method_and_family_count(monkeypatch):
    entry = registry.find("mixup")
    before = named()
    changed = dict(registry.entries())
    changed["mixup"] = type(entry)(**{**vars(entry), "version": entry.version + 1})
    with monkeypatch.context() as patch:
        patch.setattr(registry, "entries", lambda: changed)
        raised = named()
    monkeypatch.setattr(registry, "family_version", lambda entry: 99)
    assert len({before, raised, named()}) == 3


def test_a_key_that_is_new_leaves_old_runs_their_name_at_its_neutral_value(monkeypatch):
    config = resolve(compose_config(BASE))
    before = hash_of(identity(config, "content", {}))
    with_key = copy.deepcopy(config)
    with_key["optimizer"]["new"] = {"key": 1.0}
    assert hash_of(identity(with_key, "content", {})) != before
    monkeypatch.setattr(module, "NEUTRAL", {**module.NEUTRAL, "optimizer.new.key": 1.0})
    assert hash_of(identity(with_key, "content", {})) == before
    with_key["optimizer"]["new"]["key"] = 2.0
    assert hash_of(identity(with_key, "content", {})) != before


def test_an_unknown_method_has_no_identity():
    config = resolve(compose_config(BASE))
    config["regularizer"]["name"] = "mixupp"
    with pytest.raises(UserError, match="Did you mean mixup"):
        identity(config, "content", {})


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["experiment=decoupled_mixup/cifar100_resnet18", "regularizer.policy=fmix"],
        ["experiment=decoupled_mixup/imagenet_resnet50", "accelerator=ddp"],
        ["callbacks=early_stopping", "logger=[wandb,csv]"],
    ],
    ids=" ".join,
)
def test_resolved_as_omegaconf_does(overrides):
    cfg = compose_config(overrides)
    assert resolve(cfg) == OmegaConf.to_container(cfg, resolve=True)


def test_all_kinds_of_interpolations_are_resolved():
    cfg = OmegaConf.create(
        {
            "number": 3,
            "empty": None,
            "node": {"inner": "${number}", "list": [1, "${.0}"]},
            "copy": "${node}",
            "text": "a ${number} ${node.inner}",
            "nested": "${node.${which}}",
            "which": "inner",
            "none": "${empty}",
            "escaped": r"\${number}",
            "list": ["${number}", {"here": "${.there}", "there": 5}, ["${list[0]}"]],
            "keys": {1: "${number}", "dotted.key": "${number}"},
        }
    )
    assert resolve(cfg) == {
        "number": 3,
        "empty": None,
        "node": {"inner": 3, "list": [1, 1]},
        "copy": {"inner": 3, "list": [1, 1]},
        "text": "a 3 3",
        "nested": 3,
        "which": "inner",
        "none": None,
        "escaped": "${number}",
        "list": [3, {"here": 5, "there": 5}, [3]],
        "keys": {1: 3, "dotted.key": 3},
    }


@pytest.fixture
def code(monkeypatch, tmp_path):
    """A copy of RegBench's package; changes a file in it and returns the fingerprint of a method's code."""
    package = tmp_path / "regbench"
    shutil.copytree(ROOT / "regbench", package, ignore=shutil.ignore_patterns("__pycache__", "templates"))
    entries = {
        slug: type(entry)(**{**vars(entry), "path": package / entry.path.relative_to(ROOT / "regbench")})
        for slug, entry in registry.entries().items()
    }
    monkeypatch.setattr(registry, "entries", lambda: entries)
    monkeypatch.setattr(module, "__file__", str(package / "identity.py"))

    def call(file=None, old="", new="", slug="mixup"):
        if file is not None:
            text = (package / file).read_text(encoding="utf-8")
            assert old in text
            (package / file).write_text(text.replace(old, new, 1) if old else text + new, encoding="utf-8")
        module._code_fingerprint.cache_clear()
        return code_fingerprint({"regularizer": {"name": slug}})

    return call


def test_comments_layout_and_docstrings_are_no_code(code):
    before = code()
    method = "regularizers/classification/mixup.py"
    assert code(method, new="\n\n# A comment.\n") == before
    assert code(method, '"""', '"""Other words. ') == before
    assert code("seeding.py", '"""A 63-bit seed', '"""Other words: a 63-bit seed') == before
    assert code("seeding.py", '(0, "order", 3) == derive', '(0, "order", 4) == derive') == before  # a doctest


@pytest.mark.parametrize(
    "file",
    [
        "regularizers/classification/mixup.py",
        "regularizers/classification/base.py",
        "regularizers/base.py",
        "training.py",
        "callbacks.py",
        "schedules.py",
        "seeding.py",
        "functional/mixing.py",
        "data/augment.py",
        "backbones/resnet.py",
        "metrics/classification.py",
    ],
)
def test_shared_code_the_familys_and_the_methods_own_count(code, file):
    before = code()
    assert code(file, new="\nCHANGED = 1\n") != before


@pytest.mark.parametrize(
    "file", ["regularizers/classification/cutmix.py", "cli.py", "tables/plan.py", "loggers.py"]
)
def test_other_methods_and_what_makes_no_number_do_not_count(code, file):
    before = code()
    assert code(file, new="\nCHANGED = 1\n") == before


def test_a_plug_ins_own_parts_and_regbenchs_family_count(code, monkeypatch, tmp_path):
    plugin = tmp_path / "site" / "my_plugin"
    for name in (
        "regularizers/classification/mine.py",
        "regularizers/classification/other.py",
        "data/sets.py",
    ):
        (plugin / name).parent.mkdir(parents=True, exist_ok=True)
        (plugin / name).write_text("A = 1\n")
    like = registry.entries()["mixup"]
    mine = type(like)(
        **{**vars(like), "slug": "mine", "path": Path(plugin / "regularizers/classification/mine.py")}
    )
    entries = {**registry.entries(), "mine": mine}
    monkeypatch.setattr(registry, "entries", lambda: entries)
    names = [code(slug="mine")]
    (plugin / "regularizers/classification/other.py").write_text("A = 2\n")
    assert code(slug="mine") == names[0]
    for name in ("regularizers/classification/mine.py", "data/sets.py"):
        (plugin / name).write_text("A = 2\n")
        names.append(code(slug="mine"))
    names.append(code("regularizers/classification/base.py", new="\nCHANGED = 1\n", slug="mine"))
    assert len(set(names)) == 4
