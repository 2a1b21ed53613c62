"""The prose keeps to measurable bounds, and the measure itself counts what it says."""

from __future__ import annotations

import re

import pytest

from nanovlm.course.outline import CHAPTERS, chapter
from nanovlm.course.percent import parse
from nanovlm.course.prose import Measure, measure, plain, sentences, stated_minutes, table
from nanovlm.course.stamps import read_project
from tests.course.learners import ROOT
from tests.course.rewritten import REWRITTEN


def measure_of(number: str) -> Measure:
    place = chapter(number)
    assert place is not None
    path = ROOT / "chapters" / f"{place.stem}.py"
    return measure(number, parse(path.read_text(encoding="utf-8"), path))


@pytest.mark.parametrize("number", [c.number for c in CHAPTERS if c.number in REWRITTEN])
def test_a_rewritten_chapter_keeps_the_bounds(number: str) -> None:
    m = measure_of(number)
    assert 14 <= m.mean <= 22, f"{m.mean:.1f} words a sentence"
    assert m.short <= 0.12, f"{m.short:.1%} of the sentences have five words or fewer"
    assert not m.nicknamed, f"the nickname is used as often as the term: {m.nicknamed}"
    assert m.stated is not None and m.stated <= 60, "the chapter's head must state its minutes, at most sixty"
    assert m.minutes <= 60, f"{m.minutes:.2f} minutes by the rule: an hour is the most"
    assert 0.75 <= m.stated / m.minutes <= 1.25, f"states {m.stated:.0f} minutes; the rule gives {m.minutes:.0f}"


MOVING = re.compile(r"https?://\S+/(?:main|master|HEAD|latest|stable|nightly)/[^\s)\"]*")


def test_links_to_other_projects_do_not_move() -> None:
    """What a link shows is evidence, so it names a tag or a commit. The builder stamps our own links."""
    own = read_project(ROOT).repository.removeprefix("https://github.com/")
    for path in sorted([*(ROOT / "chapters").glob("*.py"), *(ROOT / "solutions").glob("*.py")]):
        found = [link for link in MOVING.findall(path.read_text(encoding="utf-8")) if own not in link]
        assert not found, f"{path.name}: {', '.join(found)}"


CHAPTER = """\
# %% [markdown]
# # 03 A title is no sentence
#
# You build the fusion of one picture here. Forty-five minutes; the code runs in two minutes.

# %% [markdown]
# ## Neither is a heading
#
# - The [paper](https://x.org/a.b) by Dosovitskiy et al. (2020) says `x = 1. Y`, i.e. 0.5 of it.
# - Really? The patches look at each other, and the eye reads the line.
#
# | a table | is none |

# %%
# a comment
quiz("a.b")

lever(x, y=1)
"""


def test_the_measure_counts_sentences_code_and_minutes() -> None:
    m = measure("03", parse(CHAPTER, "c.py"))
    # "You build …", "Forty-five …", "The paper … it.", "Really?", "The patches …"
    assert m.sentences == (8, 8, 13, 1, 12)
    assert (m.lines, m.quizzes, m.levers, m.stated) == (2, 1, 1, 45)
    assert m.minutes == pytest.approx(42 / 180 + 2 / 12 + 2)
    assert m.terms["attend"] == (0, 1) and m.terms["encoder"] == (0, 1) and m.terms["sequence"] == (0, 1)
    assert {"attend", "encoder", "sequence"} <= set(m.nicknamed)
    assert "45" in table([m])


@pytest.mark.parametrize(
    ("words", "minutes"),
    [
        ("About an hour to read, and two hours for the exercises.", 60),
        ("Forty minutes; the code runs in half a minute.", 40),
        ("It takes 35 minutes.", 35),
        ("An hour and a half.", 90),
        ("The code runs in seconds.", None),
    ],
)
def test_the_stated_time_is_read(words: str, minutes: float | None) -> None:
    assert stated_minutes(words) == minutes


def test_code_blocks_are_no_prose() -> None:
    assert sentences(plain("One thing. See:\n\n```bash\nmake lab. Now.\n```\n\nIt costs 3.5 hours. 7 of 9 fit.")) == [
        "One thing.",
        "See:",
        "It costs 3.5 hours.",
        "7 of 9 fit.",
    ]
