"""`quiz`: exercises on the user's own function, with its own numbers hidden."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...record.tape import Tape
from ..symbolic.notation import spell
from .answers import Unreadable, read_number, read_shape, same_number
from .explain import result_name
from .lookup import Known
from .questions import Question, questions

KINDS = ("value", "local gradient", "cotangent", "shape")


@dataclass(frozen=True)
class Verdict:
    """What is said to an answer.

    Attributes:
        right: whether it is right; None where it could not be read.
        message: what to tell the one who answered.
    """

    right: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.right)

    def __str__(self) -> str:
        return self.message


class Quiz:
    """Questions one after the other. `ask()` gives the one to answer, `answer(...)` checks and goes on.

    A question is asked until it is answered rightly, given up (`skip()`), or missed twice; then it is solved.

    Attributes:
        questions: all of them.
        right: how many were answered rightly at the first try.
        wrong: how many were not.
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
        """The question to answer.

        Raises:
            ValueError: all are answered.
        """
        if self.done:
            raise ValueError("all questions are answered; make another quiz with another seed.")
        return self.questions[self._at]

    def ask(self) -> str:
        """The text of the question to answer."""
        return f"{self._at + 1}/{len(self.questions)}  {self.question.text}"

    def hint(self) -> str:
        """The formula to answer it by."""
        return self.question.hint

    def skip(self) -> str:
        """Give the question up: returns the solution."""
        solution = self.question.solution
        self._close(False)
        return solution

    def answer(self, answer: Any) -> Verdict:
        """Check an answer: a number, `1/3`, `2*-1`, `2*s`; for a shape `(3, 4)`.

        Returns:
            A `Verdict`: true where it is right; its message explains a wrong one.
        """
        question = self.question
        try:
            read = read_shape(answer) if question.kind == "shape" else read_number(answer, dict(question.names))
        except Unreadable as error:
            return Verdict(None, str(error))
        if _same(question, read, question.expected):
            self._close(self._tries == 0)
            return Verdict(True, f"Right: {question.solution}.")
        self._tries += 1
        mixed_up = next((m.said for m in question.mistakes if _same(question, read, m.answer)), "")
        told = f"Not {_spelled(read)}: {mixed_up}" if mixed_up else f"Not {_spelled(read)}."
        if self._tries < 2:
            return Verdict(False, f"{told} Hint: {question.hint}.")
        solution = question.solution
        self._close(False)
        return Verdict(False, f"{told} {solution}.")

    def _close(self, right: bool) -> None:
        self.right += right
        self.wrong += not right
        self._at, self._tries = self._at + 1, 0

    def __len__(self) -> int:
        return len(self.questions)

    def __repr__(self) -> str:
        return f"Quiz({len(self)} questions, {self.right} right, {self.wrong} wrong)"


def _same(question: Question, a: Any, b: Any) -> bool:
    return tuple(a) == tuple(b) if question.kind == "shape" else same_number(a, b)


def _spelled(read: Any) -> str:
    return f"({', '.join(map(str, read))})" if isinstance(read, tuple) else spell(read)


def quiz(tape: Tape, count: int | None = 10, seed: int | None = None, kinds: Sequence[str] = KINDS) -> Quiz:
    """Make exercises from a tape: values, local gradients and cotangents to be worked out by hand.

    Args:
        tape: what `jaxprop.backprop(f)(*args)` gives.
        count: how many questions at most, chosen by chance; None for all there are.
        seed: for the same choice again; by default another one each time.
        kinds: what is asked: `value`, `local gradient`, `cotangent`, `shape`.

    Returns:
        A `Quiz`, its questions in the order of forward and backward pass.

    Raises:
        ValueError: there is nothing to ask: no operation on numbers outside of loops; an unknown kind.

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
        Not 1: that is the local gradient ds/dy_hat; multiply it with what comes back, dloss/ds. Hint: ...
        >>> print(q.answer("-2*1"))
        Right: dloss/dy_hat = dloss/ds * ds/dy_hat = -2 * 1 = -2.
    """
    if not isinstance(tape, Tape):
        raise TypeError(f"a quiz is made from a tape, `jaxprop.backprop(f)(*args)`; got {type(tape).__name__}.")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"there is no kind of question {unknown[0]!r}. Kinds: {', '.join(KINDS)}.")
    known = Known(tape, result_name(tape))
    found = [question for question in questions(known) if question.kind in kinds]
    if not found:
        raise ValueError(
            "there is nothing to ask: questions are about operations on plain numbers (or shapes of arrays) "
            "outside of loops, on a tape recorded with record=None."
        )
    chosen = range(len(found))
    if count is not None and count < len(found):
        chosen = sorted(random.Random(seed).sample(chosen, count))
    return Quiz([found[i] for i in chosen])
