"""Train the pocket model's tokenizer: `python -m nanovlm.data.train_tokenizer --out assets/pocket`.

Byte-level byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909) on the words of the Thimble. All 256 bytes are
in the vocabulary, so any text in any language comes back as it was, only in more tokens. The same call writes the same
bytes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from nanovlm.data.thimble import SPLITS, SUBSETS, thimble_scene

SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|image|>", "<|system|>")
# Digits, and capitals that begin no word, stand alone: a model that spells "K7Q" needs one token per character. A space
# in front would make a second token of the same character, hence it is cut off too.
LONE_CHARACTERS = r"\p{N}|\p{Lu}(?!\p{Ll})"
# A turn opens with the speaker's token. Content is a string or a list of parts; a picture part is its placeholder.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('A message has the role system, user or assistant, not ' ~ message['role'] ~ '.') }}"
    "{% endif %}"
    "{{ '<|' ~ message['role'] ~ '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|image|>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|end|>",
    "pad_token": "<|pad|>",
    "extra_special_tokens": {"image_token": "<|image|>"},
    "image_token": "<|image|>",
    "model_max_length": 1024,
    "clean_up_tokenization_spaces": False,
    "padding_side": "left",
    "chat_template": CHAT_TEMPLATE,
}


def thimble_words(samples: int = 400) -> list[str]:
    """Every piece, space in front included, into which the texts of each subset and split are cut before merging.

    As a set: how often the Thimble asks what does not change the tokenizer.
    """
    cut = _pre_tokenizer().pre_tokenize_str
    texts = {
        text
        for subset in SUBSETS
        for split in SPLITS
        for index in range(samples)
        for _, question, answer in thimble_scene(subset, split, index)[1]
        for text in (question, answer)
    }
    return sorted({text[start:end] for text in texts for _, (start, end) in cut(text)})


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LONE_CHARACTERS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def train_tokenizer() -> Tokenizer:
    """The smallest vocabulary in which every word of the Thimble, with the space before it, is one token."""
    words = thimble_words()
    low, high = len(SPECIAL_TOKENS) + 256, 1024
    while low < high:
        middle = (low + high) // 2
        tokenizer = _train(words, middle)
        if all(len(tokenizer.encode(word).ids) == 1 for word in words):
            high = middle
        else:
            low = middle + 1
    return _train(words, low)


def _train(words: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanovlm.data.train_tokenizer", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model directory to write into")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens -> {out / 'tokenizer.json'}")


if __name__ == "__main__":
    main()
