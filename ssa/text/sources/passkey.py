"""Pass-key retrieval: a five-digit number hidden in filler text and asked for at the end (table 4 of the paper).

The texts of the paper are not published; wording and sampling are ours::

    A pass key is hidden in the text below. [filler] The pass key is 58213. Do not forget 58213. [filler]
    What is the pass key? The pass key is 58213.

A text is a pure function of its split and its index; splits use different random numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ssa.config import DataConfig
from ssa.files import hash_of

DOCUMENTS = 100_000  # in the training split, if data.max_documents is null
VERSION = 1  # increment when texts are drawn or worded differently
KEYS = range(10_000, 100_000)
INTRODUCTION = "A pass key is hidden in the text below."
KEY_SENTENCE = "The pass key is {key}. Do not forget {key}."
QUESTION = "What is the pass key? The pass key is"
FILLER = (
    "The river runs slowly past the old mill.",
    "A light rain fell on the roofs all morning.",
    "Two dogs sleep in the shade of a tree.",
    "The baker opens her shop before sunrise.",
    "Some clouds drift over the quiet hills.",
    "A train leaves the station every hour.",
    "The children draw houses on the wall.",
    "The wind turns cold late in the autumn.",
    "An old man reads a paper by the window.",
    "She waters the plants.",
    "Birds sing at dawn.",
)
_TOKENS_AROUND, _TOKENS_A_SENTENCE = 60, 10  # approximately, for most tokenizers


@dataclass(frozen=True)
class PassKeyText:
    key: str  # five digits
    filler: tuple[str, ...]  # all other sentences
    place: int  # number of filler sentences before the key

    @property
    def prompt(self) -> str:
        """The text up to the answer."""
        before, after = self.filler[: self.place], self.filler[self.place :]
        return " ".join((INTRODUCTION, *before, KEY_SENTENCE.format(key=self.key), *after, QUESTION))

    @property
    def answer(self) -> str:
        return f" {self.key}"

    @property
    def whole(self) -> str:
        return f"{self.prompt}{self.answer}."


class PassKeys:
    """Training texts: key, first filler sentence and place of the key are uniform, the number of sentences is
    log-uniform, so that most texts are short.  Filler sentences have a fixed cyclic order, so only the key is random.

    The training split has ``data.max_documents`` texts (null: `DOCUMENTS`), validation and test each
    ``data.validation_fraction`` times as many.
    """

    splits = frozenset({"train", "validation", "test"})
    notes: Sequence[str] = ()

    def __init__(self, data: DataConfig) -> None:
        assert data.passkey is not None, "ensured by DataConfig"
        documents = data.max_documents or DOCUMENTS
        held_out = max(1, round(data.validation_fraction * documents))
        self._counts = {"train": documents, "validation": held_out, "test": held_out}
        fewest, most = data.passkey.min_sentences, data.passkey.max_sentences
        fitting = (data.block_size - _TOKENS_AROUND) // _TOKENS_A_SENTENCE
        self.sentences = range(fewest, (max(fewest, fitting) if most is None else most) + 1)

    @property
    def fingerprint(self) -> str:
        words = (INTRODUCTION, KEY_SENTENCE, QUESTION, FILLER)
        return hash_of(["passkey", VERSION, words, self.sentences.start, self.sentences.stop, self._counts])

    def documents(self, split: str) -> Iterator[str]:
        return (self.text(split, number).whole for number in range(self._counts[split]))

    def text(self, split: str, number: int) -> PassKeyText:
        draw = random.Random(f"passkey {split} {number}")
        key, start = str(draw.choice(KEYS)), draw.randrange(len(FILLER))
        low, high = math.log(self.sentences.start + 1), math.log(self.sentences.stop + 1)
        n = min(int(math.exp(draw.uniform(low, high))) - 1, self.sentences.stop - 1)
        filler = tuple(FILLER[(start + number) % len(FILLER)] for number in range(n))
        return PassKeyText(key, filler, draw.randint(0, n))


class PassKeyPrompts:
    """Texts of a given length in tokens, with the key at a given depth.

    ``count`` returns the number of tokens of a text, including special tokens that the model gets; ``shortest`` is that
    of a text without filler, the largest of many keys.  No text is longer than ``longest``, where a model has no room.
    """

    def __init__(self, count: Callable[[str], int], longest: int | None = None) -> None:
        self._count, self._longest = count, longest
        alone = count(INTRODUCTION)
        self._costs = {sentence: count(f"{INTRODUCTION} {sentence}") - alone for sentence in FILLER}
        self.shortest = max(self._tokens(PassKeyText(str(key), (), 0)) for key in KEYS[::500])

    def text(self, length: int, depth: float, trial: str) -> PassKeyText:
        """The longest text whose prompt and answer have at most ``length`` tokens, or one without filler.

        ``depth`` is the place of the key in the filler, from 0 (first) to 1 (last); ``trial`` seeds the random numbers,
        which no training text shares.
        """
        draw = random.Random(f"passkey evaluation {length} {depth} {trial}")
        key = str(draw.choice(KEYS))
        length = min(length, self._longest or length)
        room = length - self._tokens(PassKeyText(key, (), 0))
        filler: list[str] = []
        while room > 2 * max(self._costs.values()):
            filler.append(draw.choice(FILLER))
            room -= self._costs[filler[-1]]
        filler += self._filling(room)
        draw.shuffle(filler)
        while True:
            text = PassKeyText(key, tuple(filler), round(depth * len(filler)))
            if not filler or self._tokens(text) <= length:
                return text
            filler.pop()  # token counts of sentences need not add up

    def _tokens(self, text: PassKeyText) -> int:
        return self._count(text.prompt + text.answer)

    def _filling(self, room: int) -> list[str]:
        """Sentences whose total cost is as close to ``room`` as possible."""
        reached: dict[int, list[str]] = {0: []}
        for total in range(1, room + 1):
            for sentence, cost in self._costs.items():
                if total - cost in reached:
                    reached[total] = [*reached[total - cost], sentence]
                    break
        return reached[max(reached)]
