"""Published beside measured in Markdown, and the blocks of a paper's page."""

import pytest

from regbench.errors import UserError
from regbench.tables.report import markdown_tables, update_page
from regbench.tables.report.latex import latex_tables


def row(text, label):
    """The texts of the line of a table that begins with `label`."""
    [line] = [line for line in text.splitlines() if line.startswith(f"| {label} |")]
    return [part.strip() for part in line.strip("|").split(" | ")]


def test_cells_show_published_beside_measured(results):
    text = markdown_tables(results)

    assert row(text, "policy / loss")[1:3] == ["MCE, published", "MCE, measured"]
    # 93.0, 93.4, 93.2, 93.1, 93.3: mean 93.2, sd sqrt(0.1 / 4) = 0.158; 79.5 is written like the column's 78.04
    assert row(text, "Mixup")[1:3] == ["79.50<sup>a</sup>", "93.20 ± 0.16 (5 seeds)"]
    assert row(text, "Mixup")[3] == "≈ 80<sup>b</sup>"
    assert "a: openmixup, docs/en/mixup_benchmarks/Mixup_cifar.md; b: figure 3." in text
    assert "test/accuracy in %, higher is better. Measured: mean ± standard deviation (seeds)." in text


def test_levels_of_another_scale_are_not_to_be_compared(results):
    assert "compare differences, not levels" in markdown_tables(results)
    assert "compare differences, not levels" not in markdown_tables(results | {"scale": "paper"})


def test_a_deterministic_table_is_measured(results):
    results["cells"] = [cell for cell in results["cells"] if cell["deterministic"]]

    assert "All that is measured is deterministic." in markdown_tables(results)


def test_a_cell_without_a_number_says_why(results):
    text = markdown_tables(results)

    assert row(text, "none")[3:] == ["–", "not runnable<sup>1</sup>"]
    assert row(text, "CutMix & co_1")[2:] == ["failed<sup>2</sup>", "–", "not at this scale"]
    assert "\n1. Decoupled mixup has nothing to mix here.\n2. Ran out of memory: runs/ab12/run.log.\n" in text


def test_deterministic_partial_and_stale_cells_say_so(results):
    fmix = row(markdown_tables(results), "FMix, η=0.1")

    assert fmix[2] == "92.2 (deterministic)"
    assert fmix[4] == "91.2 ± 0.3 (2 seeds, partial)<sup>3</sup>"
    assert "3. Stale: other code than the present made some of its runs." in markdown_tables(results)


def test_one_number_of_seeds_is_said_once(results):
    results["cells"] = [cell for cell in results["cells"] if cell["row"] in ("none", "mixup")]
    text = markdown_tables(results)

    assert row(text, "Mixup")[2] == "93.20 ± 0.16"
    assert "Measured: mean ± standard deviation over 5 seeds." in text


def test_a_table_that_is_not_published_has_no_empty_columns(results):
    for cell in results["cells"]:
        cell["published"] = None
    text = markdown_tables(results)

    assert row(text, "policy / loss")[1:] == ["MCE, measured", "DM(CE), measured"]
    assert "No published values are known." in text


def test_verdicts_have_effect_interval_scale_and_data(results):
    text = markdown_tables(results)

    fails = row(text, r"Decoupled mixup is above mixup cross entropy with every policy (in the mean)")
    assert fails[1:] == ["**fails**", "−0.62 points", "−1.10 to −0.14 (95 %)", "5", "scale small, mnist5k"]
    assert row(text, "↳ Mixup")[1:4] == ["holds", "+0.40 points", "+0.15 to +0.65 (95 %)"]
    assert row(text, "Mixup is above no mixing")[1] == "**undecided**"
    assert row(text, "Mixup is above no mixing")[5] == "scale small, mnist5k; More seeds are needed."


def test_claims_of_which_nothing_is_known_take_a_line_together(results):
    results["claims"].append(results["claims"][-1] | {"says": "CutMix is quick"})
    assert (
        "\n\nNot judged here: CutMix costs at most 1.5 times as much; CutMix is quick.\n"
        in markdown_tables(results)
    )
    left = r"\par Not judged here: CutMix costs at most 1.5 times as much; CutMix is quick."
    assert left in latex_tables(results)

    results["claims"] = results["claims"][:1]
    assert "Not judged here" not in markdown_tables(results) + latex_tables(results)


def test_a_ratio_has_no_sign(results):
    results["claims"] = [
        results["claims"][-1] | {"effect": 1.31, "interval": [1.21, 1.41], "verdict": "holds"}
    ]

    assert "| **holds** | 1.31 times | 1.21 to 1.41 (95 %) |" in markdown_tables(results)


def test_text_cannot_break_the_table(results):
    results["rows"][0]["label"] = "a|b *c* <d>"

    assert r"| a\|b \*c\* \<d> |" in markdown_tables(results)


def test_update_page_replaces_what_is_between_the_markers(results):
    page = "# Page\n\n<!-- results:cifar100/small -->\nstale text\n<!-- /results -->\n\nafter\n"
    new = update_page(page, {"cifar100/small": results})

    assert new.startswith("# Page\n\n<!-- results:cifar100/small -->\n\n5,000 MNIST images")
    assert new.endswith("\n<!-- /results -->\n\nafter\n")
    assert "stale text" not in new
    assert update_page(new, {"cifar100/small": results}) == new


def test_update_page_fills_each_block_with_its_own_results(results):
    block = "<!-- results:cifar100/{} -->\n<!-- /results -->\n"
    other = results | {"about": "Another scale."}
    new = update_page(
        block.format("small") + "between\n" + block.format("medium"),
        {"cifar100/small": results, "cifar100/medium": other},
    )

    first, second = new.split("between\n")
    assert "5,000 MNIST images" in first
    assert "Another scale." in second
    assert "Another scale." not in first


def test_update_page_leaves_what_is_not_measured_and_refuses_an_open_block(results):
    text = "<!-- results:cifar10/small -->\nas it was\n<!-- /results -->"
    assert update_page(text, {"cifar100/small": results}) == text
    unclosed = "<!-- results:cifar100/small -->\n<!-- results:cifar100/small -->\n<!-- /results -->"
    with pytest.raises(UserError, match="is not closed"):
        update_page(unclosed, {"cifar100/small": results})
