"""What the pages say is there, is there: files, names, options, commands."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from llmos import cli
from llmos.config import Config, load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def read(path: Path) -> str:
    """A page's text."""
    return path.read_text(encoding="utf-8")


def code_blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language; "" for those that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [block for name, block in blocks if name == language]


def defined_names(path: Path) -> set[str]:
    """Functions, classes, methods (as Class.method) and constants of a Python file; functions of a C file."""
    if path.suffix == ".c":
        return set(re.findall(r"^\w[\w *]*?(\w+)\(", read(path), re.MULTILINE))
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    names.add(prefix + node.name)
                case ast.ClassDef():
                    names.add(prefix + node.name)
                    visit(node.body, f"{node.name}.")
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    names.add(prefix + name)
                case _:
                    pass

    visit(ast.parse(read(path)).body, "")
    return names


def test_names_of_the_tour_are_where_it_says() -> None:
    """Every function and class that the tour cites is defined in the file that it is cited from."""
    entries = re.findall(
        r"^- \[([\w/]+\.(?:py|c))\]\(\.\./([\w/]+\.(?:py|c))\): (.+)$", read(DOCS / "tour.md"), re.MULTILINE
    )
    assert len(entries) > 60
    for shown, target, names in entries:
        assert shown == target
        missing = set(re.findall(r"`([\w.]+)`", names)) - defined_names(ROOT / target)
        assert not missing, f"{target} has no {', '.join(sorted(missing))}"


def test_a_name_that_is_gone_would_be_seen() -> None:
    """The look-up behind the test above finds methods where they are and nowhere else."""
    names = defined_names(ROOT / "llmos/sched/core.py")
    assert {"Core", "Core._plan", "log"} <= names
    assert "_plan" not in names
    assert "llmos_map_frames" in defined_names(ROOT / "native/cpu/paging.c")


def prose(page: str) -> str:
    """A page without its fenced blocks: what looks like a heading or a link in there is none."""
    return re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Where links may lead in a page: its headings as GitHub spells them, numbered where there are two."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
        name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = found[name] = found.get(name, -1) + 1
        if number:
            found[f"{name}-{number}"] = 0
    return set(found)


def links(page: str) -> list[str]:
    """Where a page's links and pictures lead, those of HTML too."""
    text = re.sub(r"`[^`\n]*`", "``", prose(page))
    return [
        *re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", text),
        *re.findall(r"""(?:href|src)=["']([^"']+)["']""", text),
        *re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file or folder of the tree, and a heading that is there."""
    for link in links(read(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(read(target)), link


def test_links_and_anchors_are_found() -> None:
    """What the test above looks at: all kinds of links and headings, and none of those in code."""
    page = (
        '# A `b`, c!\n[x](y.md#z) <img src="p.png">\n![q](r.svg)\n'
        "```sh\n# no\n[n](o)\n```\n`[v](w)`\n\n## D\n## D\n[e]: f.md\n"
    )
    assert links(page) == ["y.md#z", "r.svg", "p.png", "f.md"]
    assert anchors(page) == {"a-b-c", "d", "d-1"}


def test_every_page_can_be_reached() -> None:
    """From the README, link by link, one comes to every page and every picture."""
    seen: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or not page.is_file():
            continue
        seen.add(page)
        if page.suffix == ".md":
            waiting += [
                (page.parent / link.partition("#")[0]).resolve()
                for link in links(read(page))
                if "://" not in link
            ]
    parts = set((DOCS / "benchmarks").glob("*.md"))  # of the page that is made of them
    wanted = {*PAGES, *(DOCS / "examples").glob("*.py")} - parts
    assert wanted <= seen, wanted - seen


def test_no_licence_is_claimed_that_is_not_there() -> None:
    """The tree has no LICENSE: neither the package nor a page may speak of one."""
    assert not list(ROOT.glob("LICEN[SC]E*"))
    for path in (ROOT / "pyproject.toml", ROOT / "setup.py", *PAGES):
        assert not re.search(r"\blicen[sc]e", read(path), re.IGNORECASE), path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_pages_name_exist(page: Path) -> None:
    """Every path in a code span that looks like a file of ours is one."""
    for path in re.findall(r"`((?:llmos|drivers|native|syscalls|shell|tests|docs)/[\w/.-]*\w)`", read(page)):
        assert (ROOT / path).exists(), path


def test_tree_of_the_readme_is_the_tree() -> None:
    """Each entry of the README's captioned tree exists, and no top-level folder of the project is missing."""
    (tree,) = [block for block in code_blocks(read(ROOT / "README.md"), "") if "Makefile" in block]
    folders: list[str] = []
    shown: set[str] = set()
    for line in tree.splitlines():
        names = line.split("  ")[0] if not line.startswith(" ") else line.strip().split("  ")[0]
        depth = (len(line) - len(line.lstrip())) // 2
        for name in names.split():
            del folders[depth:]
            assert (ROOT / "/".join(folders) / name).exists(), line
            shown.add("/".join([*folders, name.rstrip("/")]))
            if name.endswith("/"):
                folders.append(name.rstrip("/"))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    top = {path.split("/")[0] for path in tracked.splitlines() if "/" in path and not path.startswith(".")}
    assert top <= shown


def test_options_that_pages_name_exist() -> None:
    """Options in commands of `llmos up`, keys in TOML examples and `make` targets are real."""
    keys = set(Config.__struct_fields__)
    for page in PAGES:
        text = read(page)
        for command in re.findall(r"llmos up ([^\n`#]*)", text):
            for option in re.findall(r"--([a-z-]+)", command):
                name = option.replace("-", "_").removeprefix("no_")
                assert name in keys | {"config", "ready_fd", "help"}, (page.name, option)
        for block in code_blocks(text, "toml"):
            assert set(msgspec.toml.decode(block)) <= {key.replace("_", "-") for key in keys} | keys
        targets = set(re.findall(r"^(\w[\w-]*):", read(ROOT / "Makefile"), re.MULTILINE))
        assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets, page.name


def test_the_configuration_example_loads(tmp_path: Path) -> None:
    """The operator's TOML example is accepted as it stands."""
    (example,) = code_blocks(read(DOCS / "operators.md"), "toml")
    path = tmp_path / "llmos.toml"
    path.write_text(example, encoding="utf-8")
    assert load_config(str(path), {}).devices == 2


def test_every_option_is_in_the_operators_page() -> None:
    """The table of options has each key of the configuration, with its default, and no other."""
    rows = dict(re.findall(r"^\| `([a-z_]+)` \| `?([^|`]*?)`? \|", read(DOCS / "operators.md"), re.MULTILINE))
    assert list(rows) == list(Config.__struct_fields__)
    default = Config()
    for name, shown in rows.items():
        value = getattr(default, name)
        spelled = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        assert shown == spelled, name


def test_options_mean_in_the_page_what_the_program_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Each row has the help of its option in `llmos up --help`, and the values that it may have."""
    with pytest.raises(SystemExit):
        cli.main(["up", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    told = re.sub(r"- (?=\w)", "-", told)  # argparse breaks lines behind hyphens
    rows = re.findall(r"^\| `([a-z_]+)` \| [^|]* \| (.*) \|$", read(DOCS / "operators.md"), re.MULTILINE)
    assert len(rows) > 50
    for name, meaning in rows:
        words, _, values = re.fullmatch(r"(.*?)( \((`.*`)\))?", meaning).groups("")  # type: ignore[union-attr]
        assert f"--{name.replace('_', '-')}" in told
        assert re.sub(r"- (?=\w)", "-", words) in told, name
        if values:
            assert "{" + ",".join(sorted(re.findall(r"`([\w-]+)`", values))) + "}" in told, name


def test_the_eviction_experiment_still_runs(tmp_path: Path) -> None:
    """On a trace of three prompts, two of which begin alike: a third of their blocks is found."""
    prompts = [[1, 2, 3], [4, 5, 6], [1, 2, 3]]
    (tmp_path / "trace.jsonl").write_text("\n".join(json.dumps({"hash_ids": ids}) for ids in prompts))
    result = subprocess.run(
        [sys.executable, str(DOCS / "experiments/eviction.py"), str(tmp_path / "trace.jsonl")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("3 prompts, 6 distinct blocks")
    assert result.stdout.count("33.3%") == 24


@pytest.mark.parametrize("name", ["ask_or_call", "row_invariance"])
def test_experiments_still_run(name: str) -> None:
    """The scripts behind the numbers in the decision records run; what they print is not judged."""
    path = DOCS / "experiments" / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(path), "1"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
