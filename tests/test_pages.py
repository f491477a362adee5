"""The generated parts of the papers' pages are those of the table files and results of today."""

import re

import pytest

from regbench.tables import published
from regbench.tables.published import docs_dir, load_results, make_site, published_markdown, update_pages
from regbench.tables.spec import load_table

PAGES = sorted(path.stem for path in (docs_dir() / "papers").glob("*.md"))


@pytest.mark.parametrize("slug", PAGES)
def test_a_page_is_up_to_date(slug):
    assert update_pages(slug) == [], f"docs/papers/{slug}.md was not; it is now: commit it"


@pytest.mark.parametrize("slug", PAGES)
def test_a_page_names_tables_and_scales_that_there_are(slug):
    text = (docs_dir() / "papers" / f"{slug}.md").read_text(encoding="utf-8")
    for table, scale in re.findall(r"<!-- results:(\w+)/(\w+) -->", text):
        assert scale in load_table(f"{slug}/{table}").scales
    for table in re.findall(r"<!-- published:(\w+) -->", text):
        assert load_table(f"{slug}/{table}").published
    assert len(re.findall("<!-- published:", text)) == len(re.findall("<!-- /published -->", text))


def test_the_site_holds_every_committed_result(tmp_path):
    make_site(tmp_path)
    results = load_results([docs_dir() / "results"])
    assert results
    for result in results:
        assert (tmp_path / result["slug"] / result["table"] / result["scale"] / "index.html").is_file()


def test_published_values_by_hand():
    text = published_markdown(load_table("decoupled_mixup/cifar100"))
    lines = text.splitlines()
    assert (
        lines[0]
        == "| mixing policy | MCE, 200 epochs | MCE, 400 epochs | MCE, 800 epochs | MCE, 1200 epochs |"
    )
    assert "| FMix | 78.91 | 79.91 | 79.69 | 79.50 |" in lines  # 79.5 in the file
    assert not any("DM" in line for line in lines)  # no value is known
    assert published._padded("81", 1) == "81.0"
