/**
 * Places boxes in layers, after Sugiyama, Tagawa and Toda (1981): choose a layer for each, order the
 * layers so that few links cross, move each box as near to what it is linked to as there is room.
 */
const BREADTH = 1100; // width of the boxes of one layer before another layer is begun
const ORDERINGS = 12;
const PATIENCE = 4; // orderings without fewer crossings before no more are tried
const SHIFTS = 16;
const SPREAD = 0.35; // how far from its middle a link may leave a box, of its width

/**
 * A layer for each name, none too broad: as early as its inputs allow, but next to what uses it if
 * that makes no link longer.
 *
 * @param names All boxes in an order that no edge goes against: "in …" are above, "out …" below all.
 * @param edges [from, to] pairs of names.
 * @param width The width of a name.
 */
function layers(names, edges, width) {
  const index = new Map(names.map((name, i) => [name, i]));
  const before = names.map(() => []);
  const after = names.map(() => []);
  const entry = (i) => names[i].startsWith("in ");
  const exit = (i) => names[i].startsWith("out ");
  for (const [from, to] of edges) {
    const [low, high] = [index.get(from), index.get(to)];
    if (!exit(high)) after[low].push(high);
    before[high].push(low);
  }
  const layer = new Int32Array(names.length);
  const taken = [];
  const inner = names.map((_, i) => i).filter((i) => !entry(i) && !exit(i));
  const room = (i, at) => !taken[at] || taken[at] + width(names[i]) <= BREADTH;
  const put = (i, at) => {
    taken[at] = (taken[at] ?? 0) + width(names[i]) + GAP.box;
    layer[i] = at;
  };
  for (const i of inner) {
    let at = before[i].reduce((low, from) => (entry(from) ? low : Math.max(low, layer[from] + 1)), 0);
    while (!room(i, at)) at++;
    put(i, at);
  }
  for (const i of inner.reverse()) {
    if (!after[i].length || after[i].length < before[i].length) continue;
    let at = after[i].reduce((low, user) => Math.min(low, layer[user]), Infinity) - 1;
    while (at > layer[i] && !room(i, at)) at--;
    if (at <= layer[i]) continue;
    taken[layer[i]] -= width(names[i]) + GAP.box;
    put(i, at);
  }
  const place = (i) => (entry(i) ? 0 : exit(i) ? taken.length + 1 : layer[i] + 1);
  return new Map(names.map((name, i) => [name, place(i)]));
}

/**
 * @param names All boxes.
 * @param edges {key, from, to, out, into}: between names with layer(from) < layer(to); led through
 *   the layers between. `out` and `into` say how far right of the middle of a name the edge leaves
 *   and enters it; null where that is free.
 * @param layer The layer of a name, from 0.
 * @param extent The [width, height] of a name.
 * @param wish Where a name is to be among those of its layer; undefined where that is free.
 * @param gap The distances of layers and of boxes.
 * @return at: the {x, y, width, height, top, bottom} of each name, the last two those of its row;
 *   paths: the points of each edge by its key, from the border of one name to that of the other;
 *   crossings: how many there are.
 */
function placeLayers(names, edges, layer, extent, wish, gap) {
  const rows = [];
  const add = (row, width, height, bend) => {
    const cell = { row, width, height, bend, up: [], down: [], x: 0, y: 0, place: 0 };
    (rows[row] ??= []).push(cell);
    return cell;
  };
  const cells = new Map();
  for (const name of names) {
    const cell = add(layer(name), ...extent(name), false);
    cell.fixed = wish(name);
    cells.set(name, cell);
  }
  const paths = new Map();
  const join = (above, leaves, below, enters) => {
    above.down.push({ cell: below, own: leaves, at: enters });
    below.up.push({ cell: above, own: enters, at: leaves });
  };
  const trunks = new Map(); // edges that leave a name together part where they have to
  for (const { key, from, to, out, into } of edges) {
    const source = `${from}:${out}`;
    if (!trunks.has(source)) trunks.set(source, [cells.get(from)]);
    const trunk = trunks.get(source);
    const bends = layer(to) - trunk[0].row;
    while (trunk.length < bends) {
      const bend = add(trunk[0].row + trunk.length, 1, 0, true);
      join(trunk.at(-1), trunk.length === 1 ? (out ?? 0) : 0, bend, 0);
      trunk.push(bend);
    }
    const path = [...trunk.slice(0, bends), cells.get(to)];
    join(path.at(-2), bends === 1 ? (out ?? 0) : 0, path.at(-1), into ?? 0);
    paths.set(key, { path, out, into });
  }
  const full = rows.filter(Boolean);
  const crossings = orderRows(full);
  shiftRows(full, gap);
  let y = 0;
  for (const row of full) {
    const height = row.reduce((most, cell) => Math.max(most, cell.height), 0);
    for (const cell of row) Object.assign(cell, { y: y + height / 2, top: y, bottom: y + height });
    y += height + gap.layer;
  }
  const at = new Map(names.map((name) => [name, cells.get(name)]));
  const points = new Map();
  for (const [key, found] of paths) points.set(key, pathPoints(found));
  return { at, paths: points, crossings };
}

/** Straight down through each row, so that boxes beside are not met; aslant between rows. */
function pathPoints({ path, out, into }) {
  const last = path.length - 1;
  const fixed = (i) => (i === 0 ? out : i === last ? into : 0);
  const at = (i, near) => {
    const offset = fixed(i);
    return offset === null ? within(near, path[i]) : path[i].x + offset;
  };
  const middle = (i) => path[i].x + (fixed(i) ?? 0);
  const points = [];
  const add = (x, y) => {
    const before = points.at(-1);
    if (!before || before.x !== x || before.y !== y) points.push({ x, y });
  };
  path.forEach((cell, i) => {
    const x = at(i, middle(i === 0 ? 1 : i - 1));
    if (i > 0) add(x, cell.top);
    if (i === last) add(x, cell.y - cell.height / 2);
    else {
      if (i === 0) add(x, cell.y + cell.height / 2);
      add(x, cell.bottom);
    }
  });
  return points;
}

/** The x on the border of a box that is nearest to another x. */
function within(x, { x: middle, width }) {
  return Math.min(Math.max(x, middle - SPREAD * width), middle + SPREAD * width);
}

/** Order each row by the mean place of what its cells are linked to, down and up in turn. */
function orderRows(rows) {
  const number = (row) => row.forEach((cell, i) => (cell.place = i));
  for (const row of rows) {
    if (row.every(({ fixed }) => fixed !== undefined)) row.sort((a, b) => a.fixed - b.fixed);
    number(row);
  }
  let best = rows.map((row) => [...row]);
  let least = crossings(rows);
  let last = 0;
  for (let turn = 0; turn < ORDERINGS && least > 0 && turn - last < PATIENCE; turn++) {
    const down = turn % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      if (row.every(({ fixed }) => fixed !== undefined)) continue;
      for (const cell of row) {
        const linked = down ? cell.up : cell.down;
        cell.wish = linked.length ? mean(linked, placeOf) : cell.place;
      }
      row.sort((a, b) => a.wish - b.wish);
      number(row);
    }
    const found = crossings(rows);
    if (found < least) {
      [least, last] = [found, turn];
      best = rows.map((row) => [...row]);
    }
  }
  rows.forEach((row, i) => row.splice(0, row.length, ...best[i]));
  rows.forEach(number);
  return least;
}

/** Where a link ends in a row: the place of its cell, and between two places where on the cell. */
const placeOf = ({ cell, at }) => cell.place + (0.9 * at) / cell.width;

/** How many links between neighbouring rows cross: inversions, counted with a Fenwick tree. */
function crossings(rows) {
  let count = 0;
  for (const row of rows) {
    const ends = [];
    for (const { down } of row) {
      if (down.length > 1) down.sort((a, b) => a.own - b.own || placeOf(a) - placeOf(b));
      for (const link of down) ends.push(placeOf(link));
    }
    const sorted = Float64Array.from(ends).sort();
    const sums = new Int32Array(ends.length + 1);
    for (let seen = 0; seen < ends.length; seen++) {
      const rank = rankOf(ends[seen], sorted);
      let before = 0;
      for (let i = rank; i > 0; i -= i & -i) before += sums[i];
      count += seen - before;
      for (let i = rank; i <= ends.length; i += i & -i) sums[i]++;
    }
  }
  return count;
}

/** How many values are at most this one. */
function rankOf(value, sorted) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Move the cells of each row to where their links are short and straight. */
function shiftRows(rows, gap) {
  for (const row of rows) {
    let edge = 0;
    for (const cell of row) {
      cell.x = edge + cell.width / 2;
      edge += cell.width + (cell.bend ? gap.bend : gap.box);
    }
    for (const cell of row) cell.x -= edge / 2;
  }
  for (let turn = 0; turn < SHIFTS; turn++) {
    const down = turn % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      for (const cell of row) {
        const near = down ? cell.up : cell.down;
        const linked = near.length ? near : down ? cell.down : cell.up;
        cell.wish = linked.length ? mean(linked, straight, pull) : cell.x;
        // a bend pulls more, so that long links are straight
        cell.weight = cell.bend ? 4 : 1 + linked.length;
      }
      settle(row, gap);
    }
  }
}

const straight = ({ cell, own, at }) => cell.x + at - own;
const pull = ({ cell }) => (cell.bend ? 3 : 1);

function mean(links, value, weight = () => 1) {
  let sum = 0;
  let total = 0;
  for (const link of links) {
    sum += weight(link) * value(link);
    total += weight(link);
  }
  return sum / total;
}

/**
 * Bring the cells of a row as near to their wishes as their widths allow: the least squares solution,
 * by pooling adjacent violators.
 */
function settle(row, gap) {
  const pools = [];
  let offset = 0;
  row.forEach((cell, i) => {
    if (i) {
      const before = row[i - 1];
      const space = before.bend && cell.bend ? gap.bend : gap.box;
      offset += (before.width + cell.width) / 2 + space;
    }
    cell.offset = offset;
    let pool = { at: cell.wish - offset, weight: cell.weight, cells: [cell] };
    while (pools.length && pools.at(-1).at > pool.at) {
      const other = pools.pop();
      const weight = other.weight + pool.weight;
      const at = (other.at * other.weight + pool.at * pool.weight) / weight;
      pool = { at, weight, cells: other.cells.concat(pool.cells) };
    }
    pools.push(pool);
  });
  for (const { at, cells } of pools) for (const cell of cells) cell.x = at + cell.offset;
}
