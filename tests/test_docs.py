"""The documentation is a site that builds without a warning, lacks nothing, and loads nothing from elsewhere."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import esformer
from configs.explain import settings
from esformer import proxies

pytest.importorskip("material", reason='the tools of the site are not installed: pip install -e ".[docs]"')
pytestmark = pytest.mark.nightly
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def page(site, name):
    return (site / name / "index.html").read_text()


def pages_of(nav):
    for entry in nav:
        for place in entry.values():
            yield from [place] if isinstance(place, str) else pages_of(place)


class Loaded(HTMLParser):
    """What a browser fetches with a page; links wait for a click."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "srcset", "poster")]
        if tag == "link":
            self.addresses += [value for name, value in attributes if name == "href"]


def test_every_page_is_there(site):
    named = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} < set(named)
    for name in named:
        assert "<h1" in page(site, "" if name == "index.md" else name.removesuffix(".md")), name


def test_nothing_is_loaded_from_the_network(site):
    found = [address for file in site.rglob("*.html") for address in Loaded(file.read_text()).addresses]
    found += [
        address for file in site.rglob("*.css") for address in re.findall(r"url\(['\"]?([^)'\"]+)", file.read_text())
    ]
    assert len(found) > 50
    assert [address for address in found if re.match(r"(\w+:)?//", address)] == []


def test_every_setting_is_on_its_page(site):
    text = page(site, "settings")
    assert sorted(re.findall(r"<h3 [^>]*>([^<]+)<", text)) == sorted(setting.key for setting in settings())
    titles = {entry["title"] for entry in json.loads((site / "search/search_index.json").read_text())["docs"]}
    assert titles >= {setting.key for setting in settings()}


def test_every_public_name_is_explained_with_its_arguments(site):
    text = page(site, "reference")
    wanted = {f"esformer.{name}" for name in esformer.__all__} - {"esformer.proxies", "esformer.search"}
    wanted |= {"esformer.proxies.names", "esformer.search.stage.search"}
    classes = {type(proxies.get(name)) for name in proxies.names()}
    classes = {f"{one.__module__}.{one.__qualname__}" for one in classes if one.__module__.startswith("esformer.")}
    for names, html in ((wanted, text), (classes, page(site, "proxies"))):
        assert names - set(re.findall(r'id="([\w.]+)"', html)) == set()
    assert 'class="example"' not in text  # so are sections shown that the tool does not know, such as `Example:`
