/**
 * Places boxes in layers, after Sugiyama, Tagawa and Toda (1981): choose a layer for each, order the
 * layers so that few links cross, move each box as near to what it is linked to as there is room.
 */
const BREADTH = 1100; // width of the boxes of one layer before another layer is begun
const ORDERINGS = 12;
const SHIFTS = 16;

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
 * @param edges [from, to] pairs with layer(from) < layer(to); each is led through the layers between.
 * @param layer The layer of a name, from 0.
 * @param extent The [width, height] of a name.
 * @param gap The distances of layers and of boxes.
 * @return at: the {x, y, width, height} of each name; bends: the points of each "from>to".
 */
function placeLayers(names, edges, layer, extent, gap) {
  const rows = [];
  const add = (row, width, height, bend) => {
    const cell = { row, width, height, bend, up: [], down: [], x: 0, y: 0, place: 0 };
    (rows[row] ??= []).push(cell);
    return cell;
  };
  const cells = new Map(names.map((name) => [name, add(layer(name), ...extent(name), false)]));
  const paths = new Map();
  for (const [from, to] of edges) {
    const path = [cells.get(from)];
    for (let row = path[0].row + 1; row < layer(to); row++) path.push(add(row, 1, 0, true));
    path.push(cells.get(to));
    for (let i = 1; i < path.length; i++) {
      path[i - 1].down.push(path[i]);
      path[i].up.push(path[i - 1]);
    }
    paths.set(`${from}>${to}`, path.slice(1, -1));
  }
  const full = rows.filter(Boolean);
  orderRows(full);
  shiftRows(full, gap);
  let y = 0;
  for (const row of full) {
    const height = row.reduce((most, cell) => Math.max(most, cell.height), 0);
    for (const cell of row) cell.y = y + height / 2;
    y += height + gap.layer;
  }
  const at = new Map(names.map((name) => [name, cells.get(name)]));
  const bends = new Map();
  for (const [edge, path] of paths) bends.set(edge, path.map(({ x, y }) => ({ x, y })));
  return { at, bends };
}

/** Order each row by the mean place of what its cells are linked to, down and up in turn. */
function orderRows(rows) {
  const number = (row) => row.forEach((cell, i) => (cell.place = i));
  rows.forEach(number);
  let best = rows.map((row) => [...row]);
  let least = crossings(rows);
  for (let turn = 0; turn < ORDERINGS && least > 0; turn++) {
    const down = turn % 2 === 0;
    for (const row of down ? rows : [...rows].reverse()) {
      for (const cell of row) {
        const linked = down ? cell.up : cell.down;
        cell.wish = linked.length ? mean(linked, (other) => other.place) : cell.place;
      }
      row.sort((a, b) => a.wish - b.wish);
      number(row);
    }
    const found = crossings(rows);
    if (found < least) {
      least = found;
      best = rows.map((row) => [...row]);
    }
  }
  rows.forEach((row, i) => row.splice(0, row.length, ...best[i]));
  rows.forEach(number);
}

/** How many links between neighbouring rows cross: inversions, counted with a Fenwick tree. */
function crossings(rows) {
  let count = 0;
  for (const row of rows) {
    const ends = row.flatMap((cell) => cell.down.map(({ place }) => place).sort((a, b) => a - b));
    const size = ends.reduce((most, end) => Math.max(most, end), 0) + 1;
    const sums = new Int32Array(size + 1);
    ends.forEach((end, seen) => {
      let before = 0;
      for (let i = end + 1; i > 0; i -= i & -i) before += sums[i];
      count += seen - before;
      for (let i = end + 1; i <= size; i += i & -i) sums[i]++;
    });
  }
  return count;
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
        cell.wish = linked.length ? mean(linked, (other) => other.x, pull) : cell.x;
        // a bend pulls more, so that long links are straight
        cell.weight = cell.bend ? 4 : 1 + linked.length;
      }
      settle(row, gap);
    }
  }
}

const pull = (cell) => (cell.bend ? 3 : 1);

function mean(cells, value, weight = () => 1) {
  let sum = 0;
  let total = 0;
  for (const cell of cells) {
    sum += weight(cell) * value(cell);
    total += weight(cell);
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
