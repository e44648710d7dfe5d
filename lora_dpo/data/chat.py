"""From turns to token ids: one prompt, its completions, one BOS, and an end of turn that is never cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from jinja2.exceptions import TemplateError

from lora_dpo.data.example import Example
from lora_dpo.data.pair import Message, Pair
from lora_dpo.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "lora dpo probe"
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class TokenisedPair:
    """A pair as token ids: the sequences are `prompt_ids + chosen_ids` and `prompt_ids + rejected_ids`."""

    noun: ClassVar[str] = "pair"
    pair: Pair
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer of the two sequences."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))

    @property
    def completions(self) -> tuple[list[int], ...]:
        """The answers' tokens."""
        return self.chosen_ids, self.rejected_ids

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation up to the answers."""
        return self.pair.prompt

    @property
    def answer(self) -> str:
        """The answer that is preferred."""
        return self.pair.chosen

    @property
    def group(self) -> str:
        """Identifies the question."""
        return self.pair.group

    @property
    def origin(self) -> str:
        """Where the pair was read."""
        return self.pair.origin


@dataclass(frozen=True, slots=True)
class TokenisedExample:
    """An example as token ids: the sequence is `prompt_ids + answer_ids`."""

    noun: ClassVar[str] = "example"
    example: Example
    prompt_ids: list[int]
    answer_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return len(self.prompt_ids) + len(self.answer_ids)

    @property
    def completions(self) -> tuple[list[int], ...]:
        """The answer's tokens."""
        return (self.answer_ids,)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The conversation up to the answer."""
        return self.example.prompt

    @property
    def answer(self) -> str:
        """The answer to be learnt."""
        return self.example.answer

    @property
    def group(self) -> str:
        """Identifies the question."""
        return self.example.group

    @property
    def origin(self) -> str:
        """Where the example was read."""
        return self.example.origin


class TurnEncoder:
    """Writes turns the way the model was taught to read them.

    With a chat template, the template decides. Without one (base models) the plain form is used: an optional
    system paragraph, then `User: ...` and `Assistant: ...` lines, the answer after `Assistant: `.

    Args:
        tokenizer: The model's tokenizer.
        template: `chat`, `plain`, or `auto` (the chat template if there is one).

    Attributes:
        style: `chat` or `plain`.
        adds_bos: Whether the tokenizer itself begins a text with its BOS.
        folds_system: Whether system turns are folded into the first user turn.
        end_of_turn_id: The token that ends every answer.
        answers_apart: How many answers were tokenised apart from their prompt so far.

    Raises:
        UserError: A chat template is asked for and there is none, or no end-of-turn token exists.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Literal["auto", "chat", "plain"] = "auto") -> None:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if template == "chat" and not has_template:
            raise UserError(
                "model.template is 'chat', but the tokenizer has no chat template.",
                fix="Use model.template=plain, or the instruction-tuned variant of the model.",
            )
        self.tokenizer = tokenizer
        self.style = "chat" if has_template and template != "plain" else "plain"
        self.adds_bos = tokenizer.bos_token_id is not None and tokenizer(_PROBE)["input_ids"][:1] == [
            tokenizer.bos_token_id
        ]
        self.folds_system = self.style == "chat" and not self._takes_system()
        self.end_of_turn_id = self._find_end_of_turn()
        self.answers_apart = 0

    @property
    def stops(self) -> set[int]:
        """Tokens that end an answer which is being written."""
        return {self.end_of_turn_id, self.tokenizer.eos_token_id} - {None}

    def render(self, prompt: Sequence[Message], answer: str | None = None) -> str:
        """Returns the conversation as text; without an answer it ends where the model's answer begins."""
        turns = list(self._fold_system(prompt) if self.folds_system else prompt)
        if self.style == "plain":
            return _plain_text(turns, answer)
        if answer is None:
            return self._apply(turns, add_generation_prompt=True)
        return self._apply([*turns, {"role": "assistant", "content": answer}])

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """Returns the tokens after which the model answers."""
        return self._with_one_bos(self._encode([self.render(prompt)])[0])

    def encode(self, pairs: Sequence[Pair]) -> Iterator[TokenisedPair]:
        """Tokenises pairs, a thousand at a time, in order."""
        for start in range(0, len(pairs), _BATCH):
            yield from self._encode_batch(pairs[start : start + _BATCH])

    def encode_examples(self, examples: Sequence[Example]) -> Iterator[TokenisedExample]:
        """Tokenises examples, a thousand at a time, in order; an answer gets the tokens that DPO scores."""
        for start in range(0, len(examples), _BATCH):
            batch = examples[start : start + _BATCH]
            turns = [example.prompt for example in batch]
            prompts, prompt_ids = self._prompts(turns)
            answers = self._completions(prompts, prompt_ids, turns, [example.answer for example in batch])
            for parts in zip(batch, prompt_ids, answers, strict=True):
                yield TokenisedExample(*parts)

    def encode_answers(self, prompt: Sequence[Message], answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Tokenises several answers to one prompt; returns prompt and completion of each."""
        text, ids = self.render(prompt), self.prompt_ids(prompt)
        count = len(answers)
        completions = self._completions([text] * count, [ids] * count, [prompt] * count, answers)
        return [(ids, completion) for completion in completions]

    def _encode_batch(self, pairs: Sequence[Pair]) -> Iterator[TokenisedPair]:
        turns = [pair.prompt for pair in pairs]
        prompts, prompt_ids = self._prompts(turns)
        chosen = self._completions(prompts, prompt_ids, turns, [pair.chosen for pair in pairs])
        rejected = self._completions(prompts, prompt_ids, turns, [pair.rejected for pair in pairs])
        for parts in zip(pairs, prompt_ids, chosen, rejected, strict=True):
            yield TokenisedPair(*parts)

    def _prompts(self, turns: Sequence[Sequence[Message]]) -> tuple[list[str], list[list[int]]]:
        texts = [self.render(prompt) for prompt in turns]
        return texts, [self._with_one_bos(ids) for ids in self._encode(texts)]

    def _completions(
        self,
        prompts: list[str],
        prompt_ids: list[list[int]],
        turns: Sequence[Sequence[Message]],
        answers: Sequence[str],
    ) -> list[list[int]]:
        whole = [self.render(prompt, answer) for prompt, answer in zip(turns, answers, strict=True)]
        whole_ids = [self._with_one_bos(ids) for ids in self._encode(whole)]
        completions = []
        for prompt, start, text, ids, answer in zip(prompts, prompt_ids, whole, whole_ids, answers, strict=True):
            if ids[: len(start)] == start:
                completion = ids[len(start) :]
            else:  # tokens merge across the border, or the template renders the prompt differently with an answer
                self.answers_apart += 1
                rest = text[len(prompt) :] if text.startswith(prompt) else answer
                completion = self._encode([rest])[0]
            completions.append(self._ending_on_end_of_turn(completion))
        return completions

    def _ending_on_end_of_turn(self, ids: list[int]) -> list[int]:
        """Cuts what a template writes after the end of turn (a newline, mostly), or adds the missing token."""
        if self.end_of_turn_id in ids:
            last = len(ids) - 1 - ids[::-1].index(self.end_of_turn_id)
            return ids[: last + 1]
        return [*ids, self.end_of_turn_id]

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        start = 0
        while ids[start : start + 1] == [bos]:
            start += 1
        return [bos, *ids[start:]] if start or self.adds_bos else ids

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _apply(self, turns: list[Message], **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(
                f"The tokenizer's chat template refuses a conversation with the turns {roles}: {error}",
                fix="Turns must alternate between user and assistant; correct the data, or use model.template=plain.",
            ) from None

    def _takes_system(self) -> bool:
        turns: list[Message] = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "Hello"}]
        try:
            return _PROBE in self.tokenizer.apply_chat_template(turns, tokenize=False)
        except TemplateError:
            return False

    def _fold_system(self, prompt: Sequence[Message]) -> Sequence[Message]:
        if len(prompt) < 2 or prompt[0]["role"] != "system":
            return prompt
        first: Message = {"role": "user", "content": f"{prompt[0]['content']}\n\n{prompt[1]['content']}"}
        return [first, *prompt[2:]]

    def _find_end_of_turn(self) -> int:
        """Finds the special token that follows an answer; without one, the end-of-sequence token."""
        if self.style == "chat":
            text = self.render([{"role": "user", "content": "Hello"}], _PROBE)
            after = self._encode([text.rpartition(_PROBE)[2]])[0]
            special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
            found = next((token for token in after if token in special), None)
            if found is not None:
                return found
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                "The tokenizer has no end-of-sequence token, so an answer could never end.",
                fix="Set eos_token in the model's tokenizer_config.json.",
            )
        return self.tokenizer.eos_token_id


def _plain_text(turns: list[Message], answer: str | None) -> str:
    names = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
    paragraphs = [f"{names[turn['role']]}{turn['content'].strip()}" for turn in turns]
    last = "Assistant:" if answer is None else f"Assistant: {answer.strip()}"
    return "\n\n".join([*paragraphs, last])


def check_turns(encoder: TurnEncoder, pairs: Sequence[TokenisedPair | TokenisedExample]) -> None:
    """Asserts on a run's first pairs (or examples) what silent tokenisation bugs break.

    Args:
        encoder: What tokenised the pairs.
        pairs: The first pairs of the run.

    Raises:
        UserError: A sequence has no or two BOS tokens, the prompt is not what the model sees when it generates,
            or a completion does not end on the end-of-turn token.
    """
    bos, end = encoder.tokenizer.bos_token_id, encoder.end_of_turn_id
    for pair in pairs:
        problem = None
        if bos is not None and pair.prompt_ids[:2] == [bos, bos]:
            problem = "the prompt begins with two BOS tokens"
        elif encoder.adds_bos and pair.prompt_ids[:1] != [bos]:
            problem = "the prompt does not begin with the BOS token"
        elif pair.prompt_ids != encoder.prompt_ids(pair.prompt):
            problem = "the prompt's tokens differ from those that the model sees when it generates"
        elif not all(pair.completions):
            problem = "a completion has no tokens"
        elif any(completion[-1] != end for completion in pair.completions):
            problem = "a completion does not end on the end-of-turn token"
        if problem:
            raise UserError(
                f"Tokenisation is not sound: {problem}.",
                why="A model trained on this would learn from a context that it never sees.",
                fix="See the tokens with `lora-dpo data RECIPE`; model.template=plain avoids a broken chat template.",
                where=pair.origin,
            )
