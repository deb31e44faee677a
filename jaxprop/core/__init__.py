"""The reading core: everything jaxprop does rests on these files, about 1,800 lines. Read them in this order.

    types         the nouns: ids, shapes, cotangents
    selectors     which nodes a glob or a predicate picks
    statements    the level of reading above operations: the values of variables, the rest folded into them
    graph         Value, Node, Graph: a jaxpr whose variables have ids, nested where the program is
    build         from a jaxpr to a Graph: every variable an id, every equation an index, calls inlined
    structure     graph algorithms: producers, paths, how a body is bound to its node
    activity      which values are on a path from a differentiated argument to the output
    local         a node at a point, and its vjp there: the local gradient of the textbooks
    rules         the first seam: how cotangents propagate through a node
    recorders     the second seam: what is recorded at a node, forward and backward
    taps          how a record leaves the backward pass: as the cotangent of a zero
    control_flow  scan, cond and remat, rebuilt from JAX's public functions around an interpreted body
    interpreter   the forward evaluation that puts all of it together

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

Where somebody asks, the loop puts one more thing in. A *recorder* looks at values in the forward pass, and,
by a *tap*, at cotangents in the backward pass. A *rule* replaces the derivative of a node. Where nobody asks
nothing is put in, and the compiled program is that of `jax.grad`.

A Graph is complete without names: `naming` (the next folder) finds names, places in the source and call paths
as tables by id, and `annotate` puts them into a copy. What comes out of a pass is put on a tape by `record`.

Third parties may rely on `Rule`, `Recorder`, `Local`, `Node`, `Value`, `Graph` and selectors, all exported by
`jaxprop`. The rest of the core may change in any release.
"""
