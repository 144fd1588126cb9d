"""Fails when `nbdev_export` or `nbdev_clean` changes anything: then what is in the tree is not what the notebooks say.

Contents and `git status` are compared before and after, so work in hand, committed or not, is no failure in itself.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("nbdev_export", "nbdev_clean")


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def content(path: Path) -> str:
    "What would be committed for `path`: a link is its target; empty when the file is gone."
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def tree() -> dict[str, str]:
    "Every tracked or untracked, but not ignored, file with its content, and git's own view of it."
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    found = {name: content(ROOT / name) for name in names if name}
    lines = git("status", "--porcelain", "-z", "--untracked-files=all").split("\0")
    return found | {f"git status of {line[3:]}": line[:2] for line in lines if line}


def main() -> int:
    try:
        before = tree()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or error
        print(f"check_clean: this compares with git and needs a git checkout: {said}", file=sys.stderr)
        return 2
    bad = 0
    for command in COMMANDS:
        # The command of the environment that runs this file, not of whichever is first on the PATH.
        subprocess.run([Path(sys.executable).parent / command], cwd=ROOT, check=True)
        after = tree()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        names = [name for name in changed if not name.startswith("git status of ")] or changed
        if names:
            bad += 1
            print(f"check_clean: {command} changed {len(names)} file(s):", *names, sep="\n  ", file=sys.stderr)
        before = after
    if bad:
        print(
            "The notebooks are the source. What is named above is written now: look at it with `git diff`, carry an\n"
            "edit that was made in a module back into its notebook, commit both together, and run this again.",
            file=sys.stderr,
        )
    else:
        print("check_clean: modules and notebooks are exported and clean")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
