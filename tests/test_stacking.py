"""`stack=[…]`: methods on top of the chosen one, on the command line and in plain PyTorch."""

import itertools
import json
import math
from itertools import permutations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.utils import parametrize

from regbench import registry
from regbench.artifacts import arguments
from regbench.backbones.moe import moe_classifier
from regbench.composing import compose_config
from regbench.errors import UserError
from regbench.identity import hash_of, identity, resolve
from regbench.regularizers.classification import base
from regbench.regularizers.classification.base import ClassificationMethod, check_stack, hooks_of
from regbench.stacking import read_stack, with_defaults
from support import QUICK, read_result, weights

METHODS = [
    slug for slug, entry in registry.entries().items() if entry.task in ("classification", "noisy_labels")
]
OPTIONS = {"forward_correction": {"kind": "symmetric", "rate": 0.4}}  # which a run takes from its data
STACKABLE = [slug for slug in METHODS if not registry.load(slug).owns_loop]


def network(*slugs: str) -> nn.Module:
    """The network of methods that are stacked: one with experts where one of them routes."""
    torch.manual_seed(0)
    if "moe_router" in slugs:
        return moe_classifier(1, (8, 8), 5, experts=2, hidden=4)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )  # fmt: skip


def batch(size: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(size, 1, 8, 8, generator=generator)
    return {"image": image, "label": torch.arange(size) % 5, "index": torch.arange(size)}


def options(slug: str, *others: str) -> dict[str, object]:
    roles = registry.load(slug).artifacts
    names = [role.replace("*", i) for role in roles for i in ("12" if role.endswith("*") else "1")]
    networks = {name: network(slug, *others).eval().requires_grad_(False) for name in names}
    found = arguments(roles, networks) | OPTIONS.get(slug, {})
    if slug == "manifold_mixup" and "moe_router" in others:
        found["layers"] = [0]  # its network has no stages to mix after
    return found


def create(host: str, *stack: str) -> ClassificationMethod:
    slugs = (host, *stack)
    own = [{slug: options(slug, *slugs)} for slug in stack]
    method = registry.load(host)(network(*slugs), 5, stack=own, **options(*slugs))
    for member in method.members:
        member.on_data(12)
        if hasattr(member, "estimate"):  # of the transition matrix, which a run makes of its training images
            member.estimate([batch()])
    return method


def two_steps(method: ClassificationMethod) -> list[float]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    method.train()
    losses = []
    for _ in range(2):
        loss = method.training_loss(batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for member in method.members:
            if "after_step" in hooks_of(type(member)):
                with torch.no_grad():
                    member.after_step()
        losses.append(loss.item())
    return losses


def refusal(host: str, part: str) -> str | None:
    """Why the pair is refused, by the rules as they are written down; None where it trains."""
    one, other = registry.load(host), registry.load(part)
    if host == part:
        return f"stack puts {host} on top of itself"
    for slug, method in ((host, one), (part, other)):
        if method.owns_loop:
            return f"{slug} trains in a loop of its own"
    for hook, words in (("mix", "both mix the batch"), ("objective", "both own the objective")):
        if hook in hooks_of(one) and hook in hooks_of(other):
            return words
    for (slug, replaces), (part_slug, takes) in permutations(((host, one), (part, other)), 2):
        if replaces.replaces_layers and "reparameterise" in hooks_of(takes):
            return f"{slug} puts other layers in the place of those whose weights {part_slug} reparameterises"
    for mixer, owner in ((one, other), (other, one)):
        if "mix" in hooks_of(mixer) and not owner.objective_takes_mixed:
            assert len(owner.why_not_mixed) > 10
            return owner.why_not_mixed
    return None


@pytest.mark.parametrize("host", METHODS)
def test_every_pair_takes_two_steps_or_is_refused_with_the_reason(host):
    for part in METHODS:
        why = refusal(host, part)
        if why is None:
            assert all(math.isfinite(loss) for loss in two_steps(create(host, part)))
        else:
            with pytest.raises(UserError) as error:
                create(host, part)
            assert why in str(error.value)


def test_there_is_a_method_of_each_hook():
    hooks = set().union(*(hooks_of(registry.load(slug)) for slug in STACKABLE))
    assert hooks == set(base.HOOKS)


@pytest.mark.parametrize("slug", METHODS)
def test_a_method_with_a_loop_of_its_own_says_so(slug):
    cls = registry.load(slug)
    own = any(
        getattr(cls, name) is not getattr(ClassificationMethod, name)
        for name in ("training_loss", "training_step", "configure_optimizers")
    )
    assert cls.owns_loop == own


@pytest.mark.parametrize("slug", [slug for slug in STACKABLE if slug != "none"])
def test_on_top_of_none_a_method_does_what_it_does_alone(slug):
    """The same losses bit for bit over two steps, and the same weights after them."""
    alone, stacked = create(slug), create("none", slug)
    assert two_steps(alone) == two_steps(stacked)
    ours, theirs = alone.backbone.state_dict(), stacked.backbone.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_penalty_sees_the_reparameterised_weights():
    method = create("weight_compander", "orthogonal_conv")
    penalty = method.members[1].penalty()
    with torch.no_grad():  # the plain network with the weights that the layers use
        plain = method.plain_backbone()
    assert not any(map(parametrize.is_parametrized, plain.modules()))
    expected = registry.load("orthogonal_conv")(plain, 5).penalty()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-6)
    penalty.backward()
    assert method.backbone.network[0].parametrizations.weight.original.grad.abs().sum() > 0


def test_losses_add_up():
    """Mixing, objective and penalty of three methods: the penalty is added to the objective of the mixed batch."""
    three = create("mixup", "label_smoothing", "orthogonal_conv")
    two = create("mixup", "label_smoothing")
    penalty = create("orthogonal_conv").penalty()
    assert three.training_loss(batch()).item() == pytest.approx(
        (two.training_loss(batch()) + penalty).item(), rel=1e-6
    )


def test_without_hooks_a_step_computes_cross_entropy_and_nothing_else():
    method = create("none")
    assert (method._mix, method._penalties, method._after_step, method._reparameterised) == (
        None,
        [],
        [],
        False,
    )
    counted = []
    with torch.profiler.profile() as profile:
        loss = method.training_loss(batch())
    counted = {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")}
    plain = network().train()
    with torch.profiler.profile() as profile:
        expected = nn.functional.cross_entropy(plain(batch()["image"]), batch()["label"])
    own = {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")}
    assert loss.item() == expected.item()
    drop = (
        "aten::randn",
        "aten::normal_",
        "aten::arange",
        "aten::empty",
        "aten::remainder",
        "aten::item",
        "aten::resize_",
    )
    assert {k: v for k, v in counted.items() if not k.startswith(drop)} == {
        k: v for k, v in own.items() if not k.startswith(drop)
    }


# The value ------------------------------------------------------------------------------------------------------


def test_options_are_read_and_the_others_are_the_configs():
    stack = ["weight_compander", {"orthogonal_conv": {"weight": 0.25}}]
    assert read_stack(stack) == {"weight_compander": {}, "orthogonal_conv": {"weight": 0.25}}
    full = with_defaults(stack)
    config = OmegaConf.to_container(compose_config(["regularizer=orthogonal_conv"]).regularizer)
    assert {"name": "orthogonal_conv", **full["orthogonal_conv"]} == config | {"weight": 0.25}


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("stack=mixup", "must be a list"),
        ("stack=[mixupp]", "Did you mean mixup"),
        ("stack=[mixup,mixup]", "names mixup twice"),
        ("stack=[{mixup:{alhpa:1}}]", "Did you mean alpha"),
        ("stack=[{mixup:0.5}]", "with its options as"),
        ("stack=[none]", "on top of itself"),
        ("stack=[mixup,cutmix]", "both mix the batch"),
    ],
)
def test_a_mistake_in_stack_stops_before_data_is_read(train, capsys, stack, words):
    code, folder = train("regularizer=none", stack, *QUICK, "dataset.load._target_=nowhere.at_all")
    assert code == 2
    assert words in capsys.readouterr().err
    assert not (folder / "result.json").exists()


def test_the_stack_is_part_of_a_runs_identity():
    def name(*overrides):
        return hash_of(identity(resolve(compose_config(["regularizer=mixup", *overrides])), "data", {}))

    assert name() == name("stack=[]")
    hashes = {name(), name("stack=[weight_compander]"), name("stack=[{weight_compander:{slope:1.5}}]"),
              name("stack=[orthogonal_conv]")}  # fmt: skip
    assert len(hashes) == 4
    default = with_defaults(["weight_compander"])["weight_compander"]["slope"]
    assert name("stack=[weight_compander]") == name(f"stack=[{{weight_compander:{{slope:{default}}}}}]")


def test_without_a_stack_a_run_has_the_hash_that_it_had_before_there_was_one():
    config = resolve(compose_config(["regularizer=mixup"]))
    with_key = identity(config, "data", {})
    del config["stack"]
    assert json.dumps(with_key) == json.dumps(identity(config, "data", {}))
    assert "stack" not in with_key["versions"]


# train.py -------------------------------------------------------------------------------------------------------

STACK = "stack=[weight_compander,{orthogonal_conv:{weight:0.1}},max_norm]"
SMALL = ["backbone=small_cnn", "backbone.width=4", "dataset=digits", "logger=none", "progress=none"]


def test_a_stacked_run_resumes_bit_for_bit(train):
    run = ["regularizer=mixup", STACK, *SMALL, "trainer.limit_train_batches=3", "checkpoint.select=last"]
    _, whole = train(*run, "trainer.max_epochs=2", "scheduler=constant", run_dir="whole")
    _, first = train(*run, "trainer.max_epochs=1", "scheduler=constant", run_dir="first")
    code, _ = train(f"resume={first}", "trainer.max_epochs=2")
    assert code == 0
    ours, theirs = weights(first), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = read_result(whole)["config"]
    assert [*itertools.chain(*config["stack"])] == ["weight_compander", "orthogonal_conv", "max_norm"]
    assert config["stack"][1]["orthogonal_conv"]["weight"] == 0.1


def test_methods_of_another_family_are_refused():
    class Other(ClassificationMethod.__mro__[1]):
        slug, task = "other", "restoration"

    with pytest.raises(UserError, match="other does restoration"):
        check_stack(registry.load("none"), {"other": Other})
