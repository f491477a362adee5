"""The site's pages as files; test_browser.py looks at them in a browser."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

from regbench.tables.report import build_site

TABLES = [
    {
        "slug": "decoupled_mixup",
        "table": "cifar100",
        "title": "CIFAR-100",
        "scales": ["smoke", "small", "paper"],
    }
]


class Page(HTMLParser):
    """Collects what a page links to, its ids, and the texts of its tables' rows."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.ids, self.rows = [], [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "a":
            self.links.append(attributes["href"])
        elif tag in ("link", "script", "img", "iframe"):
            self.loads += [attributes[name] for name in ("src", "href") if name in attributes]
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows.append([])

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def paper(slug, built=False):
    title = f"The paper of {slug}"
    return {"slug": slug, "title": title, "year": 2023, "task": "noisy_labels", "arxiv": "", "built": built}


def site(folder, *results):
    papers = [paper("decoupled_mixup", built=True), paper("elr"), paper("other", built=True)]
    return build_site(list(results), papers, TABLES, folder)


def test_the_index_counts_tables_and_verdicts(results, tmp_path):
    site(tmp_path, results)
    rows = {row[0]: row[1:] for row in Page(tmp_path / "index.html").rows if row}

    # year, task, method, tables measured, claims that hold, fail, are undecided
    found = rows["The paper of decoupled_mixupdecoupled_mixup"]
    assert found == ["2023", "noisy labels", "tables", "1 of 1", "1", "1", "1"]
    assert rows["The paper of elrelr"] == ["2023", "noisy labels", "not built yet", "", "", "", ""]
    assert rows["The paper of otherother"][2] == "method"
    assert not (tmp_path / "elr").exists()


def test_every_link_leads_somewhere_and_nothing_is_loaded(results, tmp_path):
    written = site(tmp_path, results, results | {"scale": "medium"})
    pages = [path for path in written if path.suffix == ".html"]

    assert len(pages) == 4
    for path in pages:
        page = Page(path)
        assert page.loads == ["data:,"]
        assert not re.search(r"@import|url\((?!#)", path.read_text())
        assert len(page.ids) == len(set(page.ids))
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "https":
                continue
            target = path.parent / parts.path if parts.path else path
            assert target.is_file(), (path, link)
            assert not parts.fragment or parts.fragment in Page(target).ids


def test_a_papers_page_shows_claims_commands_and_runs(results, tmp_path):
    site(tmp_path, results)
    text = (tmp_path / "decoupled_mixup" / "index.html").read_text()

    assert text.count('<span class="verdict fails">') == 2  # the claim and one of its parts
    assert "scale small, mnist5k" in text
    assert results["command"] in text
    assert "python train.py regularizer=decoupled_mixup seed=4" in text
    assert (
        "python scripts/reproduce.py table=decoupled_mixup/cifar100 scale=paper" in text
    )  # not measured yet
    assert "scale=smoke" not in text  # a scale for tests


def test_text_of_results_is_not_read_as_html(results, tmp_path):
    results["title"] = results["rows"][0]["label"] = results["cells"][4]["why"] = "<script>alert(1)</script>"
    site(tmp_path, results)

    for path in tmp_path.rglob("*.html"):
        assert "<script>alert" not in path.read_text()
