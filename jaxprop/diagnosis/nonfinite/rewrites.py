"""The fix in one line of code, built on the user's own expression."""

import ast
from collections.abc import Callable, Sequence

#: The names under which an expression in the source calls a primitive.
_SPELLINGS = {
    "sqrt": ("sqrt",),
    "rsqrt": ("rsqrt",),
    "log": ("log",),
    "log1p": ("log1p",),
    "log2": ("log2",),
    "exp": ("exp",),
    "exp2": ("exp2",),
    "expm1": ("expm1",),
    "div": ("divide", "true_divide", "div"),
    "rem": ("remainder", "mod", "fmod"),
    "pow": ("power", "pow", "float_power"),
    "integer_pow": ("power", "pow", "reciprocal", "integer_pow"),
    "acos": ("arccos", "acos"),
    "asin": ("arcsin", "asin"),
    "acosh": ("arccosh", "acosh"),
    "atanh": ("arctanh", "atanh"),
    "atan2": ("arctan2", "atan2"),
    "cbrt": ("cbrt",),
    "erf_inv": ("erfinv", "erf_inv"),
}
_OPERATORS: dict[str, tuple[type[ast.operator], ...]] = {
    "div": (ast.Div,),
    "pow": (ast.Pow,),
    "integer_pow": (ast.Pow,),
    "sqrt": (ast.Pow,),
    "rem": (ast.Mod,),
    "rsqrt": (ast.Pow,),
}


class Written:
    """An expression of the source: `jnp.sqrt(x + 1)`, and the parts that are its operands.

    Attributes:
        tree: the expression.
        parts: the expressions of its operands, in the order of the primitive's.
        keywords: the keywords it is called with.
    """

    def __init__(self, tree: ast.expr, parts: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> None:
        self.tree, self.parts, self.keywords = tree, list(parts), list(keywords)

    def part(self, position: int) -> str:
        return ast.unparse(self.parts[position])

    def with_parts(self, texts: dict[int, str]) -> str:
        """The expression with some of its operands written otherwise."""
        swaps = {id(self.parts[i]): ast.parse(text, mode="eval").body for i, text in texts.items()}

        class Swap(ast.NodeTransformer):
            def visit(self, node: ast.AST) -> ast.AST:
                return swaps.get(id(node)) or super().generic_visit(node)

        # The tree is this object's own: a fresh one is read for every use.
        return ast.unparse(Swap().visit(self.tree))


def written(code: str, primitive: str) -> Written | None:
    """Find the operands of a primitive in the expression it stems from; None where they do not stand in it."""
    tree = _parse(code)
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, _OPERATORS.get(primitive, ())):
        return Written(tree, [tree.left, tree.right], [])
    if isinstance(tree, ast.Call) and called(code) in _SPELLINGS.get(primitive, ()):
        return Written(tree, tree.args, tree.keywords)
    return None


def called(code: str) -> str:
    """The last name of the function an expression calls: `norm` in `jnp.linalg.norm(x)`; else ""."""
    tree = _parse(code)
    if not isinstance(tree, ast.Call):
        return ""
    function = tree.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _parse(code: str) -> ast.expr | None:
    try:
        return ast.parse(code.strip(), mode="eval").body
    except SyntaxError:
        return None


def arguments(code: str) -> tuple[str, str]:
    """The first argument of a call, and the keywords, as text: `("x", ", axis=-1")`."""
    tree = _parse(code)
    if not isinstance(tree, ast.Call) or not tree.args:
        return "x", ""
    keywords = [k for k in tree.keywords if k.arg in ("axis", "keepdims")]
    return ast.unparse(tree.args[0]), "".join(f", {ast.unparse(k)}" for k in keywords)


def bracketed(text: str) -> str:
    """An expression that can stand beside a comparison."""
    loose = isinstance(_parse(text), ast.Compare | ast.BoolOp | ast.IfExp | ast.Lambda | ast.NamedExpr)
    return f"({text})" if loose else text


#: Operands longer than this get a name.
_LONG = 16


def _words(code: str) -> set[str]:
    """The plain names in an expression."""
    tree = _parse(code)
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree is not None else set()


def double_where(
    code: str, primitive: str, position: int, test: str, instead: str = "1.0", otherwise: str = "0.0"
) -> str:
    """Mask the result and the operand: `where(ok, f(where(ok, x, 1)), 0)`.

    `test` is text with `{x}` in it, such as `{x} > 0`.
    """
    expression = written(code, primitive)
    if expression is None or position >= len(expression.parts):
        ok = test.format(x="x")
        return (
            f"mask the operand as well as the result, with x the operand: jnp.where({ok}, "
            f"f(jnp.where({ok}, x, {instead})), {otherwise})"
        )
    x = expression.part(position)
    first, short = bracketed(x), x
    if len(x) > _LONG:  # written once, under a name of its own
        short = next(name for name in ("a", "u", "operand") if name not in _words(code))
        first = f"({short} := {x})"
    masked = f"jnp.where({test.format(x=bracketed(short))}, {short}, {instead})"
    return f"jnp.where({test.format(x=first)}, {expression.with_parts({position: masked})}, {otherwise})"


def around(code: str, primitive: str, position: int, text: str) -> str:
    """The expression with an operand written otherwise: `text` has `{x}` in it."""
    expression = written(code, primitive)
    if expression is None or position >= len(expression.parts):
        return f"change the operand x first: {text.format(x='x')}"
    return expression.with_parts({position: text.format(x=expression.part(position))})


def safe_norm(code: str) -> str:
    """The 2-norm with a derivative of 0 at 0."""
    x, keywords = arguments(code)
    return (
        f"jnp.where((sq := jnp.sum(jnp.square({x}){keywords})) > 0, jnp.sqrt(jnp.where(sq > 0, sq, 1.0)), 0.0)"
    )


def first_argument(code: str, text: str) -> str:
    """The call with its first argument written otherwise: `text` has `{x}` in it."""
    tree = _parse(code)
    if not isinstance(tree, ast.Call) or not tree.args:
        return text.format(x="x")
    tree.args[0] = ast.parse(text.format(x=ast.unparse(tree.args[0])), mode="eval").body
    return ast.unparse(tree)


#: A fix: (code, primitive, position) -> text.
Fix = Callable[[str, str, int], str]
