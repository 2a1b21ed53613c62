"""Messages, and the chat templates (jinja programs that come with tokenizers) that turn them into one string."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, ClassVar

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nanovlm.data.tokenizer import Span

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


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks answers for transformers; here the block is plain content."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    """Templates are other people's programs, so they run in the sandbox, with what transformers gives them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


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
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"The chat template is not valid jinja: {error.message} (line {error.lineno}).") from error
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
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"The chat template refuses this conversation: {error}") from error
        except (TypeError, AttributeError, KeyError, IndexError) as error:
            raise ValueError(f"The chat template fails on this conversation: {error!r}.") from error


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
    try:
        role, content = message["role"], message["content"]
    except (TypeError, KeyError):
        raise ValueError(f'A message is {{"role": …, "content": …}}, not {message!r}.') from None
    if isinstance(content, str):
        return role, [content]
    parts = []
    for part in content or ():
        if isinstance(part, str):
            parts.append(part)
        elif part["type"] == "text":
            parts.append(part["text"])
        elif part["type"] == "image" and role != "assistant":
            parts.append(IMAGE)
        else:
            raise ValueError(f"A {role} message cannot hold a part of type {part['type']!r}.")
    return role, parts


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
