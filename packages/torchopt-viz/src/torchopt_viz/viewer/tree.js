/**
 * What can be shown, as a tree. Its items are numbers: below `graph.size` the nodes, above that
 * containers: groups, folded repeats of groups, parts of what is too long to draw at once, and the
 * leaves of a group that has many.
 */
const PART = 1000;
const MANY_LEAVES = 12;

class Tree {
  constructor(graph) {
    this.graph = graph;
    this.containers = [];
    this.byGroup = graph.groups.map((group) => this.#add(group.kind, group.label, group.key));
    this.root = this.byGroup[0];
    const folded = new Map();
    for (const groups of graph.repeats) {
      const labels = groups.map((key) => graph.groups[key].label);
      const kind = graph.groups[groups[0]].kind;
      const repeat = this.#add(kind, commonLabel(labels), null, groups.length);
      repeat.above = this.byGroup[graph.groups[groups[0]].parent];
      for (const key of groups) folded.set(key, repeat);
    }
    for (const container of this.containers) {
      const group = container.group === null ? null : graph.groups[container.group];
      container.above ??= folded.get(container.group) ?? this.byGroup[group.parent] ?? null;
    }
    for (const container of this.containers) container.above?.children.push(container.id);
    graph.columns.group.forEach((key, node) => this.byGroup[key].children.push(node));
    this.#measure();
    this.#gather();
    this.#measure();
  }

  #add(kind, label, group = null, times = 0) {
    const id = this.graph.size + this.containers.length;
    const container = { id, kind, label, group, times, above: undefined, children: [] };
    this.containers.push(container);
    return container;
  }

  /** Set parents, sizes and bytes, put children in order, and leave out what is empty. */
  #measure() {
    const order = [this.root];
    for (const container of order) {
      for (const child of container.children) if (this.isContainer(child)) order.push(this.at(child));
    }
    const nodes = this.graph.size;
    const parent = new Int32Array(nodes + this.containers.length).fill(-1);
    for (const container of order.reverse()) {
      container.children = container.children.filter((id) => this.size(id) > 0);
      container.children.sort((a, b) => this.first(a) - this.first(b));
      container.size = container.children.reduce((sum, id) => sum + this.size(id), 0);
      container.bytes = container.children.reduce((sum, id) => sum + this.bytes(id), 0);
      container.first = container.children.length ? this.first(container.children[0]) : nodes;
      for (const id of container.children) parent[id] = container.id;
    }
    this.parent = parent;
  }

  #gather() {
    const leaf = new Set(["parameter", "leaf"].map((kind) => this.graph.strings.indexOf(kind)));
    const kinds = this.graph.columns.kind;
    for (const container of [...this.containers]) {
      const byRole = new Map(); // weights, learning rates and moments stay apart
      for (const id of container.children.filter((id) => leaf.has(kinds[id]))) {
        const role = this.graph.text("role", id);
        byRole.set(role, [...(byRole.get(role) ?? []), id]);
      }
      for (const [role, leaves] of byRole) {
        if (leaves.length <= MANY_LEAVES || leaves.length === container.children.length) continue;
        const named = leaves.every((id) => this.kind(id) === "parameter");
        const box = this.#add("leaves", `${named ? "parameters" : "leaves"}${role && `: ${role}`}`);
        box.children = leaves;
        const inside = new Set(leaves);
        container.children = container.children.filter((id) => !inside.has(id));
        container.children.push(box.id);
      }
    }
    for (const container of [...this.containers]) this.#split(container);
  }

  #split(container) {
    const children = container.children;
    if (children.length <= PART) return;
    const count = Math.ceil(children.length / PART);
    const each = Math.ceil(children.length / count);
    container.children = [];
    for (let i = 0; i < count; i++) {
      const part = this.#add("part", `part ${i + 1} of ${count}`);
      part.children = children.slice(i * each, (i + 1) * each);
      container.children.push(part.id);
    }
    this.#split(container);
  }

  isContainer(id) {
    return id >= this.graph.size;
  }

  at(id) {
    return this.containers[id - this.graph.size];
  }

  size(id) {
    return this.isContainer(id) ? this.at(id).size : 1;
  }

  bytes(id) {
    return this.isContainer(id) ? this.at(id).bytes : this.graph.bytes[id];
  }

  first(id) {
    return this.isContainer(id) ? this.at(id).first : id;
  }

  kind(id) {
    return this.isContainer(id) ? this.at(id).kind : this.graph.text("kind", id);
  }

  title(id) {
    if (!this.isContainer(id)) return this.graph.text("name", id) || this.graph.text("label", id);
    const { label, times } = this.at(id);
    return times ? `${label} × ${times}` : label;
  }

  subtitle(id) {
    const { graph } = this;
    if (!this.isContainer(id)) {
      if (this.kind(id) === "cut") return graph.text("cause", id);
      return graph.text("name", id) && graph.text("shape", id);
    }
    const bytes = this.bytes(id);
    return plural(this.size(id), "node") + (bytes ? ` · ${formatBytes(bytes)}` : "");
  }

  /** The containers around an item, innermost first. */
  ancestors(id) {
    const found = [];
    for (let above = this.parent[id]; above >= 0; above = this.parent[above]) found.push(above);
    return found;
  }

  /** The nodes in an item. */
  nodes(id) {
    const stack = [id];
    const found = [];
    while (stack.length) {
      const item = stack.pop();
      if (this.isContainer(item)) stack.push(...this.at(item).children);
      else found.push(item);
    }
    return found;
  }

  /** Where an item is: "inner step 3 / layers.0 (Conv2d)". */
  place(id) {
    return this.ancestors(id)
      .filter((above) => above !== this.root.id && !this.at(above).times)
      .reverse()
      .map((above) => this.title(above))
      .join(" / ");
  }

  /** All items whose name, label or module has a text, in order. */
  search(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return [];
    const { graph } = this;
    const match = graph.strings.map((string) => string.toLowerCase().includes(wanted));
    const { label, name } = graph.columns;
    const found = [];
    for (let node = 0; node < graph.size; node++) {
      if (match[label[node]] || match[name[node]]) found.push(node);
    }
    for (const container of this.containers) {
      if (container !== this.root && container.size && container.group !== null) {
        if (container.label.toLowerCase().includes(wanted)) found.push(container.id);
      }
    }
    return found.sort((a, b) => this.first(a) - this.first(b) || b - a);
  }
}

/** "inner step" for "inner step 1", "inner step 2"; "layers.… (Conv2d)" for several layers. */
function commonLabel(labels) {
  const [first] = labels;
  let start = 0;
  while (start < first.length && labels.every((label) => label[start] === first[start])) start++;
  if (start === first.length && labels.every((label) => label === first)) return first;
  let end = 0;
  const rest = Math.min(...labels.map((label) => label.length)) - start;
  while (end < rest && labels.every((label) => label.at(-1 - end) === first.at(-1 - end))) end++;
  const head = first.slice(0, start).replace(/\d+$/, "");
  const tail = end ? first.slice(-end).replace(/^\d+/, "") : "";
  return tail.trim() ? `${head}…${tail}` : head.trim() || "…";
}
