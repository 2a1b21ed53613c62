"""Rules between logits and choice: repetition, allowed answers, stop strings; and what generate makes of them."""

from __future__ import annotations

import pytest
import torch

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.inference.logits_processors import Choices, RepetitionPenalty, StopStrings
from nanovlm.inference.prompts import answer_ids

END = 0
INF = float("inf")


def test_a_repetition_penalty_changes_what_was_said_and_nothing_else() -> None:
    penalty, logits = RepetitionPenalty(2.0), torch.tensor([[4.0, -4.0, 1.0], [4.0, -4.0, 1.0]])
    assert penalty(logits).equal(logits), "nothing was said yet"
    penalty.see(torch.tensor([0, 1]))
    assert penalty(logits).tolist() == [[2.0, -4.0, 1.0], [4.0, -8.0, 1.0]]
    penalty.see(torch.tensor([0, 2]))
    assert penalty(logits).tolist() == [[2.0, -4.0, 1.0], [4.0, -8.0, 0.5]], "twice is no more than once"


def test_choices_allow_the_tree_s_next_tokens_and_then_the_end() -> None:
    tree, logits = Choices([[3, 4], [3, 5], [6]], END), torch.arange(8.0).repeat(2, 1)
    allowed = []
    for tokens in ([3, 6], [5, END], [END, END], [END, END]):
        allowed.append([row.isfinite().nonzero().flatten().tolist() for row in tree(logits)])
        tree.see(torch.tensor(tokens))
    assert allowed == [[[3, 6], [3, 6]], [[4, 5], [END]], [[END], [END]], [[END], [END]]]
    assert tree(logits)[0, END] == logits[0, END], "what is allowed keeps its logit"


def test_an_answer_that_begins_another_one_may_end_or_go_on() -> None:
    tree = Choices([[3], [3, 4]], END)
    tree(torch.zeros(1, 6))
    tree.see(torch.tensor([3]))
    assert tree(torch.zeros(1, 6))[0].isfinite().nonzero().flatten().tolist() == [END, 4]


def test_a_stop_string_ends_the_row_that_holds_it() -> None:
    stops = StopStrings(["b-"], lambda ids: "-".join("_abc"[i] for i in ids) + "-", END)
    assert stops(torch.zeros(2, 4)).isfinite().all()
    stops.see(torch.tensor([1, 2]))
    allowed = stops(torch.zeros(2, 4)).isfinite().tolist()
    assert allowed == [[True] * 4, [True, False, False, False]]
    assert stops.cut("a-b-c") == "a-" and stops.cut("a-c") == "a-c"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RepetitionPenalty(0.0), "repetition_penalty must be above 0"),
        (lambda: RepetitionPenalty(float("nan")), "repetition_penalty must be above 0"),
        (lambda: Choices([], END), "choices needs at least one answer"),
        (lambda: Choices([[3], []], END), "none of them empty"),
        (lambda: StopStrings([""], str, END), "stop needs at least one string"),
    ],
)
def test_settings_without_a_meaning_are_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


QUESTION = {"image": asset_path("images/shapes.png"), "prompt": "Describe the picture."}


def test_generate_writes_an_allowed_answer_and_nothing_else(pocket: VisionLanguageModel) -> None:
    for choices in (["top left", "bottom right"], ["4"], ["purple square", "top"]):
        assert pocket.generate(**QUESTION, choices=choices) in choices
    drawn = pocket.generate(**QUESTION, choices=["red", "blue"], temperature=50.0, num_generations=12, seed=0)
    assert set(drawn) == {"red", "blue"}


def test_generate_stops_in_front_of_a_stop_string_and_streams_the_same(pocket: VisionLanguageModel) -> None:
    whole = pocket.generate(**QUESTION)
    stop = ". top right"  # over several tokens
    assert stop in whole
    pieces: list[str] = []
    cut = pocket.generate(**QUESTION, stop=stop, on_text=pieces.append)
    assert cut == whole[: whole.index(stop)] == "".join(pieces)
    assert pocket.generate(**QUESTION, stop=["zebra", stop]) == cut
    two = pocket.generate(
        image=[QUESTION["image"]] * 2, prompt=["Where is the red star?", QUESTION["prompt"]], stop=stop
    )
    assert two == [pocket.generate(image=QUESTION["image"], prompt="Where is the red star?"), cut]


def test_beams_refuse_what_they_cannot_follow(pocket: VisionLanguageModel) -> None:
    for more in ({"choices": ["red"]}, {"stop": "."}, {"repetition_penalty": 1.2}):
        with pytest.raises(ValueError, match="need num_beams=1"):
            pocket.generate(**QUESTION, num_beams=2, **more)


def test_the_tensor_form_takes_no_words(pocket: VisionLanguageModel) -> None:
    with pytest.raises(TypeError, match="one form or the other"):
        pocket.generate(torch.tensor([[7]]), stop=".")


def test_the_tokens_of_an_answer_are_those_that_the_model_writes(pocket: VisionLanguageModel) -> None:
    from nanovlm.inference.prompts import prepare_prompts

    batch = prepare_prompts(pocket, [QUESTION["prompt"]], [QUESTION["image"]])
    written = pocket.generate(**batch)[0].tolist()
    assert [*answer_ids(pocket, pocket.tokenizer.decode(written)), pocket.config.eos_token_id] == written


# -- what the loop gives back ------------------------------------------------------------------------------------------


def test_any_of_several_end_tokens_ends_a_row(pocket: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    full_stop = pocket.tokenizer.encode("a.")[-1]
    monkeypatch.setattr(pocket.config, "stop_token_ids", (full_stop,))
    assert pocket.generate(**QUESTION) == "top left: red star."
    assert pocket.generate(**QUESTION, num_beams=2) == "top left: red star."


def test_answers_are_plain_tensors(pocket: VisionLanguageModel) -> None:
    for num_beams in (1, 2):
        ids = pocket.generate(torch.tensor([[7, 8]]), max_new_tokens=3, num_beams=num_beams)
        assert not ids.is_inference() and not ids.requires_grad
        ids += 1  # an inference tensor refuses this


def test_what_a_row_draws_does_not_depend_on_the_others(pocket: VisionLanguageModel) -> None:
    ids, options = torch.tensor([[7, 8, 9], [9, 8, 7], [10, 11, 12]]), {"temperature": 2.0, "max_new_tokens": 6}
    together = pocket.generate(ids, num_generations=2, seed=5, **options)
    alone = [pocket.generate(ids[i : i + 1], num_generations=2, seed=5 + 2 * i, **options) for i in range(3)]
    seeds = pocket.generate(ids.flip(0), num_generations=2, seed=[9, 7, 5], **options)
    end = pocket.config.eos_token_id
    for i in range(3):
        for own in (alone[i], seeds[4 - 2 * i : 6 - 2 * i]):
            for mine, theirs in zip(own.tolist(), together[2 * i : 2 * i + 2].tolist(), strict=True):
                assert [t for t in mine if t != end] == [t for t in theirs if t != end]
    with pytest.raises(ValueError, match="3 prompts need 3 seeds"):
        pocket.generate(ids, seed=[1, 2], **options)
