"""docs/papers/papers.yaml: the 53 papers, in agreement with the methods that are registered and with the tables."""

import re

import pytest
import yaml

from regbench import registry
from regbench.tables.published import STACKING
from regbench.tables.spec import table_files
from support import ROOT

PAPERS = {
    paper["slug"]: paper
    for paper in yaml.safe_load((ROOT / "docs/papers/papers.yaml").read_text(encoding="utf-8"))
}
BUILT = [slug for slug in registry.entries() if slug in PAPERS]


def test_there_are_53_papers_each_with_what_the_index_shows():
    listed = yaml.safe_load((ROOT / "docs/papers/papers.yaml").read_text(encoding="utf-8"))
    assert len(listed) == len(PAPERS) == 53
    assert len({paper["title"] for paper in listed}) == 53
    for paper in listed:
        assert set(paper) - {"venue", "arxiv"} == {"slug", "title", "year", "task", "claim"}
        assert re.fullmatch(r"[a-z][a-z0-9_]*", paper["slug"])
        assert 2019 <= paper["year"] <= 2025
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.get("arxiv", "0000.00000"))
        assert all(isinstance(paper[key], str) and paper[key].strip() for key in ("title", "task", "claim"))
        assert paper["claim"].endswith(".")


@pytest.mark.parametrize("slug", BUILT)
def test_a_built_method_names_the_same_paper(slug):
    entry, listed = registry.entries()[slug], PAPERS[slug]
    found = {
        "title": entry.paper.title,
        "year": entry.paper.year,
        "venue": entry.paper.venue,
        "arxiv": entry.paper.arxiv,
        "task": entry.task,
    }
    assert found == {key: listed.get(key, "") for key in found}


def test_tables_are_of_listed_papers():
    assert "decoupled_mixup" in BUILT
    of_tables = {key.partition("/")[0] for key in table_files()}
    assert of_tables - set(PAPERS) <= {*registry.entries(), STACKING}  # the others are baselines' own
