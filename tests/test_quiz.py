"""Exercises: the right answer is JAX's, and wrong ones are told what they mixed up."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from jaxprop.show.explanation.answers import UnreadableAnswer, read_number, read_shape


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


def fan_out(w, x):
    a = w * x
    b = jnp.sin(a)
    c = a * b
    return c - a


def layer(w, x):
    y = x @ w
    return jnp.sum(y)


@pytest.fixture(scope="module")
def worked():
    return jp.backprop(loss)(1.0, 1.0, 2.0)


@pytest.fixture(scope="module")
def fanned():
    return jp.backprop(fan_out)(1.5, 2.0)


def at(exercises, kind, name):
    """The quiz, gone on to one question."""
    while (exercises.question.kind, exercises.question.name) != (kind, name):
        exercises.skip()
    return exercises


def test_all_questions_of_the_worked_example(worked):
    q = jp.quiz(worked, count=None)
    assert [(question.kind, question.name) for question in q.questions] == [
        ("value", "y_hat"),
        ("value", "s"),
        ("value", "loss"),
        ("local gradient", "loss"),
        ("local gradient", "s"),
        ("local gradient", "y_hat"),
        ("cotangent", "y_hat"),
        ("cotangent", "w"),
    ]
    assert [question.expected for question in q.questions] == [1, -1, 1, -2, 1, 1, -2, -2]


@pytest.mark.parametrize("fun, args", [(loss, (1.5, -2.0, 0.5)), (fan_out, (0.7, 1.3))])
def test_what_is_expected_is_right(fun, args):
    """Cotangents by `jax.grad` of the rest of the function, written out by hand."""
    q = jp.quiz(jp.backprop(fun)(*args), count=None)
    rest = {
        (loss, "y_hat"): (lambda v, w, x, y: (v - y) ** 2, lambda w, x, y: w * x),
        (loss, "w"): (lambda v, w, x, y: loss(v, x, y), lambda w, x, y: w),
        (fan_out, "a"): (lambda v, w, x: v * jnp.sin(v) - v, lambda w, x: w * x),
        (fan_out, "b"): (lambda v, w, x: w * x * v - w * x, lambda w, x: jnp.sin(w * x)),
        (fan_out, "w"): (lambda v, w, x: fan_out(v, x), lambda w, x: w),
    }
    seen = 0
    for question in q.questions:
        if question.kind == "cotangent":
            of, point = rest[fun, question.name]
            np.testing.assert_allclose(question.expected, jax.grad(of)(point(*args), *args), rtol=1e-5)
            seen += 1
    assert seen == sum(name[0] is fun for name in rest)


def test_right_answers_in_many_forms(worked):
    for answer in (-2, "-2", " -2.0 ", "2*-1", "2*s", "-4/2", "−2", Fraction(-2), "-2.001"):
        q = at(jp.quiz(worked, count=None), "local gradient", "loss")
        feedback = q.answer(answer)
        assert feedback.right and bool(feedback), (answer, feedback)
        assert str(feedback) == "Right: dloss/ds = 2*s = 2*(-1) = -2."


WRONG = {
    "the sign": (
        "worked",
        "local gradient",
        "loss",
        "2",
        "Not 2: wrong sign. Hint: dloss/ds = 2*s.",
    ),
    "the value": (
        "worked",
        "local gradient",
        "loss",
        "1",
        "Not 1: that is the value of loss, not how fast it changes. Hint: dloss/ds = 2*s.",
    ),
    "the local gradient alone": (
        "worked",
        "cotangent",
        "y_hat",
        "1",
        "Not 1: that is the local gradient ds/dy_hat; multiply it by the cotangent dloss/ds. "
        "Hint: dloss/dy_hat = dloss/ds * ds/dy_hat.",
    ),
    "a sum in place of a product": (
        "worked",
        "cotangent",
        "y_hat",
        "-1",
        "Not -1: along a path local gradients are multiplied, not added. Hint: dloss/dy_hat = dloss/ds * ds/dy_hat.",
    ),
    "one share of a fan-out": (
        "fanned",
        "cotangent",
        "a",
        "-1",
        "Not -1: that is the contribution through fan_out alone; add the others, -2.96998 and 0.14112. "
        "Hint: dfan_out/da = dfan_out/db * db/da + dfan_out/dc * dc/da + dfan_out/dfan_out * dfan_out/da.",
    ),
    "the other operand": (
        "fanned",
        "local gradient",
        "c",
        "3",
        "Not 3: that is dc/db, with respect to the other operand. Hint: dc/da = b.",
    ),
    "something else": ("worked", "value", "s", "17", "Not 17. Hint: s = 1 - 2."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_answer_is_explained(case, request):
    tape, kind, name, answer, said = WRONG[case]
    q = at(jp.quiz(request.getfixturevalue(tape), count=None), kind, name)
    feedback = q.answer(answer)
    assert feedback.right is False
    assert str(feedback) == said


def test_the_second_wrong_answer_brings_the_solution(worked):
    q = jp.quiz(worked, count=None)
    q.answer("5")
    feedback = q.answer("6")
    assert str(feedback) == "Not 6. y_hat = w*x = 1*1 = 1."
    assert (q.right, q.wrong, q.question.name) == (0, 1, "s")


def test_an_answer_that_is_none(worked):
    q = jp.quiz(worked, count=None)
    for answer, said in {
        "two": "unknown name 'two'; available: w, x.",
        "1 +": "'1 +' is not a number. Write -2, 0.5, 1/3 or 2*-1.",
        "1/0": "'1/0' is undefined.",
        "9**9**9": "'9**9**9' is undefined.",
        "__import__('os')": "unknown name \"__import__('os')\"; available: w, x.",
    }.items():
        feedback = q.answer(answer)
        assert feedback.right is None
        assert str(feedback) == said
    assert q.right == q.wrong == 0
    assert q.question.name == "y_hat"


def test_shapes():
    tape = jp.backprop(layer)(jnp.ones((3, 4)), jnp.ones((2, 3)))
    q = jp.quiz(tape, count=None, kinds=["shape"])
    assert q.ask() in {
        "1/2  Shapes. dy = broadcast_to(dlayer, (2, 4)), with layer (). What is the shape of dy?",
        "1/2  Shapes. dw = x.T @ dy, with x (2, 3), y (2, 4). What is the shape of dw?",
    }
    at(q, "shape", "w")
    assert "that is the shape of its transpose" in str(q.answer("4, 3"))
    assert q.answer("3x4").right
    assert q.done and repr(q) == "Quiz(2 questions, 0 right, 2 wrong)"


def test_a_seed_chooses_the_same(fanned):
    def chosen(seed):
        return [q.text for q in jp.quiz(fanned, count=5, seed=seed).questions]

    assert chosen(3) == chosen(3)
    assert len({tuple(chosen(seed)) for seed in range(6)}) > 1
    order = [q.text for q in jp.quiz(fanned, count=None).questions]
    assert sorted(chosen(3), key=order.index) == chosen(3)


def test_nothing_is_asked_that_the_chain_rule_does_not_answer():
    tape = jp.backprop(loss, rules=[("s", jp.rules.scale(0.5))])(1.0, 1.0, 2.0)
    names = [q.name for q in jp.quiz(tape, count=None).questions if q.kind == "cotangent"]
    assert "y_hat" not in names


def test_errors(worked):
    with pytest.raises(
        ValueError, match=r"unknown kind of question 'riddle'; available: value, local gradient,"
    ):
        jp.quiz(worked, kinds=["riddle"])
    with pytest.raises(TypeError, match=r"`quiz` takes a tape, `jaxprop\.backprop\(f\)\(\*args\)`; got int\."):
        jp.quiz(1)
    tape = jp.backprop(loss, record=jp.summary)(1.0, 1.0, 2.0)
    with pytest.raises(ValueError, match=r"there is nothing to ask: questions need operations on scalars"):
        jp.quiz(tape)
    q = jp.quiz(worked, count=1)
    q.skip()
    with pytest.raises(
        ValueError, match=r"all questions are answered; create another quiz with another seed\."
    ):
        q.ask()


def test_names_of_local_gradients_may_be_used(worked):
    q = at(jp.quiz(worked, count=None), "cotangent", "y_hat")
    assert q.answer("dloss/ds * ds/dy_hat").right


def test_reading_numbers_and_shapes():
    assert read_number("1 - tanh(0.5)**2") == pytest.approx(1 - np.tanh(0.5) ** 2)
    assert read_number("2^3") == 8
    assert read_number("pi") == pytest.approx(np.pi)
    assert read_shape("()") == () and read_shape("[3, 4]") == (3, 4)
    with pytest.raises(UnreadableAnswer, match=r"'three' is not a shape\. Write \(3, 4\)\."):
        read_shape("three")
