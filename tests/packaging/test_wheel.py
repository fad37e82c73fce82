"""The wheel: what is in it and said of it, and that a stranger can install it, run the quick start and take it away again."""

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs/quickstart.md").read_text(encoding="utf-8")


def test_version_and_authors_are_written_once_and_cited_alike():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["version"]
    assert cited["title"] == PROJECT["name"].replace("-", "_")
    assert cited["license"] == PROJECT["license"]
    assert [one["name"] for one in cited["authors"]] == [one["name"] for one in PROJECT["authors"]]
    assert f"\n## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_list_of_packages_lacks_a_folder():
    """The packages are listed by hand, because the folder eval/ is installed under another name."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {
        ".".join(["ssl_kd" if top == "ssl_kd" else f"ssl_kd.{top}", *file.parent.relative_to(ROOT / top).parts])
        for top in ("ssl_kd", "eval")
        for file in (ROOT / top).rglob("*.py")
    }
    assert found | {"ssl_kd.configs"} == set(tool["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources: building leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source") / "ssl_kd", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("ssl_kd", "eval", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    built = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    done = subprocess.run([sys.executable, "-m", "pip", *built], capture_output=True, text=True)
    if "setuptools" in done.stderr and "No module named" in done.stderr:
        pytest.skip("no setuptools here to build with")
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_says_what_it_is_and_holds_what_runs_and_no_more(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        said = email.message_from_bytes(archive.read(next(n for n in names if n.endswith("METADATA"))))
    assert {name.split("/")[0] for name in names} == {"ssl_kd", f"ssl_kd-{PROJECT['version']}.dist-info"}
    sources = {"ssl_kd": "ssl_kd", "eval": "ssl_kd/eval", "configs": "ssl_kd/configs"}
    for folder, place in sources.items():
        for file in (ROOT / folder).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert f"{place}/{file.relative_to(ROOT / folder).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert (said["Name"], said["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert said["License-Expression"] == "Apache-2.0"
    assert said["Author"] or said["Author-email"]
    assert said["Description-Content-Type"] == "text/markdown"
    assert "Typing :: Typed" in said.get_all("Classifier")
    assert set(said.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


class Environment:
    """A fresh virtual environment elsewhere that sees the packages installed here, once they are lent to it."""

    def __init__(self, folder):
        venv.create(folder, with_pip=True)
        paths = {"base": str(folder), "platbase": str(folder)}
        self.folder, self.site = folder, Path(sysconfig.get_path("purelib", vars=paths))
        self.python, self.lent = folder / "bin/python", self.site / "lent.pth"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SSL_KD_"))}
        self.env |= {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "SSL_KD_CACHE": str(folder.parent / "cache")}
        self.env |= {"HF_HUB_OFFLINE": "1"}

    def lend(self):
        """Packages are large, and what they are is not tested here: those of this interpreter are borrowed."""
        ours = [path for path in sys.path if "site-packages" in path and Path(path).is_dir()]
        self.lent.write_text("\n".join(ours))

    def run(self, *words, cwd=None):
        done = subprocess.run(words, cwd=cwd or self.folder, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_stranger_installs_runs_the_quick_start_and_uninstalls(wheel, tmp_path):
    """Every line of docs/quickstart.md, as typed, in an empty folder, each using what the line before wrote."""
    there = Environment(tmp_path / "fresh")
    there.run(there.python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    there.lend()
    where = there.run(there.python, "-c", "import ssl_kd; print(ssl_kd.__file__, ssl_kd.__version__)").split()
    assert where == [str(there.site / "ssl_kd/__init__.py"), PROJECT["version"]]
    place = tmp_path / "empty"
    place.mkdir()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
    assert len(lines) >= 7
    for line in lines:
        there.run("bash", "-c", line, cwd=place)
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        there.run(there.python, "-c", code, cwd=place)
    assert (tmp_path / "cache").is_dir()  # which the docs say stays behind
    there.lent.unlink()
    there.run(there.python, "-m", "pip", "uninstall", "--quiet", "--yes", "ssl-kd")
    assert not [path for path in there.site.iterdir() if path.name.startswith("ssl_kd")]
    assert not (there.folder / "bin/ssl-kd").exists()
