"""Conversations -> token ids, and which of them are learned."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nanovlm.config import IGNORE
from nanovlm.data.chat_template import (
    END,
    GUARD,
    IMAGE,
    NO_MARKS,
    QUESTION_ANSWER,
    START,
    ChatTemplate,
    Message,
    Turn,
    place_images,
    take_marks,
)
from nanovlm.data.tokenizer import TextTokenizer, token_name

if TYPE_CHECKING:
    from nanovlm.config import VLMConfig


def shift_labels(ids: Sequence[int], supervised: Sequence[bool]) -> list[int]:
    """The target at t is the token at t + 1 if that one is supervised, else -100. The only place where labels shift.

    ids and supervised have one length T; so has the result, and its last entry is always -100.
    """
    after = [token if learn else IGNORE for token, learn in zip(ids[1:], supervised[1:], strict=True)]
    return [*after, IGNORE] if ids else []


class ChatTokenizer(TextTokenizer):
    """A tokenizer with a chat template.

    How it works: answers are put between marks, and every character of the content that could begin a special token is
    guarded; the template renders the whole conversation once; the result is split at the special tokens, which now can
    only be the template's own; each piece of text is encoded as a whole, as transformers would; and the marks tell
    which tokens are answer.
    """

    def _prepare(self) -> None:
        super()._prepare()
        # A guard after each possible beginning: no spelling survives, however the template joins the text.
        beginnings = "".join({spelling[0] for spelling in self._special_ids})
        self._spelling = re.compile("|".join(map(re.escape, self._special_ids)))
        self._begins_special = re.compile(f"[{re.escape(beginnings)}]")
        self._templates: dict[str, ChatTemplate] = {}
        self._end_ids: dict[str, int | None] = {}

    def template(self, prompt_format: str = "chat") -> ChatTemplate:
        """A compiled template: "chat" is the tokenizer's own, "question_answer" that of the 222M model."""
        if prompt_format not in self._templates:
            if prompt_format not in ("chat", "question_answer"):
                raise ValueError(f"prompt_format is chat or question_answer, not {prompt_format!r}.")
            source = self.settings.get("chat_template") if prompt_format == "chat" else QUESTION_ANSWER
            if not source:
                raise ValueError(
                    "This tokenizer has no chat template: put one into its chat_template setting, "
                    'or use prompt_format="question_answer".'
                )
            tokens = {name: token_name(value) for name, value in self.settings.items() if name.endswith("_token")}
            names = {"eos_token": self.eos_token, "pad_token": self.pad_token}
            self._templates[prompt_format] = ChatTemplate(source, {**tokens, **names})
        return self._templates[prompt_format]

    def end_of_turn_id(self, prompt_format: str = "chat") -> int | None:
        """The special token with which the template closes an answer, and at which generation has to stop."""
        if prompt_format not in self._end_ids:
            after = self._split(self.template(prompt_format).after_answer)
            self._end_ids[prompt_format] = self._special_ids[after[1].strip()] if len(after) > 1 else None
        return self._end_ids[prompt_format]

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        num_images: int | None = None,
        prompt_format: str = "chat",
    ) -> str:
        """The conversation as text, one image token per picture: for people to read. `encode_chat` makes the ids."""
        turns = place_images(messages, num_images)
        return self._render(turns, add_generation_prompt, self.template(prompt_format), _plain)

    def encode_chat(
        self,
        messages: Sequence[Message],
        num_images: int | None = None,
        num_image_tokens: int = 0,
        add_generation_prompt: bool = False,
        prompt_format: str = "chat",
        image_texts: Sequence[str] | None = None,
    ) -> tuple[list[int], list[bool]]:
        """A conversation -> (ids, supervised), both of one length.

        `supervised` marks the tokens of the assistant's answers and the end-of-turn token after each; a token that
        holds both template text and answer text counts as answer.

        Args:
            messages: [{"role": …, "content": …}]; content is a text, or a list of parts:
                {"type": "text", "text": …} and {"type": "image"}.
            num_images: pictures of this conversation. Without image parts they stand before the first user text. None:
                as many as there are image parts.
            num_image_tokens: placeholders per picture; 0 where the model puts image tokens in front of the text.
            add_generation_prompt: end where the assistant's answer begins.
            image_texts: what stands for each picture, special tokens included, where that is more than placeholders
                (ImageProcessor.image_texts gives it).

        Raises: ValueError if parts and pictures do not match, or the template refuses or loses something.
        """
        turns = place_images(messages, num_images)
        if num_image_tokens == 0:
            turns = [(role, [part for part in parts if part is not IMAGE]) for role, parts in turns]
        rendered = self._marked_text(turns, add_generation_prompt, self.template(prompt_format))
        num_answers = sum(role == "assistant" for role, _ in turns)
        if rendered.count(START) != num_answers or rendered.count(END) != num_answers:
            raise ValueError("The chat template drops or repeats an assistant's answer, so it cannot be supervised.")
        wanted = sum(part is IMAGE for _, parts in turns for part in parts)
        if wanted and (shown := rendered.count(self._image_text())) != wanted:
            raise ValueError(f"The chat template shows {shown} of {wanted} pictures.")
        if image_texts is not None and wanted:
            rendered = self._insert(rendered, image_texts)
            num_image_tokens = 1
        return self._encode_rendered(rendered, num_image_tokens, self.end_of_turn_id(prompt_format))

    def encode_prompt(
        self, text: str, num_images: int, config: VLMConfig, image_texts: Sequence[str] | None = None
    ) -> list[int]:
        """A single question -> the ids that `generate` continues, in the form that the model of `config` wants."""
        return self.encode_chat(
            [{"role": "user", "content": text}],
            num_images=num_images,
            num_image_tokens=0 if config.image_token_id is None else config.num_image_tokens,
            add_generation_prompt=True,
            prompt_format=config.prompt_format,
            image_texts=image_texts,
        )[0]

    def _marked_text(self, turns: list[Turn], add_generation_prompt: bool, template: ChatTemplate) -> str:
        """The conversation with marks and guards, which must not change what the template makes of it.

        A template that looks into the text (for a command, say) may not find its words between guards; then only whole
        spellings of special tokens are guarded, as long as the special tokens stay the same.
        """
        plain = self._render(turns, add_generation_prompt, template, _plain)
        rendered = self._render(turns, add_generation_prompt, template, self._guarded)
        if rendered.translate(NO_MARKS) == plain:
            return rendered
        again = self._render(turns, add_generation_prompt, template, self._guarded_spellings)
        specials = [[special for special, _ in self._pieces(text) if special is not None] for text in (rendered, again)]
        if again.translate(NO_MARKS) != plain or specials[0] != specials[1]:
            raise ValueError(
                "The chat template computes with the messages' text, so the answers cannot be found again."
            )
        return again

    def _render(
        self, turns: list[Turn], add_generation_prompt: bool, template: ChatTemplate, guard: Callable[[str], str]
    ) -> str:
        messages = []
        for role, parts in turns:
            if role == "assistant":
                text = guard("".join(parts))
                messages.append(template.message(role, text if guard is _plain else _mark(text, template)))
            elif template.uses_parts:
                content = [{"type": "image"} if p is IMAGE else {"type": "text", "text": guard(p)} for p in parts]
                messages.append({"role": role, "content": content})
            else:
                content = "".join(self._image_text() if part is IMAGE else guard(part) for part in parts)
                messages.append({"role": role, "content": content})
        return template.render(messages, add_generation_prompt)

    def _image_text(self) -> str:
        if self.image_token is None:
            raise ValueError("This tokenizer has no image token: add one with add_tokens([name], image_token=name).")
        return self.image_token

    def _insert(self, rendered: str, image_texts: Sequence[str]) -> str:
        """Put each picture's text where the template has its image token."""
        around = rendered.split(self._image_text())
        if len(image_texts) != len(around) - 1:
            raise ValueError(f"{len(around) - 1} pictures need as many image_texts; got {len(image_texts)}.")
        return around[0] + "".join(text + after for text, after in zip(image_texts, around[1:], strict=True))

    def _guarded(self, text: str) -> str:
        return self._begins_special.sub(rf"\g<0>{GUARD}", _plain(text))

    def _guarded_spellings(self, text: str) -> str:
        return self._spelling.sub(lambda found: f"{found[0][0]}{GUARD}{found[0][1:]}", _plain(text))

    def _encode_rendered(
        self, rendered: str, num_image_tokens: int, end_id: int | None
    ) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        supervised: list[bool] = []
        in_answer, after_answer = False, None  # after_answer: where the tokens begin that lead to the end-of-turn token
        for special, piece in self._pieces(rendered):
            if special is None:
                text, answers, in_answer = take_marks(piece.replace(GUARD, ""), in_answer)
                tokens, spans = self._tokens_of(text)
                if answers:
                    after_answer = None if in_answer else len(ids) + sum(start < answers[-1][1] for start, _ in spans)
                supervised += [any(a < end and start < b for a, b in answers) for start, end in spans]
                ids += tokens
            elif special == self.image_token_id:
                ids += [special] * num_image_tokens
                supervised += [False] * num_image_tokens
            else:
                closes = after_answer is not None and special == end_id
                if closes:
                    supervised[after_answer:] = [True] * (len(ids) - after_answer)
                after_answer = None
                ids.append(special)
                supervised.append(closes)
        return ids, supervised


def _plain(text: str) -> str:
    """Without characters that have a meaning here."""
    return text if text.isascii() else text.translate(NO_MARKS)


def _mark(text: str, template: ChatTemplate) -> str:
    """The answer between its marks, stripped as the template would (it could not see through the marks)."""
    left, right = template.strips
    text = text.lstrip() if left else text
    return f"{START}{text.rstrip() if right else text}{END}"
