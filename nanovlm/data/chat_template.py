"""Messages, and the chat templates (jinja programs that come with tokenizers) that turn them into one string."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jinja2

from nanovlm.data.template_sandbox import TemplateEnvironment
from nanovlm.data.tokenizer import Span
from nanovlm.settings import fits, shown

# Private-use characters that travel through the template with the text. They are taken out of incoming content.
START, END, GUARD = "\U0010fff0", "\U0010fff1", "\U0010fff2"
NO_MARKS = dict.fromkeys(map(ord, (START, END, GUARD)))
_ANSWER_ENDS = re.compile(f"([{START}{END}])")
IMAGE = object()  # a picture among the text parts of a message

Message = dict[str, Any]
Turn = tuple[str, list[Any]]  # role, parts: str or IMAGE

# nanoVLM's 222M generation was trained on this; it knows neither roles nor a special token between question and answer.
QUESTION_ANSWER = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}Question: {{ message.content }} Answer:"
    "{% elif message.role == 'assistant' %}{{ message.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Question: … Answer: has no place for a ' ~ message.role ~ ' message.') }}{% endif %}"
    "{% endfor %}"
)
_EDGE = "\f"  # white space that strip() removes and no template writes


class ChatTemplate:
    """A compiled template, and what a trial conversation shows about it.

    Attributes:
        uses_parts: it wants content as a list of parts (SmolVLM) and would drop a plain string without a word.
        strips: whether it strips an answer on the left, on the right.
        after_answer: what it writes after the last answer, such as "<|im_end|>\\n".

    Raises: ValueError if the source is not a template, or shows no text in either form.
    """

    def __init__(self, source: str, special_tokens: dict[str, str | None]) -> None:
        self.source = source
        self.special_tokens = {name: token for name, token in special_tokens.items() if token is not None}
        self._environment = TemplateEnvironment()
        try:
            self._template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"The chat template is not valid jinja: {error.message} (line {error.lineno}).") from error
        except Exception as error:  # Python's compiler refuses what is nested too deeply, each in its own way
            raise ValueError(f"The chat template cannot be compiled: {_in_a_line(error)}.") from error
        self.uses_parts = False
        answer = "answer-text"
        before, found, after = self._trial(answer)
        if not found:
            self.uses_parts = True
            before, found, after = self._trial(answer)
            if not found:
                raise ValueError("The chat template shows no message text, neither from strings nor from parts.")
        self.after_answer = after
        before, _, after = self._trial(_EDGE + answer + _EDGE, answer)
        self.strips = (not before.endswith(_EDGE), not after.startswith(_EDGE))

    def _trial(self, content: str, look_for: str | None = None) -> tuple[str, str, str]:
        roles = {"user": "question-text", "assistant": content}
        return self.render([self.message(*item) for item in roles.items()]).partition(look_for or content)

    def message(self, role: str, text: str, num_images: int = 0) -> dict[str, Any]:
        """One message in the form that this template reads; pictures stand before the text."""
        if not self.uses_parts:
            return {"role": role, "content": text}
        return {"role": role, "content": [*[{"type": "image"}] * num_images, {"type": "text", "text": text}]}

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        self._environment.restart()
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template refuses this conversation: {_in_a_line(error)}.") from error
        except Exception as error:  # it is a stranger's program, and can raise whatever Python's operators do
            raise ValueError(f"The chat template fails on this conversation: {_in_a_line(error)}.") from error


def _in_a_line(error: Exception) -> str:
    """Templates word their own errors; those of Python are named by their type."""
    text = " ".join(str(error).split()).rstrip(".")[:300]
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"


def place_images(messages: Sequence[Message], num_images: int | None) -> list[Turn]:
    """Messages -> (role, parts) with IMAGE where a picture stands."""
    turns = [_read_message(message) for message in messages]
    found = sum(part is IMAGE for _, parts in turns for part in parts)
    if num_images is None or num_images == found:
        return turns
    if found:
        raise ValueError(f"The messages have {found} image parts for {num_images} pictures; make the numbers equal.")
    for role, parts in turns:
        if role == "user":
            parts[:0] = [IMAGE] * num_images
            return turns
    raise ValueError("A picture stands before the user's text, but no message has the role user.")


def _read_message(message: Message) -> Turn:
    if not fits(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
        raise ValueError(f'A message is {{"role": …, "content": …}}, not {shown(message)}.')
    role, content = message["role"], message["content"]
    if isinstance(content, str):
        return role, [content]
    if not isinstance(content, list | tuple | type(None)):
        raise ValueError(f"The content of a message is a text or a list of parts, not {shown(content)}.")
    return role, [_read_part(part, role) for part in content or ()]


def _read_part(part: Any, role: str) -> Any:
    if isinstance(part, str):
        return part
    kind = part.get("type") if fits(part, dict) else part
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image" and role != "assistant":
        return IMAGE
    raise ValueError(f"A {role} message cannot hold a part of type {shown(kind)}.")


def take_marks(piece: str, in_answer: bool) -> tuple[str, list[Span], bool]:
    """Take the answer marks out of a piece -> (text, spans of answer in it, whether an answer goes on after it)."""
    text, answers, start = "", [], 0
    for chunk in _ANSWER_ENDS.split(piece):
        if chunk == START:
            in_answer, start = True, len(text)
        elif chunk == END:
            in_answer = False
            answers.append((start, len(text)))
        else:
            text += chunk
    if in_answer:
        answers.append((start, len(text)))
    return text, answers, in_answer
