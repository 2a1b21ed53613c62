"""Small tokenizers made on the spot: byte-level BPE, so that any text can be encoded."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from nanovlm.data.chat import ChatTokenizer

POCKET = (
    "{% for m in messages %}{% if m.role == 'system' %}<|system|>{{ m.content }}"
    "{% elif m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMOLVLM = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SETTINGS = {
    "pocket": {
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "image_token": "<|image|>",
        "chat_template": POCKET,
    },
    "chatml": {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "pad_token": "<|im_end|>",
        "image_token": "<|image|>",
        "chat_template": CHATML,
    },
    "trimming": {
        "eos_token": "<|im_end|>",
        "image_token": "<|image|>",
        "chat_template": TRIMMING,
    },
    "smolvlm": {
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "extra_special_tokens": {"image_token": "<image>"},
        "chat_template": SMOLVLM,
    },
}
SPECIALS = {
    "pocket": ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|image|>", "<|system|>"],
    "chatml": ["<|im_start|>", "<|im_end|>", "<|image|>"],
    "trimming": ["<|im_start|>", "<|im_end|>", "<|image|>"],
    "smolvlm": ["<|im_start|>", "<|im_end|>", "<image>", "<end_of_utterance>"],
}
TEXT = """What colour is the circle? Where is the red square? How many shapes are there? Describe the picture.
Question: What is this? Answer: a red circle at the top left. yes no 1 2 3 system user assistant Assistant: User:
"""


@lru_cache
def _trained(kind: str) -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind == "chatml")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS[kind],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    return tokenizer.to_str()


def raw_tokenizer(kind: str = "pocket") -> Tokenizer:
    return Tokenizer.from_str(_trained(kind))


def tiny_tokenizer(kind: str = "pocket") -> ChatTokenizer:
    return ChatTokenizer(raw_tokenizer(kind), SETTINGS[kind])
