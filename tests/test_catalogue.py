"""`regbench list`, `info` and `cite`: quick, without torch, complete, and easy to read at any width."""

import re
from pathlib import Path

import pytest

from regbench import catalogue, cli, registry
from regbench.errors import UserError
from regbench.paths import configs_dir
from regbench.registry import Entry, Paper
from support import ROOT

# The seconds are the processor's, so that a busy machine does not fail the test.
PROBE = """
import sys, time
from regbench.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit_:  # Hydra's --help
    code = exit_.code or 0
print(code, "torch" in sys.modules, time.process_time(), file=sys.stderr)
"""
CHECKOUT = {"PYTHONPATH": str(ROOT)}
NO_LIMIT = re.compile(r"https?://|regbench train|: /")  # lines that are copied whole: never wrapped


@pytest.fixture
def shown(capsys):
    """Runs a command in this process: shown("list", …) → (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def methods(monkeypatch):
    """Replaces the registry's entries by methods with these papers and no files."""

    def call(**papers: Paper | None) -> None:
        nowhere = Path("package/regularizers/family/made.py")
        entries = {s: Entry(s, "classification", p, "A claim.", "", "", nowhere) for s, p in papers.items()}
        monkeypatch.setattr(registry, "entries", lambda: entries)

    return call


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Lets the method `made` have this text as its config."""

    def call(text: str) -> None:
        path = tmp_path / "made.yaml"
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(catalogue, "config_path", lambda slug: path)

    return call


@pytest.mark.parametrize(
    "arguments",
    ["list", "list --task classification", "info mixup", "cite mixup", "train --help", "train --cfg job"],
)
def test_a_second_at_most_and_no_torch(command, arguments):
    done = command(*arguments.split(), program=("-c", PROBE), env=CHECKOUT)
    code, torch_imported, seconds = done.stderr.split()
    assert (code, torch_imported) == ("0", "False")
    assert float(seconds) < (2 if arguments.startswith("train") else 1)
    assert done.stdout


def test_list_has_a_row_for_each_method_with_its_defaults(shown):
    code, out, _ = shown("list")
    header, *rows = out.splitlines()
    assert code == 0
    assert header.split() == ["slug", "task", "paper", "year", "dataset", "backbone"]
    assert [row.split()[0] for row in rows] == list(registry.entries())
    mixup = next(row for row in rows if row.startswith("mixup "))
    assert re.split(r"\s{2,}", mixup.strip()) == [
        "mixup", "classification", "mixup: Beyond Empirical Risk Minimization", "2018", "mnist5k", "small_cnn"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("search", "slugs"),
    [
        ("BOX", {"cutmix", "resizemix", "saliencymix", "fmix"}),  # in claims
        ("szegedy", {"label_smoothing"}),  # an author
        ("Hard Mixed Samples", {"decoupled_mixup"}),  # a title
    ],
)
def test_search(shown, search, slugs):
    _, out, _ = shown("list", "--search", search)
    found = {row.split()[0] for row in out.splitlines()[1:]}
    assert slugs <= found
    assert "none" not in found


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list", "--task", "clasification"], "Did you mean classification"),
        (["list", "--search", "no such words"], "No method mentions 'no such words'"),
        (["info", "mixpu"], "Did you mean mixup"),
        (["cite", "decoupled_mixpu"], "Did you mean decoupled_mixup"),
        (["cite", "none"], "nothing to cite"),
    ],
)
def test_mistakes(shown, arguments, expected):
    code, out, err = shown(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("regbench: ")
    assert expected in err


def test_info_says_claim_hyperparameters_and_how_to_run(shown):
    _, out, _ = shown("info", "decoupled_mixup")
    entry = registry.find("decoupled_mixup")
    assert entry.claim in out
    assert entry.paper.title in out
    assert f"https://arxiv.org/abs/{entry.paper.arxiv}" in out
    eta = next(line for line in out.splitlines() if line.startswith("regularizer.eta "))
    assert re.split(r"\s{2,}", eta)[1] == "0.1"
    assert "weight of the decoupled terms" in eta
    assert "regbench train regularizer=decoupled_mixup" in out
    assert "mnist5k with small_cnn" in out
    assert "regbench train experiment=decoupled_mixup/cifar100_resnet18\n" in out
    for path in re.findall(r"^(?:method|config|table|page): (.*)$", out, re.MULTILINE):
        assert Path(path).is_file()


def test_every_method_has_info(shown):
    for slug in registry.entries():
        code, out, _ = shown("info", slug)
        assert code == 0
        assert f"regularizer={slug}" in out


@pytest.mark.parametrize("width", [40, 80, 99, 100, 160])
def test_a_terminal_of_any_width(shown, monkeypatch, width):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal's
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments in (["list"], ["info", "decoupled_mixup"]):
        _, out, _ = shown(*arguments)
        lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
        for line in lines:
            assert len(line) <= width or NO_LIMIT.search(line), line
        assert "…" not in "".join(lines)  # nothing cut off
    for word in ("policy", "manifold_mixup", "eta", "competes"):
        assert word in out


def test_text_in_square_brackets_is_not_taken_for_markup(shown, methods, config):
    methods(made=Paper(title="On [b]old :smile: titles", authors="A B", year=2020, venue="X"))
    config("size: [8, 16]  # sides [h, w] in pixels\n")
    assert "On [b]old :smile: titles" in shown("list")[1]
    out = shown("info", "made")[1]
    assert "regularizer.size  [8, 16]  sides [h, w] in pixels" in out


def test_a_terminal_without_unicode(command):
    environment = {**CHECKOUT, "PYTHONIOENCODING": "ascii"}
    done = command("info", "label_smoothing", program=("-c", PROBE), env=environment)
    assert done.stderr.startswith("0 ")
    assert "one-hot" in done.stdout


def test_hyperparameters_are_read_with_their_comments(config):
    config(
        "# what the file is\n"
        "defaults:\n  - override /dataset@_global_.dataset: digits\n\n"
        "name: made\n"
        "# its size;\n# pixels\n"
        "size: 3\n"
        "rate: 1e-4  # per step; see (#3)\n"
        "             # and the appendix\n"
        "# not about what follows\n\n"
        "nothing: null\n"
        "nested:  # two keys\n  a: 1  # not this\n  b: [x, true]\n"
    )
    found = [(row.name, row.default, row.meaning) for row in catalogue.hyperparameters("made")]
    assert found == [
        ("size", "3", "its size; pixels"),
        ("rate", "1e-4", "per step; see (#3) and the appendix"),
        ("nothing", "null", ""),
        ("nested", "{a: 1, b: [x, true]}", "two keys"),
    ]
    assert catalogue.defaults("made")["dataset"] == "digits"
    assert catalogue.defaults("made")["backbone"] == "small_cnn"  # train.yaml's


def test_a_broken_config_is_named(config):
    config("size: [3\n")
    with pytest.raises(UserError, match=r"made\.yaml is no YAML"):
        catalogue.hyperparameters("made")


def test_datasets_with_fields():
    images = catalogue.datasets_with(("image", "label"))
    names = {path.stem for path in (configs_dir() / "dataset").glob("[!_]*.yaml")}
    assert {"digits", "cifar100"} <= set(images) <= names
    assert catalogue.datasets_with(("x", "edge_index")) == []


def test_bibtex_escapes_what_latex_would_read(methods):
    methods(
        made=Paper(
            title="50% of {A}_b & C#: $x^2$",
            authors="Zoë Müller, Ann O'Neil",
            year=2019,
            venue="Journal of A & B",
        )
    )
    assert catalogue.bibtex("made").splitlines() == [
        "@article{muller-oneil-2019-50,",
        r"  title = {{50\% of \textbraceleft{}A\textbraceright{}\_b \& C\#: \$x\textasciicircum{}2\$}},",
        "  author = {Zoë Müller and Ann O'Neil},",
        "  year = {2019},",
        r"  journal = {Journal of A \& B}",
        "}",
    ]


@pytest.mark.parametrize(
    ("venue", "kind", "field"),
    [
        ("NeurIPS", "inproceedings", "booktitle = {NeurIPS}"),
        ("TMLR", "article", "journal = {TMLR}"),
        ("IEEE Transactions on Image Processing", "article", "journal = {IEEE"),
        ("Conference on Computer Science", "inproceedings", "booktitle = {"),
        ("arXiv", "misc", "eprint = {1234.56789}"),
    ],
)
def test_bibtex_kind_fits_the_venue(methods, venue, kind, field):
    methods(made=Paper(title="The Title", authors="Li Wu", year=2020, venue=venue, arxiv="1234.56789"))
    entry = catalogue.bibtex("made")
    assert entry.startswith(f"@{kind}{{wu-2020-title,")
    assert field in entry


def test_every_paper_is_cited_with_a_key_of_its_own_and_balanced_braces(shown):
    keys = {}
    for slug, entry in registry.entries().items():
        if entry.paper is None:
            continue
        code, out, _ = shown("cite", slug)
        assert code == 0
        assert out.count("{") == out.count("}")
        assert re.search(r"(?<!\\)[&%$#_]", re.sub(r"(?m)^  (url|eprint) .*$", "", out)) is None
        keys[re.match(r"@\w+\{([a-z0-9-]+),\n", out)[1]] = entry.paper
    assert len(keys) == len({entry.paper for entry in registry.entries().values()} - {None})


def test_help_names_every_command_and_shows_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    for word in ("train", "list", "info", "cite", "new", "regbench train regularizer="):
        assert word in out


def test_train_help_shows_examples_and_choices(command):
    done = command("train", "--help", program=("-c", PROBE), env=CHECKOUT)
    assert done.returncode == 0
    for text in ("regbench train resume=", "regularizer: adamixup", "max_epochs: 10"):
        assert text in done.stdout
