/** Decode the graph of the page: a head in JSON, then columns of numbers, lowest bytes first. */
async function readGraph() {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser is too old for the page: it has no DecompressionStream.");
  }
  const text = document.getElementById("data").textContent.trim();
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));

  const columns = {};
  let at = 4 + length;
  for (const [name, count, width] of head.columns) {
    const values = new Float64Array(count);
    for (let plane = 0, unit = 1; plane < width; plane++, unit *= 256) {
      for (let i = 0; i < count; i++) values[i] += bytes[at++] * unit;
    }
    columns[name] = values;
  }
  return new Graph(head, columns);
}

class Graph {
  constructor(head, columns) {
    this.strings = head.strings;
    this.groups = head.groups.map(([parent, kind, label], key) => ({ key, parent, kind, label }));
    this.repeats = head.repeats;
    this.unreached = head.unreached;
    this.unseen = new Set(head.unseen);
    this.columns = columns;
    this.size = columns.kind.length;

    const edges = columns.targetStep.length;
    this.source = new Int32Array(edges);
    this.target = new Int32Array(edges);
    for (let i = 0, target = 0; i < edges; i++) {
      target += columns.targetStep[i];
      const zigzag = columns.sourceOffset[i];
      this.target[i] = target;
      this.source[i] = target - (zigzag % 2 ? -(zigzag + 1) / 2 : zigzag / 2);
    }

    this.savedStart = new Int32Array(this.size + 1);
    this.bytes = new Float64Array(this.size);
    this.leafBytes = 0;
    for (let node = 0, at = 0; node < this.size; node++) {
      for (let left = columns.saves[node]; left > 0; left--, at++) {
        this.bytes[node] += columns.savedBytes[at];
        if (columns.savedLeaf[at]) this.leafBytes += columns.savedBytes[at];
      }
      this.savedStart[node + 1] = at;
    }
    this.users = neighbours(this.size, this.source, this.target);
    this.inputs = neighbours(this.size, this.target, this.source);
  }

  /** The text of a column for a node: "kind", "label", "name", "shape", "dtype", "where", "cause". */
  text(column, node) {
    return this.strings[this.columns[column][node]];
  }

  attrs(node) {
    const text = this.text("attrs", node);
    return text ? JSON.parse(text) : [];
  }

  saved(node) {
    const { savedName, savedShape, savedDtype, savedBytes, savedLeaf } = this.columns;
    const tensors = [];
    for (let i = this.savedStart[node]; i < this.savedStart[node + 1]; i++) {
      tensors.push({
        name: this.strings[savedName[i]],
        shape: this.strings[savedShape[i]],
        dtype: this.strings[savedDtype[i]],
        bytes: savedBytes[i],
        shared: savedBytes[i] === 0 && this.strings[savedShape[i]].search(/\b0\b/) < 0,
        leaf: savedLeaf[i] === 1,
      });
    }
    return tensors;
  }

  nodesOfKind(kind) {
    const wanted = this.strings.indexOf(kind);
    const found = [];
    this.columns.kind.forEach((value, node) => value === wanted && found.push(node));
    return found;
  }

  /** Which nodes lie on paths from some nodes to an output, as one byte each. */
  pathsToOutput(starts) {
    const after = reach(this.size, starts, this.users);
    const before = reach(this.size, this.nodesOfKind("output"), this.inputs);
    return after.map((seen, node) => seen & before[node]);
  }
}

/** Adjacency lists in one array: those of `node` are list[start[node]] to list[start[node + 1]]. */
function neighbours(size, from, to) {
  const start = new Int32Array(size + 1);
  for (const node of from) start[node + 1]++;
  for (let node = 0; node < size; node++) start[node + 1] += start[node];
  const next = start.slice();
  const list = new Int32Array(from.length);
  for (let i = 0; i < from.length; i++) list[next[from[i]]++] = to[i];
  return { start, list };
}

function reach(size, starts, { start, list }) {
  const seen = new Uint8Array(size);
  const stack = [...starts];
  for (const node of stack) seen[node] = 1;
  while (stack.length) {
    const node = stack.pop();
    for (let i = start[node]; i < start[node + 1]; i++) {
      if (!seen[list[i]]) {
        seen[list[i]] = 1;
        stack.push(list[i]);
      }
    }
  }
  return seen;
}

function formatBytes(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit++;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toPrecision(3)} ${units[unit]}`;
}

const formatCount = (count) => count.toLocaleString("en-US");
const plural = (count, word) => `${formatCount(count)} ${word}${count === 1 ? "" : "s"}`;
