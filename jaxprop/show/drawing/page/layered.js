// The code around dagre: a graph as plain data in, positions as plain data out. The page loads this file, and the
// static pictures run it in V8, so that there is one layout for both.

/**
 * Lay out a layered graph.
 *
 * `options` are dagre's. `items` are {id, width, height, parent}: an item without a size is a frame around those whose
 * `parent` it is. `edges` are {from, to, width, height, weight, labelpos}, with the size of the label.
 * Returns {width, height, items: {id: [left, top, width, height]}, edges: [{points: [[x, y]], label: [x, y]}]}.
 */
function layered({ options, items, edges }) {
  const graph = new dagre.graphlib.Graph({ compound: items.some((item) => item.parent), multigraph: true });
  graph.setGraph(options);
  graph.setDefaultEdgeLabel(() => ({}));
  for (const { id, width, height } of items) graph.setNode(id, width === undefined ? {} : { width, height });
  for (const { id, parent } of items) if (parent) graph.setParent(id, parent);
  edges.forEach(({ from, to, ...label }, i) => graph.setEdge(from, to, label, `e${i}`));
  dagre.layout(graph);
  const { width, height } = graph.graph();
  return {
    width,
    height,
    items: Object.fromEntries(
      items.map(({ id }) => {
        const { x, y, width, height } = graph.node(id);
        return [id, [x - width / 2, y - height / 2, width, height]];
      }),
    ),
    edges: edges.map(({ from, to }, i) => {
      const { points, x, y } = graph.edge(from, to, `e${i}`);
      const middle = points[Math.floor(points.length / 2)];
      return { points: points.map((point) => [point.x, point.y]), label: [x ?? middle.x, y ?? middle.y] };
    }),
  };
}

/** The same from JSON to JSON, rounded to a tenth of a pixel: for callers outside JavaScript. */
function layeredJson(problem) {
  return JSON.stringify(layered(JSON.parse(problem)), (_, value) =>
    typeof value === "number" ? Math.round(value * 10) / 10 : value,
  );
}
