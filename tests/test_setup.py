"""What is written in several places says the same in each; what the README promises holds."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import nanovlm
from nanovlm.assets import asset_path
from nanovlm.cli import COMMANDS, EXTRAS, main
from nanovlm.commands.environment import GROUPS, OLDEST_PYTHON

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
ONE_COMMAND = ("compress", "onnx", "demo", "watch")  # extras that a single command or comparison needs
MODULE_NAMES = {"cv2": "opencv-python-headless"}
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "playwright": "playwright-python"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[str]:
    """Every line of the file's shell examples, without comments."""
    lines = [line.partition("#")[0].strip() for block in code_blocks(name, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def groups() -> dict[str, dict[str, Requirement]]:
    """pyproject's requirements by extra ("": the package's own), by name."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    found = {extra: map(Requirement, texts) for extra, texts in lists.items()}
    return {extra: {r.name: r for r in wanted if r.name != "nanovlm"} for extra, wanted in found.items()}


def floors(left_out: tuple[str, ...] = ()) -> dict[str, str]:
    wanted = {name: r for extra, group in groups().items() if extra not in left_out for name, r in group.items()}
    return {name: re.search(r">=([\d.]+)", str(r.specifier))[1] for name, r in wanted.items()}


# -- versions ---------------------------------------------------------------------------------------------------------


def test_environment_yml_has_the_floors_of_what_the_course_needs() -> None:
    conda = dict(re.findall(r"^  - ([\w-]+)>=([\d.]+)(?:,<[\d.]+)?$", read("environment.yml"), re.MULTILINE))
    python = re.search(r'^requires-python = ">=([\d.]+)"$', read("pyproject.toml"), re.MULTILINE)[1]
    assert conda.pop("python") == python == ".".join(map(str, OLDEST_PYTHON))
    assert conda == {CONDA_NAMES.get(name, name): floor for name, floor in floors(ONE_COMMAND).items()}


def test_constraints_pin_every_dependency_at_or_above_its_floor() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    pins = {}
    for requirement in map(Requirement, lines):
        version = re.fullmatch(r"==([^+]+)", str(requirement.specifier))  # no local part: any build of torch will do
        assert version, f"{requirement} is not one exact version"
        pins[requirement.name.lower()] = Version(version[1])
    assert sorted(lines) == lines
    for name, floor in floors().items():
        assert pins[name.replace("_", "-")] >= Version(floor), name


def test_the_version_is_the_same_everywhere() -> None:
    found = [
        re.search(pattern, read(name), re.MULTILINE)[1]
        for name, pattern in (("pyproject.toml", r'^version = "(.+)"$'), ("CITATION.cff", r"^version: (.+)$"))
    ]
    assert found == [nanovlm.__version__] * 2


def test_the_repository_has_one_address() -> None:
    address = re.search(r'^Repository = "(.+)"$', read("pyproject.toml"), re.MULTILINE)[1]
    assert f"repository-code: {address}\n" in read("CITATION.cff")
    assert f"git clone {address}" in commands("README.md")


def test_the_extras_that_messages_name_exist() -> None:
    extras = groups()
    assert tuple(GROUPS) == tuple(extras)
    assert all(MODULE_NAMES.get(module, module) in extras[extra] for module, extra in EXTRAS.items())


def test_assets_are_found_and_a_missing_one_is_said() -> None:
    assert asset_path("pocket").is_dir()
    with pytest.raises(FileNotFoundError, match="lacks its asset 'no-such-thing'"):
        asset_path("no-such-thing")


# -- make, README and CI ----------------------------------------------------------------------------------------------


def recipe(target: str) -> list[str]:
    """The commands of a make target as one would type them in the environment."""
    text = read("Makefile").replace("\\\n", " ")
    text = text.replace("$(NOTEBOOKS)", re.search(r"^NOTEBOOKS := (.*)$", text, re.MULTILINE)[1])
    block = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)[1]
    lines = [line.strip() for line in block.splitlines() if not line.strip().startswith("@")]
    return [" ".join(re.sub(r"^(\w+=\S+ )+|\$\(BIN\)/", "", line).split()) for line in lines]


def targets() -> list[str]:
    return re.search(r"^\.PHONY: (.*)$", read("Makefile"), re.MULTILINE)[1].split()


def test_make_targets_are_explained_and_those_of_the_readme_exist() -> None:
    shown = re.findall(r'@echo "make ([\w-]+) ', read("Makefile"))
    assert sorted([*shown, "help"]) == sorted(targets())
    named = re.findall(r"\bmake (\w+)$", "\n".join(commands("README.md") + commands("CONTRIBUTING.md")), re.MULTILINE)
    assert {"lab", "test", "train", "notebooks"} == set(named)
    assert "test-colab" in read(".ci/run")
    ready = {name: re.search(rf"^{name}: (\S+)$", read("Makefile"), re.MULTILINE)[1] for name in named}
    assert ready == dict.fromkeys(named, ".venv/ready") | {"test": ".venv/ready-to-test"}


def test_the_readme_shows_what_make_does() -> None:
    by_hand = commands("README.md")
    assert all(command in by_hand for command in recipe("test") + recipe("lab"))
    for extra, target in (("dev", ".venv/ready"), ("tests", ".venv/ready-to-test")):
        assert f'pip install -e ".[{extra}]" -c constraints.txt' in by_hand
        assert f'$(call install,-e ".[{extra}]")' in recipe(target)
    assert all(" $(1) -c constraints.txt" in line for line in read("Makefile").splitlines() if "$(1)" in line)


def test_ci_runs_what_make_test_runs() -> None:
    workflow = " ".join(read(".github/workflows/ci.yml").split())
    assert all(command in workflow for command in recipe("test"))
    assert "make test" in read(".ci/run")


def test_ci_takes_actions_by_commit_and_another_index_for_torch_alone() -> None:
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        for used in re.findall(r"uses: (.+)", text):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", used), f"{path.name}: {used}"
        assert "PIP_EXTRA_INDEX_URL" not in text and "PIP_INDEX_URL" not in text
    for name in (".github/workflows/ci.yml", ".github/workflows/weekly.yml", "Makefile", "README.md"):
        text = read(name).replace("$(CPU_TORCH)", "--extra-index-url")
        for line in re.findall(r".*pip install .*index-url.*", text):
            assert (
                "pip install " in line and "--no-deps" in line and not re.search(r"-e |transformers|datasets", line)
            ), line


EXAMPLES = [line for name in ("README.md", "CONTRIBUTING.md") for line in commands(name) if "nanovlm " in line]


@pytest.mark.parametrize("line", [line for line in EXAMPLES if re.match(r"(\.venv/bin/)?nanovlm ", line)])
def test_examples_of_the_command_line_use_options_that_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *words = shlex.split(line)
    assert command in COMMANDS
    path = [command, *words[:1]] if command == "course" else [command]
    with pytest.raises(SystemExit):
        main([*path, "--help"])
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", shown), f"{command} has no option {option}"


def test_links_to_files_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", read(name)):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{name} links to {target}"


def test_the_readme_has_no_blanks_left_to_fill() -> None:
    assert re.findall(r"\{\{.*?\}\}", read("README.md")) == []
