"""The shipped tokenizer: reproducible, complete, one token per word, the same in tokenizers and transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nanovlm.data.thimble import SUBSETS, answers, thimble_scene
from nanovlm.data.thimble.glyphs import CHARACTERS
from nanovlm.data.train_tokenizer import SPECIAL_TOKENS, main

SHIPPED = Path(__file__).parent.parent / "assets" / "pocket"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


@pytest.fixture(scope="module")
def in_transformers():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(SHIPPED))


def test_the_recorded_command_writes_the_shipped_files_again(tmp_path, monkeypatch):
    for name in ("once", "twice"):
        monkeypatch.setattr(sys, "argv", ["train_tokenizer", "--out", str(tmp_path / name)])
        main()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes()
    # Releases of the tokenizers library may lay the file out in other ways; what it says has to be the same.
    once = json.loads((tmp_path / "once" / "tokenizer.json").read_text(encoding="utf-8"))
    shipped = json.loads((SHIPPED / "tokenizer.json").read_text(encoding="utf-8"))
    assert once["model"]["vocab"] == shipped["model"]["vocab"] and once["model"]["merges"] == shipped["model"]["merges"]
    assert once["added_tokens"] == shipped["added_tokens"]
    assert (tmp_path / "once" / "tokenizer_config.json").read_text() == (SHIPPED / "tokenizer_config.json").read_text()


def test_special_tokens_come_first_and_the_vocabulary_is_small(tokenizer):
    assert [tokenizer.id_to_token(i) for i in range(6)] == list(SPECIAL_TOKENS)
    assert SPECIAL_TOKENS == ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|image|>", "<|system|>")
    assert tokenizer.get_vocab_size() <= 1024
    assert tokenizer.encode("<|end|>").ids == [1]
    assert tokenizer.encode("red", add_special_tokens=True).ids == tokenizer.encode("red").ids


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text):
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_word_of_the_thimble_is_one_token(tokenizer, subset):
    for index in range(5000, 5300):  # not those that it was trained on
        for _, question, answer in thimble_scene(subset, "train", index)[1]:
            for text in (question, answer):
                spelled = sum(
                    c.isdigit() or (c.isupper() and not text[i + 1 : i + 2].islower()) for i, c in enumerate(text)
                )
                words = len(text.replace("?", " ?").replace(":", " :").replace(".", " .").replace(",", " ,").split())
                # Words and marks are one token each; spelled characters too, a space before them being one more.
                assert len(tokenizer.encode(text).ids) <= words + 2 * spelled, tokenizer.encode(text).tokens


def test_answers_are_short(tokenizer):
    for subset, kind, longest in (("shapes", "colour", 1), ("shapes", "where", 2), ("charts", "height", 1)):
        assert {len(tokenizer.encode(choice).ids) for choice in answers(subset, kind)} == {longest}


@settings(max_examples=50, deadline=None)
@given(st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=8))
def test_spelled_characters_are_one_token_each_wherever_they_stand(text):
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    alone = [tokenizer.token_to_id(character) for character in text]
    assert tokenizer.encode(text).ids == alone
    assert tokenizer.encode(f"says: {text}.").ids[-len(text) - 1 : -1] == alone


def test_transformers_reads_the_same_tokenizer(tokenizer, in_transformers):
    assert (in_transformers.eos_token, in_transformers.pad_token) == ("<|end|>", "<|pad|>")
    assert (in_transformers.image_token, in_transformers.image_token_id) == ("<|image|>", 4)
    assert len(in_transformers) == tokenizer.get_vocab_size()
    for text in ("What colour is the circle?", "K7Q", "<|user|>Où?<|end|>", " two  spaces\n"):
        assert in_transformers(text).input_ids == tokenizer.encode(text).ids
        assert in_transformers.decode(in_transformers(text).input_ids) == text


@pytest.mark.parametrize("prompt", [True, False])
def test_the_chat_template_writes_the_agreed_text(in_transformers, prompt):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": "top left"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And here?"}]},
    ]
    text = in_transformers.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    agreed = "<|system|>Be brief.<|user|>Where is it?<|assistant|>top left<|end|><|user|><|image|>And here?"
    assert text == agreed + ("<|assistant|>" if prompt else "")


def test_a_role_that_the_template_does_not_know_is_refused(in_transformers):
    with pytest.raises(Exception, match="system, user or assistant, not tool"):
        in_transformers.apply_chat_template([{"role": "tool", "content": "4"}], tokenize=False)
