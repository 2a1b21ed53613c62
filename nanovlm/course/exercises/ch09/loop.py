"""Chapter 09: the loop that writes an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.inference.generate import decode

# -- generation.greedy -------------------------------------------------------------------------------------------------

VOCAB = 9


def follows(tokens: Tensor, after: dict[int, int]) -> Tensor:
    """Logits [rows, VOCAB] of a model that knows one thing: which token comes after which."""
    return F.one_hot(torch.tensor([after[int(token)] for token in tokens]), VOCAB).float()


def argmax(logits: Tensor) -> Tensor:
    return logits.argmax(dim=-1)


def second(logits: Tensor) -> Tensor:
    """A chooser of its own mind: one id above the likeliest."""
    return (logits.argmax(dim=-1) + 1) % VOCAB


def run_decode(
    loop,
    first: Tensor,
    after: dict[int, int],
    ends: Sequence[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], Tensor] = argmax,
) -> tuple[Tensor, int]:
    """The tokens, and how often the model had to read."""
    passes = 0

    def step(tokens: Tensor) -> Tensor:
        nonlocal passes
        expect(isinstance(tokens, Tensor) and tokens.shape == first.shape, "step takes one token for each row, [rows].")
        expect(passes < 50, "It never stops: max_new_tokens is the most that it may write.")
        passes += 1
        return follows(tokens, after)

    return loop(F.one_hot(first, VOCAB).float(), step, choose, list(ends), max_new_tokens), passes


CHAIN = {0: 4, 1: 5, 2: 6, 3: 1, 4: 3, 5: 7, 6: 8, 7: 2, 8: 0}  # 4 3 1 …, and 6 8 0 4 3 1 …

GREEDY = Exercise(
    id="generation.greedy",
    chapter="09",
    title="The loop that writes",
    difficulty=1,
    minutes=12,
    why="Every answer of every language model comes out of this loop. One pass too many for each answer is a tenth of "
    "the time on answers of ten tokens; a forgotten end is text that nobody asked for.",
    hints=(
        "Choose, keep, look for the end, read on. The first logits are given, so the first choice needs no step.",
        "Keep a tensor finished [rows] of False. After each choice put ends[0] where a row was finished before, append, "
        "then mark the rows that wrote an end token. Leave the loop before step when all are finished or the answer is "
        "long enough. torch.isin(tokens, torch.tensor(ends)) knows several end tokens at once.",
        "while True:\n"
        "    tokens = choose(logits), with ends[0] in finished rows\n"
        "    written.append(tokens)\n"
        "    finished = finished | …\n"
        "    if all are finished, or len(written) == max_new_tokens:\n"
        "        return torch.stack(written, dim=1)\n"
        "    logits = step(tokens)",
    ),
    reference=decode,
    cases=lambda: [
        Case(torch.tensor([4]), CHAIN, [1], 8, note="one row that ends with its third token"),
        Case(torch.tensor([6, 4, 3]), CHAIN, [1], 8, note="three rows that end at different steps"),
        Case(torch.tensor([6, 4]), CHAIN, [1, 8], 8, note="two end tokens, 1 and 8"),
        Case(torch.tensor([6, 7]), CHAIN, [5], 3, note="max_new_tokens comes before the end"),
        Case(torch.tensor([0, 6]), CHAIN, [1], 4, second, note="another choose than argmax"),
    ],
    axes={"tokens": "rows new", "steps": ""},
    call=run_decode,
)


@GREEDY.property("an answer of one token needs no step at all")
def _(loop) -> None:
    tokens, passes = run_decode(loop, torch.tensor([3, 3]), {3: 3}, [3], 5)
    expect(passes == 0 and tokens.shape == (2, 1), "The first token is an end in every row, but it reads on.")


@GREEDY.property("max_new_tokens = 1 gives one token")
def _(loop) -> None:
    tokens, passes = run_decode(loop, torch.tensor([4, 6]), CHAIN, [1], 1)
    expect(tokens.shape == (2, 1) and passes == 0, f"It wrote {tokens.shape[1]} tokens with {passes} steps.")


class _Loop:
    """The loop, to make wrong versions from."""

    any_row, fill, all_ends, extra, left_out, own_choice, deaf, transposed = (False, True, True, 0, False, False) + (
        False,
        False,
    )
    stops, late, reads_on = True, False, False

    def __call__(self, logits, step, choose, ends, max_new_tokens):
        finished, written = torch.zeros(len(logits), dtype=torch.bool), []
        while True:
            tokens = logits.argmax(dim=-1) if self.own_choice else choose(logits)
            if self.fill:
                tokens = tokens.masked_fill(finished, ends[0])
            known = ends if self.all_ends else ends[:1]
            finished = finished | torch.isin(tokens, torch.tensor(known))
            done = bool(finished.any() if self.any_row else finished.all()) and self.stops
            if not (self.left_out and done):
                written.append(tokens)
            after = None
            if self.late:
                after = step(tokens)
            full = len(written) == max_new_tokens + self.extra
            if self.reads_on and full and not done:
                step(tokens)
            if done or full:
                return torch.stack(written, dim=0 if self.transposed else 1)
            after = step(tokens) if after is None else after
            logits = logits if self.deaf else after


def _wrong(sentence: str, **flags: object) -> None:
    GREEDY.mistake(sentence)(type("Wrong", (_Loop,), flags)())


_wrong(
    "It never stops at an end token, and always writes max_new_tokens: compare what was chosen with ends.",
    stops=False,
    fill=False,
)
_wrong(
    "It never stops before max_new_tokens, though every row is finished: from there on it only writes the end again.",
    stops=False,
)
_wrong("It stops as soon as one row has ended, and cuts the others off: wait until all are finished.", any_row=True)
_wrong(
    "A row that has ended goes on talking while the others write: put ends[0] wherever a row was finished before.",
    fill=False,
)
_wrong("It looks for ends[0] alone. A model may have several end tokens; each of them ends a row.", all_ends=False)
_wrong(
    "It reads once more after the last token, and throws the logits away: look whether it is done before you call step.",
    late=True,
)
_wrong(
    "After the last of max_new_tokens it reads once more, and throws the logits away: choose first, and step only where "
    "another token will be chosen.",
    reads_on=True,
)
_wrong("It writes one token too many: max_new_tokens counts the token that the first logits give.", extra=1)
_wrong("It writes one token too few: the token that the first logits give is the first of max_new_tokens.", extra=-1)
_wrong("The end token itself is missing: append first, then look whether all rows are done.", left_out=True)
_wrong(
    "It takes the likeliest token whatever choose says. Call choose(logits): the sampler comes in that way.",
    own_choice=True,
)
_wrong("It writes the same token again and again: logits must become what step returns.", deaf=True)
_wrong("The result is [new, rows]: stack along dim=1, one row for each answer.", transposed=True)


@GREEDY.part
def _(code, learner) -> None:
    def decode(logits, step, choose, ends, max_new_tokens, on_tokens=None):
        """The learner's loop; what it chooses is told to on_tokens, with which a single answer is streamed."""

        def watched(logits: Tensor) -> Tensor:
            tokens = choose(logits)
            if on_tokens is not None:
                on_tokens(tokens)
            return tokens

        return learner(logits, step, watched, list(ends), max_new_tokens)

    code.generate.decode = decode
