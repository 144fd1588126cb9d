"""The website from the tree of notebooks: `tools/website.py sidebar|app|llms|check`.

`sidebar` writes `nbs/sidebar.yml`, a section for each folder of notebooks. `app` writes `_docs/app`, the page for the
phone without a service. `llms` writes `_docs/llms.txt`. `check` exits 1 on a broken link or anchor, a page that the
sidebar does not name, a first cell that nbdev would cut, a public name without a docstring, and a name of a module's
`__all__` that neither its page nor the reference shows.
"""

import ast
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[1]
NBS, SITE, PACKAGE = ROOT / "nbs", ROOT / "_docs", ROOT / "trashsorting"
APP = "app"  # The page for the phone, which no notebook makes


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def address() -> str:
    "Where the website will stand, with a slash at its end."
    return settings()["doc_host"] % settings() + settings()["doc_baseurl"] % settings() + "/"


def packages() -> dict[str, str]:
    "The packages in the order of their layers, each with the first line of its docstring."
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = tomllib.loads(text)["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name.strip() for layer in reversed(layers) for name in layer.split("|")]
    sources = {name: (PACKAGE / name / "__init__.py").read_text(encoding="utf-8") for name in names}
    return {name: (ast.get_docstring(ast.parse(source)) or name).split("\n")[0] for name, source in sources.items()}


def notebooks(folder: str) -> list[str]:
    "The notebooks of a folder, in the order of their numbers; relative to `nbs`."
    return [path.relative_to(NBS).as_posix() for path in sorted((NBS / folder).glob("*.ipynb"))]


def sections() -> Iterator[tuple[str, list[str]]]:
    "The sidebar from the tree: each section with its sources; a page outside any is a section without a name."
    for page in ("index.ipynb", "model_card.ipynb"):
        yield "", [page]
    for folder in ("tutorials", "explanations"):
        yield folder.capitalize(), order_by_first_link(notebooks(folder))
    for name in packages():
        yield name, notebooks(name) + (["train.ipynb"] if name == "training" else [])
    for page in ("reference.ipynb", "changelog.md"):
        yield "", [page]


def order_by_first_link(sources: list[str]) -> list[str]:
    "Guides in the order in which the home page first links to them."
    home = (NBS / "index.ipynb").read_text(encoding="utf-8")
    return sorted(sources, key=lambda source: (home.find(source) < 0, home.find(source), source))


def sidebar() -> str:
    "The text of `nbs/sidebar.yml`."
    contents: list = []
    for section, sources in sections():
        contents += [{"section": section, "contents": sources}] if section else sources
    head = "# Written by `make export` from the tree of notebooks (tools/website.py sidebar).\n"
    return head + yaml.safe_dump({"website": {"sidebar": {"contents": contents}}}, sort_keys=False)


def page_name(source: str) -> str:
    "The page that nbdev makes of a notebook: in the same folder, without the number."
    path = Path(source)
    return path.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.stem) + ".html").as_posix()


def title(source: str) -> tuple[str, str]:
    "A page's title, and the sentence below it."
    text = (NBS / source).read_text(encoding="utf-8")
    if source.endswith(".ipynb"):
        text = "".join(json.loads(text)["cells"][0]["source"])
    head = re.search(r"^# (.+)$", text, re.MULTILINE)
    quote = re.search(r"^> (.+)$", text, re.MULTILINE)
    return (head[1] if head else source, quote[1] if quote else "")


def dropped_openings() -> list[str]:
    "Notebooks whose first cell holds more than title, one quoted line and options: nbdev leaves the rest out."
    found = []
    for path in sorted(NBS.rglob("*.ipynb")):
        lines = "".join(json.loads(path.read_bytes())["cells"][0]["source"]).splitlines()
        more = [line for line in lines if line and not re.match(r"# |> |- [\w-]+: ", line)]
        if more or sum(line.startswith("> ") for line in lines) > 1:
            name = path.relative_to(NBS)
            found.append(f"nbs/{name}: the first cell holds more than a title and one line; the rest is left out")
    return found


# What a module says of itself


def definitions(module: Path) -> dict[str, ast.AST]:
    "The functions and classes at the top of a module, by name."
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name: node for node in ast.parse(module.read_text(encoding="utf-8")).body if isinstance(node, kinds)}


def public_names(module: Path) -> list[str]:
    "What `__all__` holds, in its order."
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def modules() -> dict[str, Path]:
    "Each module by the notebook that it is written from, relative to `nbs`."
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if source := re.search(r"# AUTOGENERATED! DO NOT EDIT! File to edit: \S*?nbs/(\S+\.ipynb)", text):
            found[source[1]] = path
    return found


def dotted(path: Path) -> str:
    "A module's name within the package: `core.image`."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def missing_docstrings() -> list[str]:
    "Public functions, classes, and methods of public classes that say nothing; what a base class explains is exempt."
    found = []
    for path in modules().values():
        defined = definitions(path)
        for name in public_names(path):
            node = defined.get(name)
            if node is None:
                continue
            own = node.body if isinstance(node, ast.ClassDef) and not node.bases else []
            inside = [one for one in own if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            methods = [one for one in inside if one.name[0] != "_"]
            for one, said in [(node, name), *((method, f"{name}.{method.name}") for method in methods)]:
                if not ast.get_docstring(one):
                    found.append(f"{path.relative_to(ROOT)}:{one.lineno}: {said} has no docstring")
    return found


# The rendered site


class Page(HTMLParser):
    "The links of a page, the places in it that links may lead to, and its words."

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def pages() -> dict[str, Page]:
    return {path.relative_to(SITE).as_posix(): Page(path) for path in sorted(SITE.rglob("*.html"))}


def broken_links(site: dict[str, Page]) -> list[str]:
    "Links within the site, relative or by its address, to a file or a place that is not there."
    found, base = [], address()
    for name, page in site.items():
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link.removeprefix(base) if link.startswith(base) else link)
            if parts.scheme or parts.netloc:
                continue
            within = "" if link.startswith(base) else Path(name).parent.as_posix()
            target = (SITE / within / unquote(parts.path)).resolve() if parts.path else (SITE / name).resolve()
            target = target / "index.html" if target.is_dir() else target
            known = target.relative_to(SITE.resolve()).as_posix() if target.is_relative_to(SITE.resolve()) else ""
            place = unquote(parts.fragment)
            if not target.is_file():
                found.append(f"{name}: {link} leads nowhere")
            elif place and known in site and place not in site[known].places:
                found.append(f"{name}: {link}: there is no such place in {known}")
    return found


def orphans(site: dict[str, Page]) -> list[str]:
    "Pages that the sidebar does not name."
    named = {page_name(source) for _, sources in sections() for source in sources}
    named |= {"404.html", f"{APP}/index.html"}
    return [f"{name}: the sidebar does not name it" for name in site if name not in named]


def is_command(node: ast.AST) -> bool:
    "Whether click makes a command of a function: it has no signature to show, and explains itself by `--help`."
    return any(re.search(r"\.(command|group)\b", ast.unparse(one)) for one in getattr(node, "decorator_list", []))


def unshown(site: dict[str, Page]) -> list[str]:
    "Public names that the site does not show: a function or class on its module's page, anything in the reference."
    found = []
    reference = " ".join(site["reference.html"].words) if "reference.html" in site else ""
    listed = set(re.findall(r"\w+", reference))
    for source, path in modules().items():
        places = {one.lower() for one in site[page_name(source)].places} if page_name(source) in site else set()
        described = {name for name, node in definitions(path).items() if not is_command(node)}
        for name in public_names(path):
            if name in described and name.lower() not in places:
                found.append(f"{page_name(source)}: {name} is public and not described there")
            if name not in listed:
                found.append(f"reference.html: {dotted(path)}.{name} is public and not listed")
    return found


def check() -> int:
    if not SITE.is_dir():
        print("website: there is no _docs: run this through `make docs`", file=sys.stderr)
        return 2
    site = pages()
    faults = broken_links(site) + orphans(site) + dropped_openings() + missing_docstrings() + unshown(site)
    print(*(f"website: {fault}" for fault in faults), sep="\n", end="\n" if faults else "", file=sys.stderr)
    names = sum(len(public_names(path)) for path in modules().values())
    links = sum(len(page.links) for page in site.values())
    print(f"website: {len(site)} pages, {links} links, {names} public names; {len(faults)} fault(s)")
    return 1 if faults else 0


# For machines that read


def llms() -> str:
    "The site in one file: its pages in the sidebar's order with their sentence, each module with its public names."
    lines = [f"# {settings()['title']}", "", f"> {settings()['description']}.", ""]
    sources = modules()
    for section, contents in sections():
        lines += [f"## {section}", ""] if section else []
        for source in contents:
            head, sentence = title(source)
            lines.append(f"- [{head}]({address()}{page_name(source)})" + (f": {sentence}" if sentence else ""))
            path = sources.get(source)
            defined = definitions(path) if path else {}
            for name in public_names(path) if path else []:
                said = (ast.get_docstring(defined[name]) or "").split("\n")[0] if name in defined else "constant"
                lines.append(f"  - `{dotted(path)}.{name}`: {said}")
        lines.append("")
    return "\n".join(lines)


# The page for the phone


def app() -> int:
    "Write the page that classifies in the browser alone, at /app of the website."
    from trashsorting.serving.page import write_page

    shutil.rmtree(SITE / APP, ignore_errors=True)
    try:
        write_page(SITE / APP)
    except FileNotFoundError as error:
        print(f"website: {error}", file=sys.stderr)
        return 1
    return 0


def main(words: list[str]) -> int:
    if words == ["sidebar"]:
        (NBS / "sidebar.yml").write_text(sidebar(), encoding="utf-8")
        return 0
    if words == ["app"]:
        return app()
    if words == ["llms"]:
        (SITE / "llms.txt").write_text(llms(), encoding="utf-8")
        return 0
    if words == ["check"]:
        return check()
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
