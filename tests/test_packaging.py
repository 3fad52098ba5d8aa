"""What is built and installed: the files in wheel and sdist, the startup hook, and nothing left after uninstalling."""

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import apnet2_tts_plugin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apnet2_tts_plugin"
SOURCES = ("_build", "apnet2_tts_plugin", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.cfg", "tests")
HOOK = "apnet2_tts_plugin.pth", "apnet2_tts_plugin.start"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources, because building leaves folders behind."""
    tree = tmp_path_factory.mktemp("tree")
    for path in filter(Path.exists, (ROOT / name for name in SOURCES)):
        if path.is_dir():
            shutil.copytree(path, tree / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tree)
    model = tree / "apnet2_tts_plugin" / "bundled" / "packaging-test"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md"):
        (model / name).write_text(name)
    return tree


@pytest.fixture(scope="module")
def dist(tree):
    """Folder with the sdist and the wheel, the wheel built from the sdist."""
    run(sys.executable, "-m", "build", "--no-isolation", tree)
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(dist):
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def editable(tree, tmp_path_factory):
    """The wheel behind `pip install -e`."""
    folder = tmp_path_factory.mktemp("editable")
    code = f"import sys; sys.path.insert(0, '_build'); import backend; backend.build_editable({str(folder)!r})"
    run(sys.executable, "-c", code, cwd=tree)
    return next(folder.glob("*.whl"))


@pytest.fixture
def environment(tmp_path):
    """An empty virtual environment."""
    venv.create(tmp_path / "env")
    return tmp_path / "env"


def run(*command, **options) -> subprocess.CompletedProcess:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def pip(environment: Path, *arguments) -> None:
    run(sys.executable, "-m", "pip", "--python", environment / "bin" / "python", *arguments)


def files(environment: Path) -> set[str]:
    return {str(path.relative_to(environment)) for path in environment.rglob("*") if path.is_file()}


def loaded_at_start(environment: Path, **variables: str) -> str:
    """Which of our modules a fresh interpreter has, and whatever it writes."""
    code = "import sys; print(*sorted(name for name in sys.modules if name.startswith('apnet2')))"
    result = run(environment / "bin" / "python", "-c", code, cwd="/", env={**os.environ, **variables})
    return result.stdout.strip() + result.stderr


def test_wheel(wheel):
    version = apnet2_tts_plugin.__version__
    assert wheel.name == f"apnet2_tts_plugin-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"apnet2_tts_plugin-{version}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    model = "apnet2_tts_plugin/bundled/packaging-test"
    assert {*HOOK, f"{model}/config.json", f"{model}/model.safetensors", f"{model}/README.md"} <= names
    modules = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    assert modules | {"apnet2_tts_plugin/py.typed", "apnet2_tts_plugin/__init__.pyi"} <= names
    assert {name.partition("/")[0] for name in names} == {*HOOK, "apnet2_tts_plugin", info}
    assert [name for name in names if name.endswith("/LICENSE")]
    assert "apnet2 = apnet2_tts_plugin.cli:main" in entry_points
    assert "MPL-2.0" in (metadata["License"], metadata["License-Expression"])
    assert {"dev", "eval"} <= set(metadata.get_all("Provides-Extra"))
    assert "coqui-tts[codec,server]>=0.28" in metadata.get_all("Requires-Dist")  # `tts-server` needs the one extra


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_record_is_right(kind, request):
    """Every file has its line with its hash, so that pip installs without complaint and removes all of it."""
    with zipfile.ZipFile(request.getfixturevalue(kind)) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith("RECORD"))
        lines = dict(line.split(",", 1) for line in archive.read(record).decode().splitlines())
        assert sorted(names) == sorted(lines)
        for name in set(names) - {record}:
            data = archive.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert lines[name] == f"sha256={digest},{len(data)}", name


def test_sdist(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"_build/backend.py", "LICENSE", "setup.cfg", "pyproject.toml", "tests/test_packaging.py"} <= names
    assert "apnet2_tts_plugin/bundled/packaging-test/model.safetensors" in names


def test_install_and_uninstall(wheel, environment):
    before = files(environment)
    pip(environment, "install", "--no-deps", wheel)
    assert loaded_at_start(environment) == "apnet2_tts_plugin apnet2_tts_plugin._boot"
    assert (environment / "bin" / "apnet2").is_file()
    pip(environment, "uninstall", "--yes", "apnet2-tts-plugin")
    assert files(environment) == before
    assert loaded_at_start(environment) == ""


def test_editable_install(editable, environment, tree):
    before = files(environment)
    pip(environment, "install", "--no-deps", editable)
    assert loaded_at_start(environment) == "apnet2_tts_plugin apnet2_tts_plugin._boot"
    tree.rename(tree.with_name("moved"))
    try:
        assert loaded_at_start(environment) == ""  # and above all no error at every start of Python
    finally:
        tree.with_name("moved").rename(tree)
    pip(environment, "uninstall", "--yes", "apnet2-tts-plugin")
    assert {name for name in files(environment) - before if "__pycache__" not in name} == set()


def test_hook_sorts_after_editable_files():
    assert sorted([*HOOK, "__editable__.apnet2_tts_plugin-0.1.0.pth"])[0].startswith("__editable__")


def test_start_file_names_a_function():
    """The `.start` file as Python 3.15 reads it: an entry point, resolved and called."""
    import pkgutil

    sys.path.insert(0, str(ROOT / "_build"))
    try:
        from backend import STARTUP_FILES
    finally:
        sys.path.pop(0)
    assert callable(pkgutil.resolve_name(STARTUP_FILES["apnet2_tts_plugin.start"].strip()))
