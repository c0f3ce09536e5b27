"""What the site shows that is made when it is built: pages from the root of the repository, and lists from the code.

A page of docs/ says with a comment where a list comes, such as `<!-- made from: settings -->`, and where code comes,
such as `<!-- code of: esformer.guide.Guide.worth -->`.
"""

import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from inspect import getdoc, getsource
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Any

from mkdocs.structure.files import File, Files

from configs.compose import default_values
from configs.explain import FOLDER, SECTIONS_WITH_FILES, choices, settings
from configs.schema import Config
from esformer import proxies

ROOT = Path(__file__).parent.parent
DEFAULTS = default_values()
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files of the root, and the pages that they are on the site."""


def on_files(files: Files, config: Any) -> Files:
    """Add the files of the root, and the example that is a page of its own."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=as_page((ROOT / name).read_text())))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    files.append(File.generated(config, "segmentation.md", content=example(ROOT / "docs" / "segmentation.py")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the lists and the code in where a page wants them."""
    markdown = re.sub(r"<!-- made from: (\w+) -->", lambda place: "\n".join(LISTS[place[1]]()), markdown)
    return re.sub(r"<!-- code of: ([\w.]+) -->", lambda place: code_of(place[1]), markdown)


def as_page(text: str) -> str:
    """A file of the root, its links those of a page of docs/."""
    text = text.replace("](docs/", "](").replace("[docs/", "[")
    for name, page in PAGES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text


def example(path: Path) -> str:
    """A program as a page: its explanation, then itself."""
    explanation, code = path.read_text().removeprefix('"""').split('"""\n', 1)
    link = f"The program, [{path.name}]({path.name}):"
    return f"# Dense prediction\n\n{explanation.strip()}\n\n{link}\n\n```python{code}```\n"


def code_of(name: str) -> str:
    """The source of a function or class as it is now, under its name."""
    return f"`{name}`\n\n```python\n{dedent(getsource(pkgutil.resolve_name(name)))}```\n"


def every_setting() -> Iterator[str]:
    """A heading for each section and setting, and the files that are named choices."""
    known = {setting.key: setting for setting in settings()}
    sections = {f.name: f.default_factory for f in fields(Config) if is_dataclass(f.default_factory)}
    yield "## size and the run as a whole\n"
    yield from _settings(setting for key, setting in known.items() if "." not in key)
    yield from _files("size", "--size ")
    yield f"### `--quick`\n\n```yaml\n{(FOLDER / 'quick.yaml').read_text()}```\n"
    for section, kind in sections.items():
        yield f"## {section}\n\n{getdoc(kind)}\n"
        yield from _settings(setting for key, setting in known.items() if key.startswith(f"{section}."))
        if section in SECTIONS_WITH_FILES:
            yield from _files(section, f"{section}=")


def _settings(group: Any) -> Iterator[str]:
    for setting in group:
        value = DEFAULTS[setting.key]
        default = "null" if value is None else value
        yield f"### {setting.key}\n\n`{setting.type}`, by default `{default}`\n\n{setting.explanation}\n"


def _files(section: str, typed: str) -> Iterator[str]:
    for name in choices(section):
        yield f"### `{typed}{name}`\n\n```yaml\n{(FOLDER / section / f'{name}.yaml').read_text()}```\n"


def every_proxy() -> Iterator[str]:
    """The classes of the proxies that come with the library, each with what it says of itself."""
    known = [proxy for proxy in map(proxies.get, proxies.names()) if not proxies.registered([proxy.name])]
    for kind, group in groupby(sorted(known, key=_path), key=_path):
        one, *others = group
        names = ", ".join(f"`{proxy.name}`" for proxy in (one, *others))
        draws = f"The mean of {one.draws} draws" if one.draws > 1 else "One draw"
        better = "" if one.higher_is_better else ", lower is better"
        yield f"::: {kind}\n    options: {{members: false}}\n"
        yield f"- Name: {names}\n- Needs: {one.needs}\n- {draws}{better}\n- Source: {one.source}\n"


def _path(proxy: proxies.Proxy) -> str:
    return f"{type(proxy).__module__}.{type(proxy).__qualname__}"


def every_callback() -> Iterator[str]:
    """The modules of callbacks/."""
    for path in sorted((ROOT / "callbacks").glob("[a-z]*.py")):
        yield f"::: callbacks.{path.stem}\n"


LISTS: dict[str, Callable[[], Iterator[str]]] = {
    "settings": every_setting,
    "proxies": every_proxy,
    "callbacks": every_callback,
}
