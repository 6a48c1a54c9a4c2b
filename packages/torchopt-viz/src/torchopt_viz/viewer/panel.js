/** The side panel: bytes by step and by module, cuts, unreached parameters, legend, selection. */
const CAUSES = {
  detached: "detached by .detach() or .data",
  "in-place": "written over in place",
  no_grad: "computed under no_grad",
  integer: "turned into integers",
};
const MANY_ROWS = 200;
const FEW_STEPS = 12;
const REST = "the rest";

function element(tag, { text, title, ...attributes } = {}, children = []) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (title) node.title = title;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const byId = (id) => document.getElementById(id);

/** What is known of an item: [term, text] pairs. */
function facts(tree, id) {
  const { graph } = tree;
  const rows = [];
  const place = tree.place(id);
  if (tree.isContainer(id)) {
    rows.push(["contains", plural(tree.size(id), "node")]);
    rows.push(["saved", formatBytes(tree.bytes(id))]);
    if (place) rows.push(["in", place]);
    return rows;
  }
  const kind = graph.text("kind", id);
  if (graph.text("name", id)) rows.push(["function", graph.text("label", id)]);
  if (kind === "cut") rows.push(["cut", CAUSES[graph.text("cause", id)]]);
  if (graph.text("shape", id)) rows.push(["shape", graph.text("shape", id)]);
  if (graph.text("dtype", id)) rows.push(["dtype", graph.text("dtype", id)]);
  for (const tensor of graph.saved(id)) {
    const notes = [tensor.shared ? "shared" : formatBytes(tensor.bytes), tensor.leaf ? "leaf" : ""];
    const note = notes.filter(Boolean).join(", ");
    const name = tensor.name.startsWith("saved") ? tensor.name : `saved ${tensor.name}`;
    rows.push([name, `${tensor.shape} ${tensor.dtype} · ${note}`]);
  }
  if (graph.unseen.has(id)) rows.push(["saved", "not shown by torch, not counted"]);
  for (const [name, value] of graph.attrs(id)) rows.push([name, value]);
  if (place) rows.push(["in", place]);
  if (graph.text("where", id)) rows.push(["line", graph.text("where", id)]);
  if (rows.length && rows[0][0] === "function" && kind !== "function") rows[0][0] = "class";
  return rows;
}

function description(tree, id, more = []) {
  const list = element("dl");
  for (const [term, text] of [...facts(tree, id), ...more]) {
    list.append(element("dt", { text: term }), element("dd", { text }));
  }
  return [element("strong", { text: tree.title(id) }), list];
}

class Panel {
  /** @param show What to call with an item that is to be shown in the graph. */
  constructor(tree, show) {
    this.tree = tree;
    this.show = show;
    const { graph } = tree;
    const total = tree.root.bytes;
    const edges = plural(graph.source.length, "edge");
    byId("summary").textContent = `${plural(graph.size, "node")}, ${edges}`;
    byId("total").textContent = formatBytes(total);
    byId("total").dataset.bytes = total;
    byId("leaves").textContent = graph.leafBytes
      ? `${formatBytes(graph.leafBytes)} of it parameters and other leaves`
      : "";
    byId("unseen").textContent = graph.unseen.size
      ? `Not counted: tensors of ${plural(graph.unseen.size, "function")} that torch does not show; ` +
        "compute under torchopt.visual.record() to see them."
      : "";
    this.#list(byId("by-step"), this.#stepRows(tree.root.id), total);
    this.#list(byId("by-module"), this.#moduleRows(), total);
    this.#tabs();
    this.#cuts();
    this.#unreached();
    this.#legend();
  }

  select(id, reached) {
    const section = byId("selection");
    section.hidden = id === null;
    if (id === null) return;
    const path = reached
      ? `${plural(reached, "node")} on the way to the output`
      : "the output is not reached";
    section.replaceChildren(...description(this.tree, id, [["path", path]]));
  }

  /** Rows of a container: what is in it by group, and what its own nodes hold. */
  #stepRows(container) {
    const { tree } = this;
    const groups = [];
    let own = 0;
    const visit = (id) => {
      for (const child of tree.at(id).children) {
        const box = tree.isContainer(child) ? tree.at(child) : null;
        if (box && (box.group !== null || box.times)) groups.push(child);
        else if (box) visit(child);
        else own += tree.bytes(child);
      }
    };
    visit(container);
    const rows = groups.map((id) => ({
      label: tree.title(id),
      bytes: tree.bytes(id),
      item: id,
      below: () => this.#stepRows(id),
      nested: tree.at(id).children.some((child) => tree.isContainer(child)),
      shown: tree.at(id).times > 0 && tree.at(id).times <= FEW_STEPS,
    }));
    if (own || !rows.length) rows.push({ label: rows.length ? REST : "not in a step or module", bytes: own });
    return rows;
  }

  /** Rows of all modules, each summed over the steps that it runs in. */
  #moduleRows() {
    const { tree } = this;
    const top = { below: new Map(), own: 0, bytes: 0, first: null };
    const chain = new Map([[0, top]]);
    for (const { key, parent, kind, label } of tree.graph.groups.slice(1)) {
      let row = chain.get(parent);
      if (kind === "module") {
        if (!row.below.has(label)) {
          row.below.set(label, { below: new Map(), own: 0, bytes: 0, first: tree.byGroup[key].id });
        }
        row = row.below.get(label);
      }
      chain.set(key, row);
    }
    tree.graph.columns.group.forEach((key, node) => {
      chain.get(key).own += tree.graph.bytes[node];
    });
    const rows = (entry, rest) => {
      const found = Array.from(entry.below, ([label, inner]) => ({
        label,
        bytes: sum(inner),
        item: inner.first,
        below: () => rows(inner, REST),
        nested: inner.below.size > 0,
      }));
      if (entry.own || !found.length) found.push({ label: rest, bytes: entry.own });
      return found.sort((a, b) => b.bytes - a.bytes);
    };
    const sum = (entry) =>
      [...entry.below.values()].reduce((bytes, inner) => bytes + sum(inner), entry.own);
    return rows(top, "not in a module");
  }

  #list(list, rows, total) {
    list.replaceChildren(...rows.slice(0, MANY_ROWS).map((row) => this.#row(row, total)));
    const rest = rows.slice(MANY_ROWS);
    if (!rest.length) return;
    const bytes = rest.reduce((sum, row) => sum + row.bytes, 0);
    list.append(this.#row({ label: `${formatCount(rest.length)} more`, bytes }, total));
  }

  #row({ label, bytes, item, below, nested, shown }, total) {
    const texts = [element("span", { text: label }), element("span", { text: formatBytes(bytes) })];
    const go = element("button", { type: "button", class: "go", title: label }, texts);
    go.style.setProperty("--share", `${total ? (100 * bytes) / total : 0}%`);
    if (item === undefined) go.disabled = true;
    else go.addEventListener("click", () => this.show(item));
    const twist = element("button", { type: "button", class: "twist", text: nested ? "▸" : "" });
    const inner = element("ul", { hidden: "" });
    if (nested) {
      twist.setAttribute("aria-label", `Open ${label}`);
      twist.setAttribute("aria-expanded", "false");
      twist.addEventListener("click", () => {
        if (!inner.childElementCount) this.#list(inner, below(), total);
        inner.hidden = !inner.hidden;
        twist.textContent = inner.hidden ? "▸" : "▾";
        twist.setAttribute("aria-expanded", String(!inner.hidden));
      });
    } else {
      twist.disabled = true;
      twist.setAttribute("aria-hidden", "true");
    }
    if (shown) twist.click();
    const row = element("div", { class: "row" }, [twist, go]);
    return element("li", { "data-bytes": bytes }, [row, inner]);
  }

  #tabs() {
    const tabs = [byId("tab-steps"), byId("tab-modules")];
    for (const tab of tabs) {
      tab.addEventListener("click", () => {
        for (const other of tabs) {
          other.setAttribute("aria-selected", String(other === tab));
          byId(other.getAttribute("aria-controls")).hidden = other !== tab;
        }
      });
    }
  }

  #cuts() {
    const { graph } = this.tree;
    const cuts = graph.nodesOfKind("cut");
    const section = byId("cuts");
    section.querySelector(".count").textContent = formatCount(cuts.length);
    if (!cuts.length) section.append(element("p", { class: "note", text: "None found." }));
    const rows = cuts.slice(0, MANY_ROWS).map((node) => {
      const parts = [graph.text("name", node) || graph.text("label", node), graph.text("where", node)];
      const cause = graph.text("cause", node);
      const button = element("button", { type: "button", title: CAUSES[cause] }, [
        element("span", { class: "cause", text: cause }),
        ` ${parts.filter(Boolean).join(" · ")}`,
      ]);
      button.addEventListener("click", () => this.show(node));
      return element("li", {}, [button]);
    });
    if (cuts.length > MANY_ROWS) {
      rows.push(element("li", { text: `${formatCount(cuts.length - MANY_ROWS)} more` }));
    }
    section.querySelector("ul").append(...rows);
  }

  #unreached() {
    const names = this.tree.graph.unreached;
    const section = byId("unreached");
    section.querySelector(".count").textContent = formatCount(names.length);
    if (!names.length) section.append(element("p", { class: "note", text: "None." }));
    section.querySelector("ul").append(...names.map((text) => element("li", { text })));
  }

  #legend() {
    const present = new Set(this.tree.graph.columns.kind);
    const rows = KINDS.filter(([kind]) => present.has(this.tree.graph.strings.indexOf(kind)));
    const groups = new Set(this.tree.graph.groups.map(({ kind }) => kind));
    rows.push(["group", "Step or module: click to open"]);
    if (groups.has("backward")) rows.push(["backward", "Backward pass that can be differentiated"]);
    if (this.tree.graph.repeats.length) rows.push(["repeat", "Repeated groups, folded"]);
    const list = rows.map(([kind, text]) => {
      const colour = kind === "repeat" ? "group" : kind;
      const swatch = element("i", { class: kind });
      swatch.style.background = `var(--${colour}-fill)`;
      swatch.style.borderColor = `var(--${colour}-edge)`;
      return element("li", {}, [swatch, element("span", { text })]);
    });
    byId("legend").querySelector("ul").append(...list);
  }
}
