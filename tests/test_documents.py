"""The documents: commands exist and take the arguments they are shown with, and links lead somewhere."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from apnet2_tts_plugin import __version__, _host, cli

ROOT = Path(__file__).parent.parent
PLACES = ("*.md", "docs/*.md", "recipes/*/*.md", "apnet2_tts_plugin/bundled/*/*.md")


def documents(root: Path) -> list[Path]:
    """The project's own documents, and none of those that a virtual environment in the clone has."""
    return sorted(path for place in PLACES for path in root.glob(place))


DOCUMENTS = documents(ROOT)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(document: Path) -> list[list[str]]:
    """The commands in the shell blocks of a document and between its backticks, as lists of words."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`((?:apnet2 [^`\s]+|python) [^`\n]+)`", text)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + inline
    return [shlex.split(part) for line in lines for part in line.split("&&") if part.strip()]


SHOWN = [(document, command) for document in DOCUMENTS for command in commands(document)]
APNET2 = [command for _, command in SHOWN if command[0] == "apnet2"]
SCRIPTS = [(document, command) for document, command in SHOWN if command[0] == "python" and command[1].endswith(".py")]


def test_there_are_commands_to_check():
    assert len(APNET2) >= 6 and len(SCRIPTS) >= 6


@pytest.mark.parametrize("command", APNET2, ids=" ".join)
def test_apnet2_commands_parse(command):
    cli._parser().parse_args(command[1:])


@pytest.mark.parametrize(("document", "command"), SCRIPTS, ids=lambda value: value[1] if type(value) is list else "")
def test_scripts_exist_and_take_these_arguments(document, command):
    (script,) = [folder / command[1] for folder in (ROOT, document.parent) if (folder / command[1]).is_file()][:1]
    if "def parse_args" in script.read_text() and "--help" not in command:
        spec = importlib.util.spec_from_file_location(script.stem, script)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where dataclasses look themselves up
        spec.loader.exec_module(module)
        module.parse_args(command[2:])
    else:
        beside = "".join(path.read_text() for path in script.parent.glob("*.py"))  # benchmarks share their arguments
        known = set(re.findall(r"\"(--[\w-]+)\"", beside))
        assert {word for word in command[2:] if word.startswith("--")} <= known | {"--help"}


def test_the_two_commands_of_the_newcomer_come_first():
    assert re.findall(r"^```sh\n(.*?)\n```", README, re.DOTALL | re.MULTILINE)[:2] == [
        'pip install . && tts --text "The old man sat by the river and talked about the weather." '
        "--model_name tts_models/en/heart/fast_pitch --vocoder_name apnet2 --out_path hello.wav",
        "pip install '.[dev]' && pytest",
    ]


def test_documents_of_a_virtual_environment_are_not_collected(tmp_path):
    own = [tmp_path / name for name in ("README.md", "docs/a.md", "recipes/b/README.md")]
    for path in [*own, tmp_path / ".venv/lib/x.md", tmp_path / "build/lib/y.md"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert documents(tmp_path) == own


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(document: Path) -> set[str]:
    """What the headings of a document are called in links to them."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in links(document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        assert link.startswith(("https://", "http://")) or (
            target.exists() and (not anchor or anchor in anchors(target))
        ), link


def test_readme_has_no_relative_link():
    """They are dead on the page of a package index, and the repository's address is not known there."""
    assert [link for link in links(README) if not link.startswith(("https://", "http://", "#"))] == []


def test_paths_in_the_readme_exist():
    paths = re.findall(r"`((?:docs|recipes|tests|apnet2_tts_plugin)/[\w./]+|[A-Z]+\.(?:md|cff))`", README)
    assert len(paths) >= 8 and [path for path in paths if not (ROOT / path).exists()] == []


def test_readme_names_the_wrapped_functions():
    names = [f"`{name}`" for module, functions in _host.WRAPS.items() for name in (module, *functions)]
    assert [name for name in names if name not in README] == []


def test_citation_is_of_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
