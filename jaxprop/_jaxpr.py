"""Everything that touches JAX's own program representation.

This is the only file that imports `jax.core` or `jax.extend`, and the only one that knows what differs
between JAX versions. The rest of the package sees equations as functions, variables as hashable objects,
and nested programs as `Program`s.
"""

import functools
import os
import re
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import AbstractValue, Tracer, eval_jaxpr
from jax.core import Atom as Atom
from jax.extend.core import DropVar, JaxprEqn, Literal, Var
from jax.extend.core import Jaxpr as Jaxpr
from jax.typing import DTypeLike

Equation: TypeAlias = JaxprEqn
Variable: TypeAlias = Var
Aval: TypeAlias = AbstractValue
#: JAX 0.10 drops a `custom_jvp` in what a scan keeps for its backward pass, if that is differentiated again.
KEEPS_CUSTOM_JVP = jax.__version_info__ >= (0, 11)

# --- programs and equations --------------------------------------------------------------------


class Program(NamedTuple):
    """A jaxpr with the arrays it closes over."""

    jaxpr: Any
    consts: Sequence[Any]

    @property
    def argument_names(self) -> tuple[str, ...] | None:
        """Names of the arguments in the source, where JAX kept them."""
        info = getattr(self.jaxpr, "debug_info", None)
        names = getattr(info, "arg_names", None)
        if names is None or len(names) != len(self.jaxpr.invars):
            return None
        return tuple(name or "" for name in names)

    @property
    def function_name(self) -> str | None:
        """The name of the traced function, where JAX kept it."""
        info = getattr(self.jaxpr, "debug_info", None)
        return str(info.func_src_info).split(" at ")[0] if info is not None else None

    @property
    def function_file(self) -> str | None:
        """The file of the traced function, if JAX kept it."""
        info = getattr(self.jaxpr, "debug_info", None)
        _, found, place = str(getattr(info, "func_src_info", "")).partition(" at ")
        return place.rpartition(":")[0] if found else None

    @property
    def is_jaxs_own(self) -> bool:
        """Whether the traced function is part of JAX itself."""
        return (self.function_file or "").startswith(os.path.dirname(jax.__file__) + os.sep)


def as_program(jaxpr: Any) -> Program:
    """The parts of a jaxpr, closed or not."""
    # `Jaxpr` and `ClosedJaxpr` are one class since 0.11; both spell their parts the same way.
    return Program(getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ())))


def is_program(param: object) -> bool:
    return hasattr(param, "eqns") or hasattr(getattr(param, "jaxpr", None), "eqns")


def is_equation(x: object) -> bool:
    return hasattr(x, "primitive") and hasattr(x, "invars")


def trace(fun: Callable[..., Any], *args: Any) -> Program:
    """Trace `fun` to a program. Arguments may be arrays, scalars or `ShapeDtypeStruct`s."""
    return as_program(jax.make_jaxpr(fun)(*args))


def program_function(program: Program) -> Callable[..., list[jax.Array]]:
    """A program as a function of its arguments."""
    jaxpr, consts = program
    return lambda *args: eval_jaxpr(jaxpr, consts, *args)


def is_literal(atom: Any) -> TypeGuard[Literal]:
    return isinstance(atom, Literal)


def is_tracer(x: object) -> bool:
    return isinstance(x, Tracer)


def is_numpy_wrapper(x: object) -> bool:
    """Whether an array is JAX's wrapper around a NumPy array that is a constant of a program."""
    return type(x).__name__ == "TypedNdArray"


def is_dropped(var: Variable) -> bool:
    return isinstance(var, DropVar)


def is_ref(aval: Any) -> bool:
    """Whether a variable is a mutable reference (`jax.new_ref`)."""
    return hasattr(aval, "inner_aval")


def as_function(eqn: Equation) -> Callable[..., list[jax.Array]]:
    """Return one equation as a function of its operands, one output in the list for each of its own.

    The context of the equation (mesh, compute type, ...) is entered and custom derivative rules are kept,
    since JAX itself evaluates it: as a program that holds nothing else.
    """
    # Fresh variables, so that the two operands of `x * x` are two positions.
    invars: list[Atom] = [Variable(atom.aval) for atom in eqn.invars]
    outvars = [Variable(var.aval) for var in eqn.outvars]
    single = eqn.replace(invars=invars, outvars=outvars)
    template = _EMPTY().jaxpr
    jaxpr = template.replace(
        eqns=[single],
        constvars=[],
        invars=invars,
        outvars=outvars,
        effects=eqn.effects,
        debug_info=template.debug_info._replace(
            arg_names=("",) * len(invars), result_paths=("",) * len(outvars)
        ),
    )

    def fun(*operands: jax.Array) -> list[jax.Array]:
        return eval_jaxpr(jaxpr, (), *operands)

    variadic_reduce = eqn.primitive.name == "reduce" and len(outvars) > 1
    return _with_all_tangents(fun, len(outvars)) if variadic_reduce else fun


def _with_all_tangents(reduce: Callable[..., Any], count: int) -> Callable[..., Any]:
    """A reduction of several arrays at once, with JAX's own derivative, given tangents of all the arrays.

    The derivative fails where only some arrays are perturbed (seen on JAX 0.10.2 and 0.12.0.1); `custom_jvp`
    instantiates the tangents of the others. The initial values, which come after the arrays, have none.
    """

    def fun(*operands: jax.Array) -> list[jax.Array]:
        arrays, initial = operands[:count], operands[count:]
        reduced = jax.custom_jvp(lambda *arrays: reduce(*arrays, *initial))
        reduced.defjvp(lambda xs, ts: jax.jvp(lambda *arrays: reduce(*arrays, *initial), xs, ts))
        return reduced(*arrays)

    return fun


def run(program: Program, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """Run a program: the body of a custom rule, say, without the rule."""
    return eval_jaxpr(program.jaxpr, program.consts, *operands)


@functools.cache
def _EMPTY() -> Any:
    return jax.make_jaxpr(lambda: ())()


# --- nested programs ---------------------------------------------------------------------------

#: Calls that mean no more than their body.
_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call"})
_REMAT = frozenset({"checkpoint", "remat", "remat2"})


def inlined_program(eqn: Equation) -> Program | None:
    """The body of an equation that is no more than a call (`jit`), else None."""
    if eqn.primitive.name not in _INLINED:
        return None
    body = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    return None if body is None else as_program(body)


class Scan(NamedTuple):
    """The parts of a `scan` equation. Its operands are consts, carry, xs, in this order."""

    body: Program
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int


class Cond(NamedTuple):
    """The parts of a `cond` or `switch` equation. Its first operand is the index of the branch."""

    branches: tuple[Program, ...]


class Remat(NamedTuple):
    """The parts of a `jax.checkpoint` equation."""

    body: Program
    policy: Any
    prevent_cse: Any


def opened_form(eqn: Equation | None) -> Scan | Cond | Remat | None:
    """The parts of an equation whose body is opened, else None."""
    if eqn is None:
        return None
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        num_consts, num_carry = _scan_groups(params)
        return Scan(
            body=as_program(params["jaxpr"]),
            num_consts=num_consts,
            num_carry=num_carry,
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
    if name == "cond":
        return Cond(tuple(as_program(branch) for branch in params["branches"]))
    if name in _REMAT:
        return Remat(as_program(params["jaxpr"]), params["policy"], params["prevent_cse"])
    return None


def _scan_groups(params: dict[str, Any]) -> tuple[int, int]:
    if "num_consts" in params:  # JAX 0.10
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def nested_programs(eqn: Equation | None) -> tuple[Program, ...]:
    """All programs among the parameters of an equation, in a fixed order."""
    if eqn is None:
        return ()
    found = []
    for _, param in sorted(eqn.params.items()):
        for item in param if isinstance(param, tuple | list) else (param,):
            if is_program(item):
                found.append(as_program(item))
    return tuple(found)


def bodies_of(eqn: Equation) -> tuple[Program, ...]:
    """The programs that become nested graphs of an equation, in the order of its opened form."""
    match opened_form(eqn):
        case Cond(branches):
            return branches
        case Scan(body=body) | Remat(body=body):
            return (body,)
        case _:
            return nested_programs(eqn)


def primitives(jaxpr: Any) -> frozenset[str]:
    """The names of all primitives of a program, nested ones included."""
    found, seen, stack = set(), set(), [as_program(jaxpr).jaxpr]
    while stack:
        here = stack.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        for eqn in here.eqns:
            found.add(eqn.primitive.name)
            stack += [program.jaxpr for program in nested_programs(eqn)]
    return frozenset(found)


def is_while(eqn: Equation | None) -> bool:
    return eqn is not None and eqn.primitive.name == "while"


def matrix_operands(eqn: Equation | None) -> range | None:
    """Positions of the operands that hold the matrix of a linear solve; None if this is not a linear solve.

    Operands such as factors of the matrix come after it. The chain rule does not pass through them, although
    the solution is computed from them.
    """
    if eqn is None or eqn.primitive.name != "custom_linear_solve":
        return None
    lengths = eqn.params["const_lengths"]
    return range(lengths.matvec + lengths.vecmat)


def checkpoint_name(eqn: Equation) -> str | None:
    """The name given by `jax.ad_checkpoint.checkpoint_name`, else None."""
    return eqn.params.get("name") if eqn.primitive.name == "name" else None


def display_primitive(eqn: Equation) -> str:
    """The name of the primitive; for custom rules that of the function they belong to."""
    name = eqn.primitive.name
    if name in _REMAT:
        return "checkpoint"
    if name.startswith("custom_jvp_call") or name.startswith("custom_vjp_call"):
        programs = nested_programs(eqn)
        return (programs[0].function_name if programs else None) or name
    return name


#: The dtype of the cotangents of integers, booleans and keys: of what has none.
float0 = jax.dtypes.float0

# --- custom rules ---------------------------------------------------------------------------------


def has_custom_rule(eqn: Equation | None) -> bool:
    return eqn is not None and eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))


def has_reverse_rule(eqn: Equation | None) -> bool:
    """Whether the rule is a `custom_vjp`, with halves that are functions of the user's."""
    return eqn is not None and eqn.primitive.name.startswith("custom_vjp_call")


def custom_form(eqn: Equation | None) -> str | None:
    """`custom_vjp` or `custom_jvp` where the equation has a rule of the user's, else None."""
    if eqn is None:
        return None
    if has_custom_rule(eqn):
        return "custom_vjp" if has_reverse_rule(eqn) else "custom_jvp"
    form = eqn.params.get("_prim")  # the next form of both, off by default in 0.12
    if getattr(form, "traced", None) is None:
        return None
    return "custom_vjp" if hasattr(form, "bwd") else "custom_jvp" if hasattr(form, "jvp_rule") else None


def primal_program(eqn: Equation) -> Program | None:
    """The program a custom rule stands for; None where the equation has no such rule."""
    if has_custom_rule(eqn):
        programs = nested_programs(eqn)
        return programs[0] if programs else None
    return as_program(eqn.params["_prim"].traced.jaxpr) if custom_form(eqn) else None


def primal_function(eqn: Equation) -> Callable[..., list[jax.Array]]:
    """An equation as a function of its operands, without the custom rule of its own."""
    program = primal_program(eqn)
    return as_function(eqn) if program is None else program_function(program)


def derivative_program(eqn: Equation) -> Program:
    """The derivative of an equation as a program: operands and out_cts to outputs and in_cts."""
    fun = as_function(eqn)
    moved = [i for i, atom in enumerate(eqn.invars) if is_inexact(dtype_of(atom.aval))]
    kept = [i for i, var in enumerate(eqn.outvars) if is_inexact(dtype_of(var.aval))]

    def derivative(operands: list[Any], cts: list[Any]) -> Any:
        def of(*points: Any) -> Any:
            full = list(operands)
            for i, point in zip(moved, points, strict=True):
                full[i] = point
            outs = fun(*full)
            return [outs[i] for i in kept], outs

        _, pull, outs = jax.vjp(of, *(operands[i] for i in moved), has_aux=True)
        return outs, pull(cts)

    operands = [struct_of(atom) for atom in eqn.invars]
    return trace(derivative, operands, [struct_of(eqn.outvars[i]) for i in kept])


def dead_positions(eqn: Equation) -> frozenset[int]:
    """Positions of operands whose cotangent, by the custom rule of an equation, does not depend on out_cts.

    A rule is linear in the cotangents, so what does not depend on them is zero. The rule is traced for it.
    """
    inexact = [i for i, atom in enumerate(eqn.invars) if is_inexact(dtype_of(atom.aval))]
    jaxpr = derivative_program(eqn).jaxpr
    cts = jaxpr.invars[len(eqn.invars) :]
    in_cts = jaxpr.outvars[len(eqn.outvars) :]
    moved = _made_from(jaxpr, [var in cts for var in jaxpr.invars])[len(eqn.outvars) :]
    return frozenset(i for i, _, depends in zip(inexact, in_cts, moved, strict=True) if not depends)


def _made_from(jaxpr: Jaxpr, marked: Sequence[bool]) -> list[bool]:
    """For each output, whether it is made from one of the marked inputs."""
    made = {var for var, mark in zip(jaxpr.invars, marked, strict=True) if mark}
    for eqn in jaxpr.eqns:
        touched = [not is_literal(atom) and atom in made for atom in eqn.invars]
        if not any(touched):
            continue
        body = inlined_program(eqn)
        reached = _made_from(body.jaxpr, touched) if body is not None else [True] * len(eqn.outvars)
        made.update(var for var, depends in zip(eqn.outvars, reached, strict=True) if depends)
    return [not is_literal(atom) and atom in made for atom in jaxpr.outvars]


# --- types -------------------------------------------------------------------------------------


def aval_of(x: Any) -> Any:
    """The type of a number or an array."""
    return jax.typeof(x)


def is_number(dtype: DTypeLike | None) -> bool:
    """Whether values of this dtype are numbers: not random keys, not references."""
    return dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)


def same_number(a: Any, b: Any, dtype: DTypeLike | None) -> bool:
    """Whether two scalars are one number of a dtype."""
    return bool(np.asarray(a, dtype) == np.asarray(b, dtype))


def shape_of(aval: Any) -> tuple[int, ...]:
    return tuple(getattr(aval, "shape", ()))


def dtype_of(aval: Any) -> Any:
    return getattr(aval, "dtype", None)


def is_inexact(dtype: DTypeLike | None) -> bool:
    """Whether values of this dtype carry a cotangent: floating or complex."""
    return dtype is not None and jnp.issubdtype(dtype, np.inexact)


def is_complex(dtype: DTypeLike | None) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, np.complexfloating)


def is_key(x: object) -> bool:
    """Whether an array, or a type, is of typed PRNG keys."""
    dtype = getattr(x, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)


def struct_of(x: Any) -> jax.ShapeDtypeStruct:
    """The type of a variable or an array, without its numbers."""
    aval = getattr(x, "aval", x)
    sharding = getattr(aval, "sharding", None)
    if sharding is not None and not any(part is not None for part in sharding.spec):
        sharding = None
    manual = getattr(aval, "manual_axis_type", None)
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(
        aval.shape, aval.dtype, sharding=sharding, weak_type=weak, manual_axis_type=manual
    )


def zeros(struct: jax.ShapeDtypeStruct, steps: tuple[int, ...] = ()) -> Any:
    """Zeros like `struct` with leading step axes, that cost nothing where only their type is used."""
    shape = (*steps, *struct.shape)
    varying = getattr(struct.manual_axis_type, "varying", None)
    if varying:
        return jax.lax.pcast(jnp.zeros(shape, struct.dtype), tuple(varying), to="varying")
    spec = getattr(struct.sharding, "spec", ())
    if any(part is not None for part in spec):
        stepped = jax.sharding.PartitionSpec(*(None,) * len(steps), *spec)
        return jnp.zeros(shape, struct.dtype, out_sharding=struct.sharding.update(spec=stepped))
    if steps:
        return jnp.zeros(shape, struct.dtype)
    return np.broadcast_to(np.zeros((), struct.dtype), shape)


def is_whole(aval: Any) -> bool:
    """Whether an array is of one type on all devices: not sharded by its type, not varying over a mesh axis."""
    varying = getattr(getattr(aval, "manual_axis_type", None), "varying", None)
    spec = getattr(getattr(aval, "sharding", None), "spec", ())
    return not varying and all(part is None for part in spec)


def eval_shape(fun: Callable[..., Any], *structs: Any) -> Any:
    """`jax.eval_shape`, inside `shard_map` too, where it takes no types that vary over a mesh axis."""
    if any(map(_varies, jax.tree.leaves(structs))):
        return jax.eval_shape(lambda: fun(*jax.tree.map(zeros, structs)))
    return jax.eval_shape(fun, *structs)


def traced_reads(fun: Callable[..., Any], *structs: Any) -> tuple[Any, list[bool]]:
    """The types of what a function returns, and for each leaf of its first argument whether it is read."""
    leaves, tree = jax.tree.flatten(structs)
    count = len(jax.tree.leaves(structs[0]))
    if any(map(_varies, leaves)):  # `make_jaxpr` takes no types that vary over a mesh axis
        return eval_shape(fun, *structs), [True] * count
    jaxpr, out = jax.make_jaxpr(lambda *flat: fun(*jax.tree.unflatten(tree, flat)), return_shape=True)(*leaves)
    read = {id(atom) for eqn in jaxpr.eqns for atom in eqn.invars} | {id(atom) for atom in jaxpr.jaxpr.outvars}
    return out, [id(var) in read for var in jaxpr.jaxpr.invars[:count]]


def _varies(struct: Any) -> bool:
    """Whether a type varies over a mesh axis."""
    return bool(getattr(struct.manual_axis_type, "varying", None))


# --- which maps are elementwise -----------------------------------------------------------------

#: Primitives that map arrays element by element: of what they are linear in, an element reaches itself only.
_ELEMENTWISE = frozenset(
    {"mul", "div", "neg", "add", "sub", "add_any", "select_n", "convert_element_type"}
    | {"real", "imag", "conj", "complex", "copy", "copy_p", "reduce_precision"}
)


def is_elementwise(program: Program) -> bool:
    """Whether a linear map sends each element of its last argument to the same element of each result only."""
    jaxpr = program.jaxpr
    depends = [var is jaxpr.invars[-1] for var in jaxpr.invars]
    return None not in _elementwise_in(jaxpr, depends)


def _elementwise_in(jaxpr: Jaxpr, depends: Sequence[bool | None]) -> list[bool | None]:
    """For each output: True if it depends on the marked inputs elementwise, False if not at all, else None."""
    state: dict[Any, bool | None] = dict(zip(jaxpr.invars, depends, strict=True))

    def of(atom: Any) -> bool | None:
        return False if is_literal(atom) else state.get(atom, False)

    for eqn in jaxpr.eqns:
        reads = [of(atom) for atom in eqn.invars]
        found: list[bool | None] = [None] * len(eqn.outvars)
        if not any(read is not False for read in reads):
            found = [False] * len(eqn.outvars)
        elif (body := inlined_program(eqn)) is not None:
            found = _elementwise_in(body.jaxpr, reads)
        elif eqn.primitive.name in _ELEMENTWISE and None not in reads:
            shapes = {shape_of(atom.aval) for atom, read in zip(eqn.invars, reads, strict=True) if read}
            found = [True if shapes == {shape_of(var.aval)} else None for var in eqn.outvars]
        state.update(zip(eqn.outvars, found, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


# --- which derivatives are zero ----------------------------------------------------------------


#: At most this many answers of `zero_tangents` are kept.
_MOST_ANSWERS = 4096
_zero_tangents: dict[Any, tuple[bool, ...]] = {}


def zero_tangents(eqn: Equation, perturbed: tuple[bool, ...]) -> tuple[bool, ...]:
    """For each output, whether JAX knows its tangent to be zero when these operands are perturbed.

    JAX is asked, by its own forward rule on shapes alone: no list of primitives is kept here.
    """
    key = _tangent_key(eqn, perturbed)
    if key is None:
        return _ask_zero_tangents(eqn, perturbed)
    if key not in _zero_tangents:
        if len(_zero_tangents) >= _MOST_ANSWERS:
            _zero_tangents.clear()
        _zero_tangents[key] = _ask_zero_tangents(eqn, perturbed)
    return _zero_tangents[key]


def _tangent_key(eqn: Equation, perturbed: tuple[bool, ...]) -> Any:
    """What decides the answer: the primitive itself, its parameters, types. None where that cannot be told."""
    if nested_programs(eqn) or any(callable(param) for param in eqn.params.values()):
        return None
    params = tuple((name, type(param), param) for name, param in sorted(eqn.params.items()))
    dtypes = tuple(str(dtype_of(atom.aval)) for atom in (*eqn.invars, *eqn.outvars))
    key = eqn.primitive, params, dtypes, perturbed
    try:
        hash(key)
    except TypeError:  # a parameter that cannot be compared
        return None
    return key


def _ask_zero_tangents(eqn: Equation, perturbed: tuple[bool, ...]) -> tuple[bool, ...]:
    seen: list[bool] = []

    @jax.custom_jvp
    def probe(*outs: Any) -> Any:
        return outs

    @functools.partial(probe.defjvp, symbolic_zeros=True)
    def _(primals: Any, tangents: Any) -> Any:
        seen.extend(isinstance(t, jax.custom_derivatives.SymbolicZero) for t in tangents)
        return primals, tangents

    if any(is_ref(atom.aval) for atom in (*eqn.invars, *eqn.outvars)):
        return (False,) * len(eqn.outvars)  # what a reference holds is not followed

    fun = as_function(eqn)

    def along(*operands: Any) -> Any:
        def at(*moved: Any) -> Any:
            it = iter(moved)
            return probe(*fun(*(next(it) if p else x for p, x in zip(perturbed, operands, strict=True))))

        points = [x for p, x in zip(perturbed, operands, strict=True) if p]
        return jax.jvp(at, points, points)

    eval_shape(along, *(struct_of(atom) for atom in eqn.invars))
    # JAX leaves the probe alone where every tangent is zero.
    return tuple(seen) if seen else (True,) * len(eqn.outvars)


# --- the place of an equation in the source ------------------------------------------------------


class Frame:
    """One frame of the call stack at the moment an equation was traced: code, and offset of an instruction.

    Equal where the code is one object: comparing and hashing code by content is slow, and done often.
    """

    __slots__ = ("code", "lasti")

    def __init__(self, code: CodeType, lasti: int) -> None:
        self.code, self.lasti = code, lasti

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self.code is other.code and self.lasti == other.lasti

    def __hash__(self) -> int:
        return hash((id(self.code), self.lasti))


def frames(eqn: Equation, jaxpr: Any) -> tuple[Frame, ...]:
    """The Python frames of an equation, innermost first, as far as its own program reaches.

    A cached program was traced for somebody else: frames around its function are not those of this call.
    """
    traceback = getattr(eqn.source_info, "traceback", None)
    if traceback is None:
        return ()
    codes, offsets = traceback.raw_frames()
    found = tuple(map(Frame, codes, offsets))
    info = str(getattr(getattr(jaxpr, "debug_info", None), "func_src_info", ""))
    for index in reversed(range(len(found))):
        code = found[index].code
        if info == f"{code.co_name} at {code.co_filename}:{code.co_firstlineno}":
            return found[: index + 1]
    return found


_TRANSFORMED = re.compile(r"\b[A-Za-z_]+\(([^()]*)\)")


def join_scopes(*parts: str) -> str:
    """Join name stacks by `/`, without the marks of the transformations (`jvp(...)`) they went through."""
    scope = "/".join(part for part in parts if part)
    while _TRANSFORMED.search(scope):
        scope = _TRANSFORMED.sub(r"\1", scope)
    return "/".join(part for part in scope.split("/") if part)


def scope_of(eqn: Equation | None) -> str:
    """The name stack of an equation (named scopes, Flax and Equinox modules), relative to its program."""
    return "" if eqn is None else str(getattr(eqn.source_info, "name_stack", ""))


# --- JAX's own functions in a call stack, by name; seen on JAX 0.10.2, 0.11 and 0.12.0.1 -------------------

#: Functions through which the value of an inner function does not come back: they return its derivative.
DERIVATIVE_WRAPPERS = frozenset({"grad_f", "value_and_grad_f", "vjp", "jvp", "linearize", "jacfun", "hessian"})
#: Functions whose result holds the outputs of one equation, by name: the path in it of what the body of
#: the equation returns.
RESULT_PATHS: dict[str, tuple[int | str, ...]] = {
    "scan": (),
    "map": (1,),
    "cond": (),
    "switch": (),
    "while_loop": (),
    "fun_remat": (),
    "__call__": (),  # of a custom rule
    "top_k": (),
    "sort": (),
    "split": (),
    "unstack": (),
}
#: The same for `fori_loop`, by primitive: it carries a counter along.
FORI_RESULT_PATHS: dict[str, tuple[int | str, ...]] = {"scan": (0, 1), "while": (2,)}
FORI_COUNTERS = {"scan": 1, "while": 2}
#: Frames between a call and what is called.
CALL_WRAPPERS = frozenset({"reraise_with_filtered_traceback"})
#: Functions that call what they are given exactly once.
CALL_ONCE = frozenset({"vmap_f"})


def result_paths(program: Program) -> tuple[str, ...]:
    """Where each output of a program is in the result of its function, as JAX spells it; () if unknown."""
    paths = getattr(getattr(program.jaxpr, "debug_info", None), "result_paths", None)
    return tuple(paths) if paths is not None and all(isinstance(path, str) for path in paths) else ()
