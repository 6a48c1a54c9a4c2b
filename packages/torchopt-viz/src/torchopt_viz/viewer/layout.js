/**
 * Places what is visible: every open container is laid out by itself, top to bottom, with a port
 * on its border for each item outside that one of its items is linked to.
 */
const GAP = { layer: 34, box: 16, frame: 14, header: 30, lane: 5, bend: 9 };
const SPAN = 6; // layers that a link may pass between boxes; longer ones go round all boxes
const LANES = 6; // of the links that go round, on each side
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

    const size = new Map();
    const solved = new Map();
    for (const id of [...frames].reverse()) {
      const problem = problems.get(id);
      for (const child of problem.children) if (!size.has(child)) size.set(child, boxSize(child));
      const solution = this.#solve(problem, size);
      solved.set(id, solution);
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
    for (const link of links) link.points = route(link, boxes, solved);
    boxes.delete(tree.root.id);
    return { boxes, links, width, height };
  }

  #solve(problem, size) {
    const key = problem.key(size);
    if (!this.#memory.has(key)) {
      if (this.#memory.size >= 200) this.#memory.clear();
      this.#memory.set(key, problem.solve(size));
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
      problems.get(id).outside[side].add(side === "in" ? link.top : link.bottom);
    }
  }
}

/** Enter a link into the layout of each container that it passes, and keep its hops in order. */
function addLink(link, problems) {
  const { start, end } = link;
  const hop = (frame, from, to) => {
    problems.get(frame).edges.add(`${from}>${to}`);
    link.hops.push([frame, from, to]);
  };
  link.above.forEach((frame, i) => {
    const merged = problems.get(frame).outside.out.size > PORTS;
    hop(frame, i ? link.above[i - 1] : link.top, `out ${merged ? end : link.bottom}`);
  });
  hop(link.meet, start, end);
  for (let i = link.below.length - 1; i >= 0; i--) {
    const frame = link.below[i];
    const merged = problems.get(frame).outside.in.size > PORTS;
    hop(frame, `in ${merged ? start : link.top}`, i ? link.below[i - 1] : link.bottom);
  }
}

class Problem {
  constructor(children) {
    this.children = children;
    this.outside = { in: new Set(), out: new Set() };
    this.edges = new Set();
  }

  key(size) {
    const boxes = this.children.map((id) => `${id}:${size.get(id)}`);
    return `${boxes.join()};${[...this.edges].join()}`;
  }

  solve(size) {
    const edges = Array.from(this.edges, (edge) => edge.split(">"));
    const entries = edges.map(([from]) => from).filter((id) => id.startsWith("in "));
    const exits = edges.map(([, to]) => to).filter((id) => id.startsWith("out "));
    const names = [...new Set(entries), ...this.children.map(String), ...new Set(exits)];
    const extent = (name) => (/^(in|out) /.test(name) ? [1, 1] : size.get(Number(name)));
    const layer = layers(names, edges, (name) => extent(name)[0]);
    const span = ([from, to]) => layer.get(to) - layer.get(from);
    const short = edges.filter((edge) => span(edge) <= SPAN);
    const long = edges.filter((edge) => span(edge) > SPAN);
    const rows = placeLayers(names, short, (name) => layer.get(name), extent, GAP);
    return placed(rows, long, layer);
  }
}

/** The places of names and the bends of edges, right of and below 0. */
function placed({ at, bends }, long, layer) {
  const points = [...bends.values()].flat();
  const ends = (size, place) => {
    const boxes = [...at.values()];
    const low = boxes.reduce((least, box) => Math.min(least, box[place] - box[size] / 2), Infinity);
    return [low, boxes.reduce((most, box) => Math.max(most, box[place] + box[size] / 2), -Infinity)];
  };
  const [top, bottom] = ends("height", "y");
  let [left, right] = ends("width", "x");
  for (const { x } of points) [left, right] = [Math.min(left, x), Math.max(right, x)];
  [left, right] = goRound(long, at, layer, bends, left, right);
  const moved = ({ x, y }) => ({ x: x - left, y: y - top });
  for (const [name, box] of at) at.set(name, moved(box));
  for (const [name, path] of bends) bends.set(name, path.map(moved));
  return { at, bends, width: right - left, height: bottom - top };
}

/** Lead long edges past all boxes, on lanes left and right of them, a lane for each source. */
function goRound(edges, at, layer, bends, left, right) {
  const tops = [];
  const bottoms = [];
  for (const [name, { y, height }] of at) {
    const row = layer.get(name);
    tops[row] = Math.min(tops[row] ?? Infinity, y - height / 2);
    bottoms[row] = Math.max(bottoms[row] ?? -Infinity, y + height / 2);
  }
  const lanes = [new Map(), new Map()];
  const middle = (left + right) / 2;
  for (const [from, to] of edges) {
    const [start, end] = [at.get(from), at.get(to)];
    const side = end.x < middle ? 0 : 1;
    if (!lanes[side].has(from)) lanes[side].set(from, lanes[side].size % LANES);
    const lane = lanes[side].get(from);
    const away = 10 + GAP.lane * lane;
    const x = side ? right + away : left - away;
    const [first, last] = [bottoms[layer.get(from)] + 5 + 2 * lane, tops[layer.get(to)] - 12];
    const corners = [[start.x, first], [x, first], [x, last], [end.x, last]];
    bends.set(`${from}>${to}`, corners.map(([x, y]) => ({ x, y })));
  }
  const margin = (side) => (lanes[side].size ? 10 + GAP.lane * LANES : 0);
  return [left - margin(0), right + margin(1)];
}

/** The points of a link: from its source, through ports and bends, to its target. */
function route(link, boxes, solved) {
  const points = [];
  const add = (x, y) => points.push({ x, y });
  const port = (frame, name) => boxes.get(frame).left + solved.get(frame).at.get(name).x;
  link.hops.forEach(([id, from, to], i) => {
    const frame = boxes.get(id);
    const bends = solved.get(id).bends.get(`${from}>${to}`);
    // these aim at the middle of a frame, which is not where its port is
    const [start, end] = [Number(boxes.get(from)?.open ?? 0), Number(boxes.get(to)?.open ?? 0)];
    for (const { x, y } of bends.slice(start, bends.length - end)) {
      add(frame.left + x, frame.top + y);
    }
    if (String(to).startsWith("out ")) add(port(id, to), frame.y + frame.height);
    else if (i + 1 < link.hops.length) {
      const [below, entry] = link.hops[i + 1];
      add(port(below, entry), boxes.get(below).y);
    }
  });
  const first = boxes.get(link.top);
  const last = boxes.get(link.bottom);
  const centre = (box) => box.x + box.width / 2;
  const next = points[0]?.x ?? centre(last);
  const previous = points.at(-1)?.x ?? centre(first);
  points.unshift({ x: within(next, first), y: first.y + first.height });
  points.push({ x: within(previous, last), y: last.y });
  // so that the links there and back are seen apart
  return link.back ? points.reverse().map(({ x, y }) => ({ x: x + 9, y })) : points;
}

/** The x on the border of a box that is nearest to another x. */
function within(x, box) {
  const reach = 0.35 * box.width;
  const centre = box.x + box.width / 2;
  return Math.min(Math.max(x, centre - reach), centre + reach);
}
