"""Pass keys: a five-digit number hidden in filler text, asked for at the end.  The one generator of such texts.

The task of the paper's table 4.  Its texts are not known to us; these, and how training texts are drawn, are ours::

    A pass key is hidden in the text below. [filler] The pass key is 58213. Do not forget 58213. [filler]
    What is the pass key? The pass key is 58213.

A text is a pure function of its split and its number there: no two splits draw from the same random numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ssa.config import DataConfig
from ssa.files import hash_of

DOCUMENTS = 100_000  # in the train split, where data.max_documents does not say
VERSION = 1  # raise it when a text is drawn or put together in another way
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
_TOKENS_AROUND, _TOKENS_A_SENTENCE = 60, 10  # roughly, with most tokenizers


@dataclass(frozen=True)
class PassKeyText:
    """One text.

    Attributes:
        key: five digits.
        filler: its other sentences.
        place: how many of them are before the key.
    """

    key: str
    filler: tuple[str, ...]
    place: int

    @property
    def prompt(self) -> str:
        """All of it up to the answer."""
        before, after = self.filler[: self.place], self.filler[self.place :]
        return " ".join((INTRODUCTION, *before, KEY_SENTENCE.format(key=self.key), *after, QUESTION))

    @property
    def answer(self) -> str:
        """What follows the prompt."""
        return f" {self.key}"

    @property
    def whole(self) -> str:
        """What is trained on."""
        return f"{self.prompt}{self.answer}."


class PassKeys:
    """Training texts: key, first sentence of the filler and place of the key drawn uniformly, the number of sentences
    log-uniformly, so that most are short.  The filler goes round in one order: what is left to learn is the key.

    The train split has ``data.max_documents`` texts (null: `DOCUMENTS`), each other split ``data.validation_fraction``
    times as many.
    """

    splits = frozenset({"train", "validation", "test"})

    def __init__(self, data: DataConfig) -> None:
        assert data.passkey is not None, "the config has it with this source"
        documents = data.max_documents or DOCUMENTS
        validation_fraction = max(1, round(data.validation_fraction * documents))
        self._counts = {"train": documents, "validation": validation_fraction, "test": validation_fraction}
        fewest, most = data.passkey.min_sentences, data.passkey.max_sentences
        fitting = (data.block_size - _TOKENS_AROUND) // _TOKENS_A_SENTENCE
        self.sentences = range(fewest, (max(fewest, fitting) if most is None else most) + 1)

    @property
    def fingerprint(self) -> str:
        """Of the words and of how they are drawn."""
        words = (INTRODUCTION, KEY_SENTENCE, QUESTION, FILLER)
        return hash_of(["passkey", VERSION, words, self.sentences.start, self.sentences.stop, self._counts])

    def documents(self, split: str) -> Iterator[str]:
        """Of one split."""
        return (self.text(split, number).whole for number in range(self._counts[split]))

    def text(self, split: str, number: int) -> PassKeyText:
        """A text of a split by its number, from 0 on."""
        draw = random.Random(f"passkey {split} {number}")
        key, start = str(draw.choice(KEYS)), draw.randrange(len(FILLER))
        low, high = math.log(self.sentences.start + 1), math.log(self.sentences.stop + 1)
        n = min(int(math.exp(draw.uniform(low, high))) - 1, self.sentences.stop - 1)
        filler = tuple(FILLER[(start + number) % len(FILLER)] for number in range(n))
        return PassKeyText(key, filler, draw.randint(0, n))


class PassKeyPrompts:
    """Texts of a given length in tokens, with the key at a given depth.

    Args:
        count: the number of tokens of a text, as a model is given it: with what stands before every text.

    Attributes:
        shortest: tokens without filler, of keys of many tokens.
    """

    def __init__(self, count: Callable[[str], int]) -> None:
        self._count = count
        alone = count(INTRODUCTION)
        self._costs = {sentence: count(f"{INTRODUCTION} {sentence}") - alone for sentence in FILLER}
        self.shortest = max(self._tokens(PassKeyText(str(key), (), 0)) for key in KEYS[::500])

    def text(self, length: int, depth: float, trial: str) -> PassKeyText:
        """The longest text whose prompt and answer have at most ``length`` tokens together, or one without filler.

        Args:
            length: in tokens.
            depth: of the key among the filler, 0 first, 1 last.
            trial: which one; it names random numbers that no training text is drawn from.
        """
        draw = random.Random(f"passkey evaluation {length} {depth} {trial}")
        key = str(draw.choice(KEYS))
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
            filler.pop()  # a tokenizer by which sentences do not add up

    def _tokens(self, text: PassKeyText) -> int:
        return self._count(text.prompt + text.answer)

    def _filling(self, room: int) -> list[str]:
        """Sentences that leave the least of the room."""
        reached: dict[int, list[str]] = {0: []}
        for total in range(1, room + 1):
            for sentence, cost in self._costs.items():
                if total - cost in reached:
                    reached[total] = [*reached[total - cost], sentence]
                    break
        return reached[max(reached)]
