// Paths through the points of an edge.

/**
 * A smooth path through points that leaves and arrives along the direction of the graph. Its slopes are those of monotone
 * cubic interpolation, so it does not overshoot.
 */
function pathOf(points, across) {
  const at = points.map(({ x, y }) => (across ? [x, y] : [y, x]));
  const show = ([t, c]) => (across ? `${round1(t)} ${round1(c)}` : `${round1(c)} ${round1(t)}`);
  const slopes = at.map(([t, c], i) => {
    if (i === 0 || i === at.length - 1) return 0;
    const before = (c - at[i - 1][1]) / (t - at[i - 1][0]);
    const after = (at[i + 1][1] - c) / (at[i + 1][0] - t);
    return before * after > 0 ? (2 * before * after) / (before + after) : 0;
  });
  let path = `M${show(at[0])}`;
  for (let i = 1; i < at.length; i += 1) {
    const [[t0, c0], [t1, c1]] = [at[i - 1], at[i]];
    const reach = (t1 - t0) * (slopes[i - 1] || slopes[i] ? 1 / 3 : 0.5);
    path += `C${show([t0 + reach, c0 + slopes[i - 1] * reach])} ${show([t1 - reach, c1 - slopes[i] * reach])} ${show([t1, c1])}`;
  }
  return path;
}

/** Straight lines with rounded corners. */
function corneredPath(points, radius = 9) {
  let path = `M${round1(points[0].x)} ${round1(points[0].y)}`;
  for (let i = 1; i < points.length - 1; i += 1) {
    const toward = (other) => {
      const length = Math.hypot(other.x - points[i].x, other.y - points[i].y) || 1;
      const part = Math.min(radius, length / 2) / length;
      return `${round1(points[i].x + (other.x - points[i].x) * part)} ${round1(points[i].y + (other.y - points[i].y) * part)}`;
    };
    path += `L${toward(points[i - 1])}Q${round1(points[i].x)} ${round1(points[i].y)} ${toward(points[i + 1])}`;
  }
  return `${path}L${round1(points[points.length - 1].x)} ${round1(points[points.length - 1].y)}`;
}

const round1 = (x) => Math.round(x * 10) / 10;

/** A line moved sideways. */
function sideways(points, distance, across) {
  return points.map(({ x, y }) => (across ? { x, y: y + distance } : { x: x + distance, y }));
}

/** A line of axis-parallel segments, moved to its right. */
function laneSideways(points, distance) {
  const normals = points.slice(1).map(({ x, y }, i) => {
    const length = Math.hypot(x - points[i].x, y - points[i].y) || 1;
    return { x: -(y - points[i].y) / length, y: (x - points[i].x) / length };
  });
  return points.map(({ x, y }, i) => {
    const around = [normals[i - 1], normals[i]].filter(Boolean);
    return {
      x: x + distance * around.reduce((sum, n) => sum + n.x, 0),
      y: y + distance * around.reduce((sum, n) => sum + n.y, 0),
    };
  });
}

/** The line, shorter at its end so that an arrowhead does not touch the card. */
function shorten(points, by) {
  const result = [...points];
  const last = result[result.length - 1];
  const before = result[result.length - 2];
  const length = Math.hypot(last.x - before.x, last.y - before.y) || 1;
  if (length > by)
    result[result.length - 1] = {
      x: last.x - ((last.x - before.x) / length) * by,
      y: last.y - ((last.y - before.y) / length) * by,
    };
  return result;
}
