"""Text <-> token ids, where text never turns into a special token by its spelling."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import AddedToken, Tokenizer

from nanovlm.files import read_json
from nanovlm.settings import fits, setting, shown

Span = tuple[int, int]
_SURROGATE = re.compile("[\ud800-\udfff]")
T = TypeVar("T", bound="TextTokenizer")


class TextTokenizer:
    """A fast tokenizer with its settings, as a model directory holds them. No transformers: it takes seconds to import.

    Only who asks for special tokens gets them: a user who types "<|end|>" has typed seven characters. The given
    tokenizer is switched to that (`encode_special_tokens`); its truncation and padding are switched off.

    Args:
        tokenizer: the tokenizer of a tokenizer.json.
        settings: what tokenizer_config.json holds: eos_token, and where known pad_token, image_token, chat_template.
    """

    def __init__(self, tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.settings = dict(settings)
        self.eos_token = _named(settings, "eos_token")
        if self.eos_token is None:
            raise ValueError("The tokenizer settings name no eos_token, so nothing would ever end an answer.")
        extra = settings.get("extra_special_tokens")
        self.pad_token = _named(settings, "pad_token") or self.eos_token
        self.image_token = _named(settings, "image_token") or _named(
            extra if isinstance(extra, dict) else {}, "image_token"
        )
        self._prepare()

    def _prepare(self) -> None:
        """What follows from the tokenizer: nothing of it is stored or pickled."""
        tokenizer = self.tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        named = [token for token in (self.eos_token, self.pad_token, self.image_token) if token]
        for token in named:
            if tokenizer.token_to_id(token) is None:
                raise ValueError(f"The tokenizer has no token {token!r}, which its settings name.")
        tokenizer.add_special_tokens(named)  # keeps their ids; a file may have them as ordinary vocabulary
        special = {
            t.content: t for t in tokenizer.get_added_tokens_decoder().values() if t.special or t.content in named
        }
        self._special_ids = {spelling: tokenizer.token_to_id(spelling) for spelling in special}
        # The longest first, and as in the tokenizers library a token may swallow the white space beside it.
        patterns = [
            (r"\s*" if token.lstrip else "") + f"(?:{re.escape(spelling)})" + (r"\s*" if token.rstrip else "")
            for spelling, token in sorted(special.items(), key=lambda item: -len(item[0]))
        ]
        self._split = re.compile(f"({'|'.join(patterns)})").split
        self._tokens_of = lru_cache(maxsize=1024)(self._encode_piece)  # the template's own pieces come again and again

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    @classmethod
    def from_pretrained(cls: type[T], directory: str | os.PathLike) -> T:
        """Read tokenizer.json and tokenizer_config.json; the template may lie in its own file, as transformers does.

        Raises: FileNotFoundError or ValueError, with one sentence.
        """
        directory = Path(directory)
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise FileNotFoundError(f"{directory} has no tokenizer.json, so it holds no tokenizer.")
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{file} is not a whole tokenizer ({error}). Fetch the file again.") from error
        settings = read_json(directory / "tokenizer_config.json")
        if (jinja := directory / "chat_template.jinja").is_file():
            try:
                settings["chat_template"] = jinja.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{jinja} is no text in UTF-8 ({error}). Fetch the file again.") from error
        elif "chat_template" not in settings and (directory / "chat_template.json").is_file():
            settings["chat_template"] = read_json(directory / "chat_template.json").get("chat_template")
        template = setting(settings, "chat_template", str | list | None, None)
        if isinstance(template, list):  # several, by name
            named = {setting(t, "name", str): setting(t, "template", str) for t in template if fits(t, dict)}
            settings["chat_template"] = named.get("default")
        return cls(tokenizer, settings)

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Write tokenizer.json and tokenizer_config.json (template included) into a model directory."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"))
        for other in directory.glob("chat_template.*"):  # an older tokenizer's, which would win over this one's
            other.unlink()
        names = {"eos_token": self.eos_token, "pad_token": self.pad_token, "image_token": self.image_token}
        settings = {**self.settings, **{name: token for name, token in names.items() if token}}
        settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id plus one."""
        return max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eos_token_id(self) -> int:
        return self._special_ids[self.eos_token]

    @property
    def pad_token_id(self) -> int:
        """The padding token; end-of-sequence where the tokenizer has none."""
        return self._special_ids[self.pad_token]

    @property
    def image_token_id(self) -> int | None:
        return None if self.image_token is None else self._special_ids[self.image_token]

    def add_tokens(self, tokens: Iterable[str], image_token: str | None = None) -> int:
        """Add special tokens, one of which may be the image placeholder. Returns how many were new."""
        new = self.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
        self.image_token = image_token or self.image_token
        self._prepare()
        return new

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Text -> ids. With special_tokens, their spellings become the tokens; else they stay ordinary text."""
        if not special_tokens:
            return self._encode_piece(text)[0]
        return [
            token
            for special, piece in self._pieces(text)
            for token in ([special] if special is not None else self._tokens_of(piece)[0])
        ]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Ids (a list or a 1-D tensor) -> text."""
        ids = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def _pieces(self, text: str) -> Iterator[tuple[int | None, str]]:
        """Text -> its pieces in order: (id, "") for a special token, (None, text) for what lies between."""
        for i, piece in enumerate(self._split(text)):
            if i % 2:
                yield self._special_ids[piece.strip()], ""
            elif piece:
                yield None, piece

    def _encode_piece(self, text: str) -> tuple[list[int], list[Span]]:
        """Text without special tokens -> ids, and the characters [start, end) that each token stands for."""
        # Half of a surrogate pair, which JSON can hold, is no character.
        encoding = self.tokenizer.encode(_SURROGATE.sub("\ufffd", text), add_special_tokens=False)
        return encoding.ids, encoding.offsets


def token_name(value: Any) -> str | None:
    """A special token's spelling; files hold strings, {"content": …} or null. What is no spelling gives None."""
    spelling = value.get("content") if isinstance(value, dict) else value
    return spelling if spelling and isinstance(spelling, str) else None


def _named(settings: Mapping[str, Any], key: str) -> str | None:
    """The token that a setting names; a setting that is there and names none is an error."""
    name = token_name(settings.get(key))
    if name is None and settings.get(key):
        raise ValueError(f'{key} must be the text of a token, or {{"content": text}}; it is {shown(settings[key])}.')
    return name
