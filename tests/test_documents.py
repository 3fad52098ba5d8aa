"""Commands in the documents: they exist, and take the arguments they are shown with."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

from apnet2_tts_plugin import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [path for path in ROOT.rglob("*.md") if not {"build", ".pytest_cache"} & set(path.parts)]


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
        known = set(re.findall(r"\"(--[\w-]+)\"", script.read_text()))
        assert {word for word in command[2:] if word.startswith("--")} <= known | {"--help"}


def test_the_two_commands_of_the_newcomer_come_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^```sh\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)[:2] == [
        "pip install . && apnet2 vocode recipes/flite/sample.wav hello.wav",
        "pip install '.[dev]' && pytest",
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert link.startswith("https://") or (document.parent / link).exists(), link
