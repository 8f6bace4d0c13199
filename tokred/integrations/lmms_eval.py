"""``lmms_eval --model tokred``: the suites of lmms-eval on a patched multimodal model.

    lmms_eval --model tokred --model_args pretrained=llava-hf/llava-1.5-7b-hf,method=fopru,keep=0.25 --tasks gqa

``pretrained`` is what :func:`tokred.multimodal_assets.load_multimodal` takes; ``method`` a registered name; whatever
else is not named below is a knob of the method. Without ``method`` the model runs unpatched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch.nn.functional import cross_entropy

from tokred.errors import ConfigError
from tokred.methods import create_method
from tokred.multimodal_assets import load_multimodal
from tokred.patching import patch

_TAKEN_OVER = ("max_new_tokens", "do_sample", "temperature", "top_p", "num_beams")


def manifest() -> ModelManifest:
    """What lmms-eval reads from the entry point ``lmms_eval.models``."""
    return ModelManifest(model_id="tokred", simple_class_path=f"{__name__}.Tokred")


class Answerer(lmms):
    """A multimodal model of transformers, patched or not, that is loaded.

    Args:
        model: what answers.
        processor: its processor, with a chat template.
        batch_size: prompts that are answered together.
        look: called with the inputs of every batch once it is answered.
        report: called with the share of the requests that is answered.
    """

    is_simple = True

    def __init__(
        self,
        model: Any,
        processor: Any,
        batch_size: int = 1,
        look: Callable[[Mapping[str, Any]], None] = lambda inputs: None,
        report: Callable[[float], None] = lambda share: None,
    ) -> None:
        super().__init__()
        self.model, self.processor = model, processor
        self.batch_size_per_gpu, self.device = batch_size, model.device
        self._look, self._report = look, report

    @property
    def tokenizer(self) -> Any:
        """Of the processor."""
        return self.processor.tokenizer

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer greedily, or as the task asks; answers end where the task says."""
        answers: dict[int, str] = {}
        asked = [(index, request.args) for index, request in enumerate(requests)]
        for settings, group in _same_settings(asked):
            for start in range(0, len(group), self.batch_size_per_gpu):
                batch = group[start : start + self.batch_size_per_gpu]
                for (index, _), answer in zip(batch, self._answer([a for _, a in batch], settings), strict=True):
                    answers[index] = answer
                self._report(len(answers) / len(requests))
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """How unlikely each continuation is, and whether the model would write it.

        Returns:
            The mean negative logarithm of the probability of its tokens, of which lmms-eval takes the smallest (as its
            own models give it), and whether each of them is the likeliest.
        """
        found = []
        for request in requests:
            found.append(self._likelihood(*request.args))
            self._report(len(found) / len(requests))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Ask document by document, round by round, as long as the task asks; the answers of all rounds of each."""
        found = []
        for request in requests:
            found.append(self._rounds(*request.args))
            self._report(len(found) / len(requests))
        return found

    def _rounds(
        self,
        context: str,
        settings: Mapping[str, Any],
        to_visual: Callable[..., Any],
        to_text: Callable[..., Any],
        doc_id: int,
        task: str,
        split: str,
    ) -> list[str]:
        """The task is told the answers so far, and tells the next question, its images, and whether there is one."""
        doc = self.task_dict[task][split][doc_id]
        shown, answers, kept, ended = to_visual(doc), [], None, False
        while not ended:
            answers = [*answers, *self._write([self._shown(shown, context)], settings)]
            told = {"previous_output": answers, "round_idx": len(answers), "previous_round_info": kept}
            shown, context, ended, answers, kept = to_text(doc, **told)
        return list(answers)

    def _answer(self, batch: Sequence[tuple[Any, ...]], settings: Mapping[str, Any]) -> list[str]:
        return self._write([self._prompt(context, *place) for context, _, *place in batch], settings)

    @torch.inference_mode()
    def _write(self, shown: Sequence[tuple[list[Any], str]], settings: Mapping[str, Any]) -> list[str]:
        """The answers to prompts with their images."""
        inputs = self._inputs([images for images, _ in shown], [prompt for _, prompt in shown])
        asked = {name: settings[name] for name in _TAKEN_OVER if settings.get(name) is not None}
        said = self.model.generate(**inputs, **{"max_new_tokens": 256, "do_sample": False, **asked})
        self._look(inputs)
        said = said[:, inputs["input_ids"].shape[1] :]
        ends = settings.get("until") or []
        return [_until(answer, ends) for answer in self.processor.batch_decode(said, skip_special_tokens=True)]

    @torch.inference_mode()
    def _likelihood(self, context: str, target: Any, *place: Any) -> tuple[float, bool]:
        _, doc_id, task, split = place
        continuation = target if isinstance(target, str) else str(target(self.task_dict[task][split][doc_id]))
        images, prompt = self._prompt(context, *place)
        space = "" if prompt[-1:].isspace() or continuation[:1].isspace() else " "
        asked = self._inputs([images], [prompt])["input_ids"].shape[1]
        inputs = self._inputs([images], [prompt + space + continuation])
        words = inputs["input_ids"][0, asked:]
        logits = self.model(**inputs).logits[0, asked - 1 : -1].float()
        self._look(inputs)
        return float(cross_entropy(logits, words)), bool((logits.argmax(dim=-1) == words).all())

    def _prompt(self, context: str, to_visual: Any, doc_id: int, task: str, split: str) -> tuple[list[Any], str]:
        return self._shown(to_visual(self.task_dict[task][split][doc_id]), context)

    def _shown(self, pictures: Sequence[Any] | None, context: str) -> tuple[list[Any], str]:
        """The images of a document, and the question about them by the chat template of the model."""
        images = [p.convert("RGB") for p in pictures or [] if _is_image(p)]
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": context}]
        turn = [{"role": "user", "content": content}]
        return images, self.processor.apply_chat_template(turn, add_generation_prompt=True)

    def _inputs(self, images: list[list[Any]], prompts: list[str]) -> Any:
        shown = images if any(images) else None
        inputs = self.processor(images=shown, text=prompts, padding=True, padding_side="left", return_tensors="pt")
        return inputs.to(self.device, self.model.dtype)


class Tokred(Answerer):
    """The same by names, as ``--model_args`` gives them.

    Args:
        pretrained: a shipped model, a folder, or an id of the hub.
        method: what to patch it with.
        batch_size: prompts that are answered together.
        device: where to run.
        dtype: of the weights.
        knobs: of the method, such as ``keep=0.25``.
    """

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "float32",
        **knobs: Any,
    ) -> None:
        if knobs and method is None:
            raise ConfigError(f"{', '.join(knobs)} belong to a method; name it with method=.")
        model, processor = load_multimodal(pretrained)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        super().__init__(model.to(place, getattr(torch, dtype)), processor, int(batch_size))
        self.handle = patch(self.model, create_method(method, **knobs)) if method is not None else None


def _same_settings(asked: Sequence[tuple[int, tuple[Any, ...]]]) -> list[tuple[dict[str, Any], list[Any]]]:
    """Requests in groups that generate with the same settings."""
    groups: dict[str, tuple[dict[str, Any], list[Any]]] = {}
    for entry in asked:
        settings = dict(entry[1][1])
        groups.setdefault(repr(sorted(settings.items(), key=str)), (settings, []))[1].append(entry)
    return list(groups.values())


def _until(answer: str, ends: str | Sequence[str]) -> str:
    for end in [ends] if isinstance(ends, str) else ends:
        if end and end in answer:
            answer = answer[: answer.index(end)]
    return answer.strip()


def _is_image(picture: Any) -> bool:
    if not isinstance(picture, Image.Image):
        raise ConfigError(f"The task shows a {type(picture).__name__}; only images are supported.")
    return True
