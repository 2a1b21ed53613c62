"""Half of the parts the learner's, half the package's. `make test` runs every chapter's notebook in such a home."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from nanovlm.course import yours
from nanovlm.course.your_parts import part_ids
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.course.learners import ROOT
from tests.course.mixture import half, keep
from tests.tiny import ids_of, random_images


def test_a_model_of_both_kinds_of_parts_is_the_packages_model(model: VisionLanguageModel, tmp_path: Path) -> None:
    own = part_ids()[::2]
    keep(own)
    mine = yours(directory=model.save_pretrained(tmp_path / "model"))
    assert {name for name, origin in mine.parts.items() if origin == "yours"} == set(own)
    assert set(mine.parts.values()) == {"yours", "reference"}
    ids, images = torch.tensor([ids_of([2, -1, 7, 8])]), random_images(1)
    targets = torch.where(ids == model.config.image_token_id, -100, ids)
    with torch.no_grad():
        ours, theirs = (each(ids, images, targets=targets) for each in (mine, model.eval()))
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.loss, theirs.loss)


def test_chapters_meet_both_kinds() -> None:
    """Where a chapter goes on with several answers, some are in the half and some are not."""
    solved = set(half())
    for path in sorted((ROOT / "chapters").glob("*.py")):
        used = set(re.findall(r'\buse\(\s*"([\w.]+)"', path.read_text(encoding="utf-8")))
        if len(used) > 1:
            assert used & solved and used - solved, f"{path.name}: {sorted(used)} are all of one kind"


def test_no_claim_depends_on_who_has_solved_what() -> None:
    """`use` prints whose version goes on, so a cell whose output the tests compare does not call it."""
    for path in sorted([*(ROOT / "chapters").glob("*.py"), *(ROOT / "solutions").glob("*.py")]):
        for cell in path.read_text(encoding="utf-8").split("\n# %%")[1:]:
            claim = "nbval-check-output" in cell.partition("\n")[0]
            assert not (claim and re.search(r"\b(use|yours)\(", cell)), f"{path.name}: {cell[:200]}"


def test_notebooks_run_after_the_command() -> None:
    for file in ("Makefile", ".github/workflows/ci.yml"):
        before, _, after = (ROOT / file).read_text(encoding="utf-8").partition("tests.course.mixture")
        assert "NANOVLM_HOME" in before and "nbval" in after, file
