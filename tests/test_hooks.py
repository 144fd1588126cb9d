"""What a commit passes: the hooks over the whole tree without a network, and what they are there to find."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_repo import check, copy_repo, run

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    "What somebody who clones the repository would get, as a repository of its own."
    folder = copy_repo(tmp_path_factory.mktemp("checkout"))
    check(run("git", "init", "--quiet", cwd=folder))
    check(run("git", "add", "--all", cwd=folder))
    return folder


def hooks(checkout: Path, *words: str) -> subprocess.CompletedProcess:
    "Run pre-commit with the environment of these tests, and with no way out to a network."
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:1")
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    ours = {"PATH": path, "PRE_COMMIT_HOME": str(checkout.parent / "home"), **nowhere}
    return run(BIN / "pre-commit", "run", *words, cwd=checkout, env={**os.environ, **ours}, timeout=240)


def test_the_tree_passes_every_hook(checkout):
    said = check(hooks(checkout, "--all-files"))
    lines = [line for line in said.splitlines() if line]
    assert len(lines) >= 7 and all(line.endswith("Passed") for line in lines), said


@pytest.mark.parametrize(
    ("name", "content", "hook", "words"),
    [
        ("data.bin", b"\0" * 2_100_000, "large-files", "data.bin (2051 KB) exceeds 2000 KB"),
        ("key.py", b'"image/png": "' + b"ghp_" + b"a1B2" * 9 + b'"\n', "secrets", "GitHub Token"),  # no base64
        ("tools/odd.py", b"x=1\n", "ruff-format", "1 file would be reformatted"),
        ("tests/odd.py", b"import os\n", "ruff", "unused-import"),
        ("open.md", b"<<<<<<< one\n=======\n>>>>>>> two\n", "merge-conflicts", "Merge conflict string"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_what_does_not_belong_is_found(checkout, name, content, hook, words):
    "Each hook is asked alone, about one file that only it is there for."
    path = checkout / name
    path.write_bytes(content)
    if hook == "merge-conflicts":
        (checkout / ".git" / "MERGE_MSG").write_text("half", encoding="utf-8")
        (checkout / ".git" / "MERGE_HEAD").write_text("", encoding="utf-8")
    try:
        check(run("git", "add", name, cwd=checkout))
        done = hooks(checkout, hook, "--files", name)
        assert done.returncode == 1 and words in done.stdout, done.stdout + done.stderr
    finally:
        check(run("git", "rm", "--quiet", "--force", name, cwd=checkout))
        for half in ("MERGE_MSG", "MERGE_HEAD"):
            (checkout / ".git" / half).unlink(missing_ok=True)


def test_the_hooks_need_nothing_from_elsewhere(checkout):
    import yaml

    repos = yaml.safe_load((checkout / ".pre-commit-config.yaml").read_bytes())["repos"]
    assert [one["repo"] for one in repos] == ["local"]
    assert {hook["language"] for one in repos for hook in one["hooks"]} == {"system"}
