/**
 * Places what is visible: every open container is laid out by itself, top to bottom, with a port
 * on its border for each item outside that one of its items is linked to.
 */
const GAP = { layer: 34, box: 16, frame: 14, header: 30, lane: 5, bend: 9 };
const BENDS = 4000; // of the links between boxes of a container; the longest go round all boxes
const PASSES = ["out", "in"]; // ports of containers to order as the links outside are ordered
const PORTS = 24; // ports on one side of a container before those of a neighbour are merged

class Layout {
  #memory = new Map();

  /**
   * @param tree A Tree.
   * @param open The ids of the open containers.
   * @param boxSize What gives a closed item its [width, height].
   */
  arrange(tree, open, boxSize) {
    const frames = openContainers(tree, open);
    const links = visibleLinks(tree, frames);
    const meeting = new Map(frames.map((id) => [id, []]));
    for (const link of links) meeting.get(link.meet).push(link);
    const problems = new Map(
      frames.map((id) => [id, new Problem(inOrder(tree.at(id).children, meeting.get(id)))]),
    );
    for (const side of ["in", "out"]) countPorts(links, problems, side);
    for (const link of links) addLink(link, problems);

    let scene = this.#place(tree, frames, problems, boxSize);
    for (const side of PASSES) {
      for (const link of links) wishPorts(link, side, scene, problems);
      const other = this.#place(tree, frames, problems, boxSize);
      if (other.crossings < scene.crossings) scene = other;
    }
    const { boxes, solved, size } = scene;
    for (const link of links) link.points = route(link, boxes, solved);
    const [width, height] = size.get(tree.root.id);
    boxes.delete(tree.root.id);
    return { boxes, links, width, height };
  }

  /** Lay out the containers, inner ones first, and place them, outer ones first. */
  #place(tree, frames, problems, boxSize) {
    const size = new Map();
    const solved = new Map();
    let crossings = 0;
    for (const id of [...frames].reverse()) {
      const problem = problems.get(id);
      for (const child of problem.children) if (!size.has(child)) size.set(child, boxSize(child));
      const solution = this.#solve(problem, size, solved);
      solved.set(id, solution);
      crossings += solution.crossings;
      const title = id === tree.root.id ? 0 : GAP.header;
      const least = id === tree.root.id ? 0 : boxSize(id)[0] + 30;
      const width = Math.max(solution.width, least) + 2 * GAP.frame;
      size.set(id, [width, solution.height + title + 2 * GAP.frame]);
    }
    const boxes = new Map();
    const [width, height] = size.get(tree.root.id);
    boxes.set(tree.root.id, { id: tree.root.id, x: 0, y: 0, width, height, open: true, depth: 0 });
    for (const id of frames) {
      const frame = boxes.get(id);
      const { width: inner, at } = solved.get(id);
      const title = id === tree.root.id ? 0 : GAP.header;
      frame.left = frame.x + (frame.width - inner) / 2;
      frame.top = frame.y + title + GAP.frame;
      for (const child of problems.get(id).children) {
        const [w, h] = size.get(child);
        const { x, y } = at.get(String(child));
        const corner = { x: frame.left + x - w / 2, y: frame.top + y - h / 2 };
        const below = { open: problems.has(child), depth: frame.depth + 1 };
        boxes.set(child, { id: child, ...corner, width: w, height: h, ...below });
      }
    }
    return { boxes, solved, size, crossings };
  }

  #solve(problem, size, solved) {
    const key = problem.key(size, solved);
    if (!this.#memory.has(key)) {
      if (this.#memory.size >= 200) this.#memory.clear();
      this.#memory.set(key, problem.solve(size, solved));
    }
    return this.#memory.get(key);
  }
}

/** The open containers, outer ones first. */
function openContainers(tree, open) {
  const frames = [tree.root.id];
  for (const id of frames) {
    for (const child of tree.at(id).children) if (open.has(child)) frames.push(child);
  }
  return frames;
}

/** The visible item that each node is in. */
function visibleItems(tree, frames) {
  const open = new Set(frames);
  const item = new Int32Array(tree.graph.size);
  for (const id of frames) {
    for (const child of tree.at(id).children) {
      if (open.has(child)) continue;
      for (const node of tree.nodes(child)) item[node] = child;
    }
  }
  return item;
}

/**
 * Links between visible items, each with the containers between it and the one where both ends meet,
 * and the children of that one that it leads from and to.
 */
function visibleLinks(tree, frames) {
  const item = visibleItems(tree, frames);
  const { source, target } = tree.graph;
  const base = tree.parent.length;
  const counts = new Map();
  for (let i = 0; i < source.length; i++) {
    const from = item[source[i]];
    const to = item[target[i]];
    if (from !== to) counts.set(from * base + to, (counts.get(from * base + to) ?? 0) + 1);
  }
  return Array.from(counts, ([key, count]) => {
    const from = Math.floor(key / base);
    const to = key % base;
    const above = tree.ancestors(from);
    const below = tree.ancestors(to);
    while (above.length > 1 && below.length > 1 && above.at(-2) === below.at(-2)) {
      above.pop();
      below.pop();
    }
    const meet = above.pop();
    below.pop();
    const ends = { start: above.at(-1) ?? from, end: below.at(-1) ?? to };
    const drawn = { top: from, bottom: to, back: false, hops: [], points: [] };
    return { from, to, count, meet, above, below, ...ends, ...drawn };
  });
}

/**
 * The children of a container so that links lead from earlier to later ones, as they do unless
 * children depend on each other. Then the child that began first comes first, and a link back to it
 * is turned round, to be drawn upwards.
 */
function inOrder(children, links) {
  const users = new Map(children.map((id) => [id, new Set()]));
  for (const { start, end } of links) users.get(start).add(end);
  const missing = new Map(children.map((id) => [id, 0]));
  for (const ends of users.values()) for (const end of ends) missing.set(end, missing.get(end) + 1);
  const left = new Set(children);
  const order = new Map();
  while (left.size) {
    let next = null;
    for (const id of left) {
      if (missing.get(id) === 0) {
        next = id;
        break;
      }
    }
    next ??= left.values().next().value;
    left.delete(next);
    order.set(next, order.size);
    for (const end of users.get(next)) missing.set(end, missing.get(end) - 1);
  }
  for (const link of links) {
    if (order.get(link.start) < order.get(link.end)) continue;
    const { from, to, above, below, start, end } = link;
    const turned = { top: to, bottom: from, above: below, below: above, start: end, end: start };
    Object.assign(link, turned, { back: true });
  }
  return [...order.keys()];
}

function countPorts(links, problems, side) {
  for (const link of links) {
    for (const id of side === "in" ? link.below : link.above) {
      problems.get(id).ports[side].add(link.top);
    }
  }
}

/** Enter a link into the layout of each container that it passes, and keep its hops in order. */
function addLink(link, problems) {
  const { start, end, above, below } = link;
  const out = (i) => `out ${problems.get(above[i]).ports.out.size > PORTS ? end : link.top}`;
  const into = (i) => `in ${problems.get(below[i]).ports.in.size > PORTS ? start : link.top}`;
  const hop = (frame, from, leaves, to, enters) => {
    link.hops.push([frame, problems.get(frame).connect(from, leaves, to, enters)]);
  };
  above.forEach((frame, i) => {
    hop(frame, i ? above[i - 1] : link.top, i ? out(i - 1) : null, out(i), null);
  });
  const [last, first] = [above.length - 1, below.length - 1];
  hop(link.meet, start, last < 0 ? null : out(last), end, first < 0 ? null : into(first));
  for (let i = first; i >= 0; i--) {
    hop(below[i], into(i), null, i ? below[i - 1] : link.bottom, i ? into(i - 1) : null);
  }
}

class Problem {
  constructor(children) {
    this.children = children;
    this.ports = { in: new Set(), out: new Set() };
    this.edges = new Map();
    this.wishes = new Map();
  }

  /** Add an edge between names, or between ports of those that are containers; return its key. */
  connect(from, leaves, to, enters) {
    const key = `${from}:${leaves}>${to}:${enters}`;
    this.edges.set(key, { key, from: String(from), leaves, to: String(to), enters });
    return key;
  }

  /** How far right of a container's middle a port of it is; null for what has no ports. */
  static port(id, name, solved) {
    if (name === null) return isPort(id) ? 0 : null;
    const { at, width } = solved.get(Number(id));
    return at.get(name).x - width / 2;
  }

  key(size, solved) {
    const boxes = this.children.map((id) => `${id}:${size.get(id)}`);
    const edges = Array.from(this.edges.values(), ({ key, from, leaves, to, enters }) => {
      return [key, Problem.port(from, leaves, solved), Problem.port(to, enters, solved)];
    });
    return `${boxes.join()};${edges.join()};${[...this.wishes].join()}`;
  }

  solve(size, solved) {
    const edges = Array.from(this.edges.values(), (edge) => ({
      ...edge,
      out: Problem.port(edge.from, edge.leaves, solved),
      into: Problem.port(edge.to, edge.enters, solved),
    }));
    const entries = edges.map(({ from }) => from).filter((id) => id.startsWith("in "));
    const exits = edges.map(({ to }) => to).filter((id) => id.startsWith("out "));
    const names = [...new Set(entries), ...this.children.map(String), ...new Set(exits)];
    const extent = (name) => (isPort(name) ? [1, 1] : size.get(Number(name)));
    const pairs = edges.map(({ from, to }) => [from, to]);
    const layer = layers(names, pairs, (name) => extent(name)[0]);
    const span = ({ from, to }) => layer.get(to) - layer.get(from);
    let bends = 0;
    const [short, long] = [[], []];
    for (const edge of [...edges].sort((a, b) => span(a) - span(b))) {
      bends += span(edge) - 1;
      (bends <= BENDS ? short : long).push(edge);
    }
    const wish = (name) => this.wishes.get(name);
    const rows = placeLayers(names, short, (name) => layer.get(name), extent, wish, GAP);
    return placed(rows, long, layer);
  }
}

const isPort = (name) => /^(in|out) /.test(name);

/** The places of names and the paths of edges, right of and below 0. */
function placed({ at, paths, crossings }, long, layer) {
  const ends = (size, place) => {
    const boxes = [...at.values()];
    const low = boxes.reduce((least, box) => Math.min(least, box[place] - box[size] / 2), Infinity);
    return [low, boxes.reduce((most, box) => Math.max(most, box[place] + box[size] / 2), -Infinity)];
  };
  const [top, bottom] = ends("height", "y");
  let [left, right] = ends("width", "x");
  for (const { x } of [...paths.values()].flat()) {
    [left, right] = [Math.min(left, x), Math.max(right, x)];
  }
  [left, right] = goRound(long, at, layer, paths, left, right);
  const moved = ({ x, y }) => ({ x: x - left, y: y - top });
  for (const [name, { x, y }] of at) at.set(name, moved({ x, y }));
  for (const [key, path] of paths) paths.set(key, path.map(moved));
  return { at, paths, crossings, width: right - left, height: bottom - top };
}

/**
 * Lead long edges past all boxes, on lanes left and right of them, one for each source: a shorter
 * edge on an inner lane, so that it crosses none of the longer ones.
 */
function goRound(edges, at, layer, paths, left, right) {
  const middle = (left + right) / 2;
  const sides = [[], []];
  const bySource = new Map();
  for (const edge of edges) {
    const source = `${edge.from}:${edge.leaves}`;
    if (!bySource.has(source)) bySource.set(source, []);
    bySource.get(source).push(edge);
  }
  for (const own of bySource.values()) {
    const mean = own.reduce((sum, { to }) => sum + at.get(to).x, 0) / own.length;
    const start = layer.get(own[0].from);
    const end = Math.max(...own.map(({ to }) => layer.get(to)));
    sides[mean < middle ? 0 : 1].push({ own, start, end });
  }
  const reach = sides.map((bundles) => lead(bundles));
  return [left - reach[0], right + reach[1]];

  function lead(bundles) {
    const side = bundles === sides[1];
    bundles.sort((a, b) => a.end - a.start - (b.end - b.start));
    const lanes = [];
    for (const bundle of bundles) {
      const free = (lane) => lane.every(({ start, end }) => bundle.end < start || end < bundle.start);
      let lane = lanes.findIndex(free);
      if (lane < 0) lane = lanes.push([]) - 1;
      lanes[lane].push(bundle);
      bundle.lane = lane;
    }
    for (const { own, lane } of bundles) {
      const away = 10 + GAP.lane * lane;
      const x = side ? right + away : left - away;
      const share = lane / Math.max(1, lanes.length);
      for (const { key, from, to, out, into } of own) {
        const [start, end] = [at.get(from), at.get(to)];
        const startX = out === null ? within(x, start) : start.x + out;
        const endX = into === null ? within(x, end) : end.x + into;
        const first = start.bottom + 4 + 12 * share;
        const last = end.top - 6 - 10 * share;
        const corners = [[startX, start.y + start.height / 2], [startX, first], [x, first]];
        corners.push([x, last], [endX, last], [endX, end.y - end.height / 2]);
        paths.set(key, corners.map(([x, y]) => ({ x, y })));
      }
    }
    return lanes.length ? 10 + GAP.lane * lanes.length : 0;
  }
}

/** Ask for the ports of a link on one side to be where it comes from or goes to now. */
function wishPorts(link, side, { boxes, solved }, problems) {
  const x = (id, { x }) => boxes.get(id).left + x;
  link.hops.forEach(([id, key], i) => {
    const { from, to } = problems.get(id).edges.get(key);
    const wishes = problems.get(id).wishes;
    const path = solved.get(id).paths.get(key);
    if (side === "in" && isPort(from)) {
      const [outer, before] = link.hops[i - 1];
      wishes.set(from, x(outer, solved.get(outer).paths.get(before).at(-2) ?? path[0]));
    }
    if (side === "out" && isPort(to)) {
      const [outer, after] = link.hops[i + 1];
      wishes.set(to, x(outer, solved.get(outer).paths.get(after)[1] ?? path[0]));
    }
  });
}

/** The points of a link: its path in each container, from port to port. */
function route(link, boxes, solved) {
  const points = [];
  const add = (x, y) => {
    const before = points.at(-1);
    if (before && before.x === x && before.y === y) return;
    const straight = points.length > 1 && points.at(-2).x === x && before.x === x;
    if (straight) points.pop();
    points.push({ x, y });
  };
  for (const [id, key] of link.hops) {
    const frame = boxes.get(id);
    for (const { x, y } of solved.get(id).paths.get(key)) add(frame.left + x, frame.top + y);
  }
  // so that the links there and back are seen apart
  return link.back ? points.reverse().map(({ x, y }) => ({ x: x + 9, y })) : points;
}
