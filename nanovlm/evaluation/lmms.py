"""lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) runs our models through its model interface.

lmms-eval is large and optional: nothing here imports it before `lmms_model` is called.

    from lmms_eval.evaluator import simple_evaluate
    from nanovlm import VisionLanguageModel
    from nanovlm.evaluation.lmms import lmms_model

    model = lmms_model(VisionLanguageModel.from_pretrained("runs/mine/best"))
    results = simple_evaluate(model=model, tasks=["mmstar"], batch_size=16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nanovlm.evaluation.likelihood import answer_log_probs

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


class Requests:
    """lmms-eval's kinds of request, answered by a model. lmms-eval sets `task_dict`: task -> split -> documents.

    A request's `args` are, for generation, (context, settings, doc_to_visual, doc_id, task, split), and for likelihood
    (context, continuation or doc_to_target, doc_to_visual, doc_id, task, split).
    """

    task_dict: dict[str, Any]

    def __init__(self, model: VisionLanguageModel, batch_size: int = 16) -> None:
        super().__init__()
        self.vlm, self.batch_size = model, batch_size

    def generate_until(self, requests: list[Any]) -> list[str]:
        answers = [""] * len(requests)
        groups: dict[tuple[int, float], list[int]] = {}
        for i, request in enumerate(requests):
            settings = request.args[1]
            key = int(settings.get("max_new_tokens", 64)), float(settings.get("temperature") or 0.0)
            groups.setdefault(key, []).append(i)
        for (max_new_tokens, temperature), members in groups.items():
            for start in range(0, len(members), self.batch_size):
                chosen = members[start : start + self.batch_size]
                texts = self.vlm.generate(
                    prompt=[requests[i].args[0] for i in chosen],
                    image=[self._images(requests[i]) for i in chosen],
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                )
                for i, text in zip(chosen, texts, strict=True):
                    answers[i] = _before(text, requests[i].args[1].get("until") or [])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy decoding would give it)."""
        contexts = [request.args[0] for request in requests]
        images = [self._images(request) for request in requests]
        targets = [self._target(request).strip() for request in requests]
        sums, _ = answer_log_probs(self.vlm, contexts, images, targets, self.batch_size)
        longest = max((len(self.vlm.tokenizer.encode(target)) for target in targets), default=0)
        greedy = self.vlm.generate(prompt=contexts, image=images, max_new_tokens=longest + 1) if requests else []
        return [(value, text == target) for value, text, target in zip(sums.tolist(), greedy, targets, strict=True)]

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError("This adapter answers single questions; choose a task of one round.")

    def _document(self, request: Any) -> Any:
        doc_id, task, split = request.args[3:6]
        return self.task_dict[task][split][doc_id]

    def _images(self, request: Any) -> list[Any]:
        return list(request.args[2](self._document(request)) or [])

    def _target(self, request: Any) -> str:
        target = request.args[1]
        return target if isinstance(target, str) else str(target(self._document(request)))


def lmms_model(model: VisionLanguageModel, batch_size: int = 16) -> Any:
    """The model as an object that lmms-eval's `simple_evaluate(model=…)` takes.

    Raises: ImportError that says what to install.
    """
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise ImportError(
            "lmms-eval is not installed. It is optional and large: pip install lmms-eval, best in an environment of "
            "its own."
        ) from error
    return type("NanoVLM", (Requests, lmms), {"__module__": __name__})(model, batch_size)


def _before(text: str, until: str | list[str]) -> str:
    """The text up to the first of the stop strings."""
    for stop in [until] if isinstance(until, str) else until:
        if stop:
            text = text.split(stop)[0]
    return text
