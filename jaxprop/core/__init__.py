"""The reading core: everything jaxprop does rests on these files, about 1,800 lines. Read them in this order.

    types         type aliases: ids, shapes, cotangents
    graph         Value, Node, Graph: a jaxpr whose variables have ids, nested where the program is
    build         from a jaxpr to a Graph: every variable an id, every equation an index, calls inlined
    structure     graph algorithms: producers, paths, how a body is connected to its node
    activity      which values are on a path from a differentiated argument to the output
    local         a node at a point, and its vjp there: the local gradient of the textbooks
    rules         how cotangents propagate through a node
    recorders     what is recorded at a node, in the forward and in the backward pass
    taps          how a record leaves the backward pass: as the cotangent of an unused zero argument
    control_flow  scan, cond and remat, rebuilt from JAX's public functions around an interpreted body
    interpreter   the forward evaluation that puts all of it together
    selectors     which nodes a glob or a predicate matches
    statements    what is shown first: the values of variables, with all other operations folded into them

All that depends on the insides of JAX is behind `jaxprop/_jaxpr.py`.

The idea. A function is traced to its jaxpr, and the jaxpr is a graph: nodes are equations, edges are variables.
Evaluate it node by node, in program order, under `jax.vjp`:

    env = {}
    for node in graph:
        operands = [env[v] for v in node.operands]
        env[node.outputs] = evaluate(node, operands)        # one equation, evaluated by JAX itself

This is the forward pass of backpropagation. The backward pass is JAX's own, since JAX differentiates this
loop as it differentiates anything: every node turns the cotangents of its outputs into those of its operands,
by the chain rule `in_ct[i] = sum_o out_ct[o] * d out[o] / d in[i]`, and where a value has several consumers
their contributions add. So the gradient is that of `jax.grad`, and no derivative is written by hand.

Where something is requested, the loop inserts one operation. A *recorder* reads values in the forward pass,
and, by a *tap*, cotangents in the backward pass. A *rule* replaces the derivative of a node. Otherwise the loop
inserts nothing, and the compiled program is that of `jax.grad`.

A Graph is complete without names: `naming` (the next folder) finds names, places in the source and call paths
as tables by id, and `annotate` puts them into a copy. What comes out of a pass is put on a tape by `record`.

Third parties may rely on `Rule`, `Recorder`, `Local`, `Node`, `Value` and `Graph`, all exported by `jaxprop`.
The rest of the core may change in any release.
"""
