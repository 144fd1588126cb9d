"""Packaging: everything is read from settings.ini; `<name>_requirements` there becomes the extra `<name>`."""

import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
suffix = "_requirements"
FOLDERS = [f"static/{name}/*" for name in ("languages", "page", "runtime")]


class BuildWithNotebook(build_py):
    """The wheel carries the training notebook, so that `trashsorting train` works without a checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copy(Path("nbs/train.ipynb"), Path(self.build_lib) / settings["lib_name"] / "train.ipynb")


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    keywords=settings["keywords"],
    packages=find_packages(include=[f"{settings['lib_name']}*"]),
    package_data={settings["lib_name"]: ["models/*", "rules/*", "static/*", *FOLDERS]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix(suffix): settings[key].split() for key in settings if key.endswith(suffix)},
    entry_points={"console_scripts": settings["console_scripts"].split()},
    cmdclass={"build_py": BuildWithNotebook},
    zip_safe=False,
)
