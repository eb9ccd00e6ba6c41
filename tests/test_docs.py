"""The documentation runs: python blocks are executed, commands are parsed by what they name.

The fenced ``python`` blocks of a page run top to bottom in one namespace, in a folder that holds
``build/demo/bundle``, as `make demo` leaves it but with random weights, and ``clip.wav``.
``print(...)  # text`` promises the printed line. A block is left out only by ``<!-- no-run -->``
on the line above its fence. A line of a ``console`` block that starts with ``$`` must name a
command of ours with options it has, or a target of the Makefile. Relative links lead to files.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile
from typer.main import get_command

from edge_imputer.audio import read_audio
from edge_imputer.cli.benches import untrained_bundle
from edge_imputer.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")
NO_RUN = "<!-- no-run -->\n"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page its text starts on."""

    language: str
    text: str
    line: int


def blocks(markdown: str, language: str) -> list[Block]:
    """The blocks of one language that are not marked ``<!-- no-run -->``."""
    found = []
    for match in FENCE.finditer(markdown):
        before = markdown[: match.start()]
        if match[1] == language and not before.endswith(NO_RUN):
            found.append(Block(language, match[2], before.count("\n") + 2))
    return found


def run_blocks(page: list[Block], source: str) -> None:
    """Execute python blocks in one namespace, and check what they promise to print."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in page:
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.text, source, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        promised = re.findall(r"^\s*print\(.*\)  # (.+)$", block.text, re.MULTILINE)
        if promised:
            assert printed.getvalue().splitlines() == promised, f"{source}:{block.line}"


def commands(markdown: str) -> list[str]:
    """Command lines of the console blocks, without the prompt and with continuations joined."""
    lines = "".join(block.text for block in blocks(markdown, "console")).replace("\\\n", " ")
    return [line[2:].split("  #")[0].strip() for line in lines.splitlines() if line[:2] == "$ "]


def check_command(line: str) -> None:
    """Raise where `line` names a command, option or target that does not exist."""
    program, *args = shlex.split(line)
    if program == "edge-imputer":
        group: Any = get_command(app)
        name, *rest = args
        group.commands[name].make_context(name, rest)  # parses, does not run
    elif program == "make":
        dry = ["make", "-n", "-C", str(ROOT), *args]
        subprocess.run(dry, check=True, capture_output=True, text=True)


def broken_links(page: Path, markdown: str) -> list[str]:
    """Relative links of a page, outside its blocks, that lead to no file or folder."""
    links = [link.split("#")[0] for link in LINK.findall(FENCE.sub("", markdown))]
    relative = [link for link in links if link and not re.match(r"[a-z]+:", link)]
    return [link for link in relative if not (page.parent / link).exists()]


def pages_with(language: str) -> list[Any]:
    """Test parameters: the pages that hold a block of `language`."""
    return [
        pytest.param(page, id=page.relative_to(ROOT).as_posix())
        for page in PAGES
        if blocks(page.read_text("utf-8"), language)
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that blocks run in."""
    folder = tmp_path_factory.mktemp("docs")
    untrained_bundle(folder / "build" / "demo" / "bundle")
    digit = min((ROOT / "train" / "digits" / "audio").rglob("*.ogg"))
    waveform, sample_rate = read_audio(digit)
    soundfile.write(folder / "clip.wav", waveform, sample_rate)
    return folder


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    run_blocks(blocks(page.read_text("utf-8"), "python"), str(page))


@pytest.mark.parametrize("page", pages_with("console"))
def test_console_commands_exist(page: Path) -> None:
    for line in commands(page.read_text("utf-8")):
        check_command(line)


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_relative_links_lead_to_files(page: Path) -> None:
    assert broken_links(page, page.read_text("utf-8")) == []


def test_readme_has_a_first_use_and_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert blocks(readme, "python")
    assert {"make demo", "make test"} <= set(commands(readme))


PAGE = """
```python
x = 2
print(x)  # 2
```
<!-- no-run -->
```python
raise SystemExit
```
```console
$ make test  # a comment
output
$ edge-imputer info \\
    bundle --json
```
"""


def test_extraction_of_blocks_and_commands() -> None:
    (block,) = blocks(PAGE, "python")
    assert (block.text, block.line) == ("x = 2\nprint(x)  # 2\n", 3)
    run_blocks([block], "page.md")
    assert [line.split() for line in commands(PAGE)] == [
        ["make", "test"],
        ["edge-imputer", "info", "bundle", "--json"],
    ]
    for line in commands(PAGE):
        check_command(line)


@pytest.mark.parametrize("text", ["print(3)  # 2", "undefined_name"])
def test_a_wrong_block_fails(text: str) -> None:
    with pytest.raises((AssertionError, NameError)):
        run_blocks([Block("python", text, 1)], "page.md")


@pytest.mark.parametrize(
    "line", ["edge-imputer nonsense", "edge-imputer info bundle --nonsense", "make nonsense"]
)
def test_a_wrong_command_fails(line: str) -> None:
    with pytest.raises(Exception, match="nonsense"):
        check_command(line)


def test_a_link_to_nothing_is_found() -> None:
    links = "[a](LICENSE) [b](docs/nothing.md#part) [c](https://example.org/x) [d](#part) [e](none)"
    fenced = "\n```python\nx[0](missing)\n```\n"
    assert broken_links(ROOT / "README.md", links + fenced) == ["docs/nothing.md", "none"]
