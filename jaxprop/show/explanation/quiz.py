"""`quiz`: exercises on the user's own function, with its own numbers hidden."""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from ..._text import number as spell
from ...core.types import Shape
from ...record.tape import Tape
from ..symbolic.expressions import PrimitiveReader
from ..symbolic.reader import PRIMITIVES
from .answers import UnreadableAnswer, is_same_number, read_number, read_shape
from .lookup import lookup_in
from .questions import Question, questions, shape_text

KINDS = ("value", "local gradient", "cotangent", "shape")


@dataclass(frozen=True)
class Feedback:
    """The reply to an answer; true where the answer is right.

    Attributes:
        right: whether it is right; None if it could not be read.
        message: what to tell the person who answered.
    """

    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.right)

    def __str__(self) -> str:
        return self.message


class Quiz:
    """A series of questions. `ask()` returns the current one, `answer(...)` checks an answer and moves on.

    A question is asked until it is answered correctly, skipped, or missed twice; then its solution is shown.

    Attributes:
        questions: all of them.
        right: the number answered correctly on the first try.
        wrong: the number of the others.
    """

    def __init__(self, questions: Sequence[Question]) -> None:
        self.questions = tuple(questions)
        self.right = self.wrong = 0
        self._at = self._tries = 0

    @property
    def done(self) -> bool:
        return self._at >= len(self.questions)

    @property
    def question(self) -> Question:
        """The current question.

        Raises:
            ValueError: all are answered.
        """
        if self.done:
            raise ValueError("all questions are answered; create another quiz with another seed.")
        return self.questions[self._at]

    def ask(self) -> str:
        """Return the text of the current question."""
        return f"{self._at + 1}/{len(self.questions)}  {self.question.text}"

    def hint(self) -> str:
        """Return the formula that answers it."""
        return self.question.hint

    def skip(self) -> str:
        """Give the question up, and return the solution."""
        solution = self.question.solution
        self._close(False)
        return solution

    def answer(self, answer: SupportsFloat | Iterable[int] | str) -> Feedback:
        """Check an answer: a number, `1/3`, `2*-1`, `2*s`; for a shape `(3, 4)`.

        Returns:
            The feedback: true if the answer is right. Its message explains a wrong one.
        """
        question = self.question
        try:
            found = _read_answer(question, answer)
        except UnreadableAnswer as error:
            return Feedback(None, str(error))
        if _is_same(found, question.expected):
            self._close(self._tries == 0)
            return Feedback(True, f"Right: {question.solution}.")
        self._tries += 1
        said = shape_text(found) if isinstance(found, tuple) else spell(found)
        mistake = next((m.said for m in question.mistakes if _is_same(found, m.answer)), "")
        told = f"Not {said}: {mistake}" if mistake else f"Not {said}."
        if self._tries < 2:
            return Feedback(False, f"{told} Hint: {question.hint}.")
        solution = question.solution
        self._close(False)
        return Feedback(False, f"{told} {solution}.")

    def _close(self, right: bool) -> None:
        self.right += right
        self.wrong += not right
        self._at, self._tries = self._at + 1, 0

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return f"Quiz({len(self)} questions, {self.right} right, {self.wrong} wrong)"


def _read_answer(question: Question, answer: SupportsFloat | Iterable[int] | str) -> float | Shape:
    if question.kind == "shape":
        return read_shape(answer)  # type: ignore[arg-type]
    return read_number(answer, dict(question.names))  # type: ignore[arg-type]


def _is_same(a: float | Shape, b: float | Shape) -> bool:
    if isinstance(a, tuple) or isinstance(b, tuple):
        return a == b
    return is_same_number(a, b)


def quiz(
    tape: Tape,
    count: int | None = 10,
    seed: int | None = None,
    kinds: Sequence[str] = KINDS,
    primitives: Mapping[str, PrimitiveReader] = PRIMITIVES,
) -> Quiz:
    """Make exercises from a tape: values, local gradients and cotangents to work out by hand.

    Args:
        tape: a tape, `jaxprop.backprop(f)(*args)`.
        count: the largest number of questions, chosen at random; None for all.
        seed: an integer to choose the same questions again.
        kinds: the kinds of question: `value`, `local gradient`, `cotangent`, `shape`.
        primitives: how each primitive is read, as in `jaxprop.formula`.

    Returns:
        A `Quiz`, its questions in the order of the forward and the backward pass.

    Raises:
        ValueError: there are no questions to ask, or `kinds` holds an unknown kind.
        TypeError: `tape` or `primitives` is something else.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> q = jp.quiz(jp.backprop(loss)(1.0, 1.0, 2.0), kinds=["cotangent"])
        >>> print(q.ask())
        1/2  Backward pass. dloss/ds = -2 and ds/dy_hat = 1. What is dloss/dy_hat?
        >>> print(q.answer("1"))
        Not 1: that is the local gradient ds/dy_hat; multiply it by the cotangent dloss/ds. Hint: ...
        >>> print(q.answer("-2*1"))
        Right: dloss/dy_hat = dloss/ds * ds/dy_hat = -2 * 1 = -2.
    """
    if not isinstance(tape, Tape):
        raise TypeError(f"`quiz` takes a tape, `jaxprop.backprop(f)(*args)`; got {type(tape).__name__}.")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"unknown kind of question {unknown[0]!r}; available: {', '.join(KINDS)}.")
    found = [question for question in questions(lookup_in(tape, primitives)) if question.kind in kinds]
    if not found:
        raise ValueError(
            "there is nothing to ask: questions need operations on scalars (or shapes of arrays) outside "
            "loops, on a tape recorded with record=None."
        )
    chosen: Sequence[int] = range(len(found))
    if count is not None and count < len(found):
        chosen = sorted(random.Random(seed).sample(chosen, count))
    return Quiz([found[i] for i in chosen])
