/** The view on the graph: what is open, marked and in sight. */
const MOST_BOXES = 6000;
const FEW_BOXES = 40;
const ZOOM = { least: 0.01, legible: 0.6, full: 1, most: 4 };
const canvas = byId("canvas");

class Viewer {
  constructor(graph) {
    this.tree = new Tree(graph);
    this.layout = new Layout();
    this.open = new Set([this.tree.root.id]);
    this.view = { x: 0, y: 0, scale: 1 }; // where the graph's origin is on the canvas
    this.selected = this.focused = this.hovered = null;
    this.path = null;
    this.hits = [];
    this.hit = -1;
    this.panel = new Panel(this.tree, (id) => this.show(id));
    this.colours = palette();
    this.#openFew();
    this.#arrange();
    this.#resize();
    this.start();
  }

  /** Open what fits on a screen, level by level. */
  #openFew() {
    let level = [this.tree.root.id];
    while (level.length && this.#count(new Set([...this.open, ...level])) <= FEW_BOXES) {
      for (const id of level) this.open.add(id);
      level = level
        .flatMap((id) => this.tree.at(id).children)
        .filter((id) => this.tree.isContainer(id) && this.tree.kind(id) !== "leaves");
    }
  }

  #arrange() {
    this.scene = this.layout.arrange(this.tree, this.open, (id) => boxSize(this.tree, id));
    this.#mark();
    this.draw();
  }

  /** How many boxes are drawn when these containers are open. */
  #count(open) {
    let boxes = 0;
    const stack = [this.tree.root.id];
    while (stack.length) {
      for (const child of this.tree.at(stack.pop()).children) {
        boxes++;
        if (open.has(child)) stack.push(child);
      }
    }
    return boxes;
  }

  /** Open a container, unless too much would be seen; its corner stays where it is. */
  expand(id) {
    if (!this.tree.isContainer(id) || this.open.has(id)) return false;
    const open = new Set(this.open).add(id);
    const boxes = this.#count(open);
    if (boxes > MOST_BOXES) {
      const most = formatCount(MOST_BOXES);
      this.say(`That would draw ${formatCount(boxes)} boxes, ${most} at most: close a group first.`);
      return false;
    }
    this.#change(id, open);
    return true;
  }

  collapse(id) {
    if (id === this.tree.root.id || !this.open.has(id)) return false;
    const open = new Set(this.open);
    open.delete(id);
    this.#change(id, open);
    return true;
  }

  collapseAll() {
    this.open = new Set([this.tree.root.id]);
    this.#arrange();
    this.start();
  }

  #change(id, open) {
    const before = this.scene.boxes.get(id);
    this.open = open;
    this.#arrange();
    const after = this.scene.boxes.get(id);
    if (before && after) {
      const anchor = (box) => (box.open ? box.x + 24 : box.x + 12);
      const { scale } = this.view;
      this.pan(scale * (anchor(before) - anchor(after)), scale * (before.y - after.y));
    }
    this.draw();
  }

  /** Open what hides an item, not what hid the one before it, and bring it to the middle. */
  reveal(id) {
    const above = this.tree.ancestors(id);
    if (this.open !== this.revealed) this.opened = this.open;
    let open = new Set([...this.opened, ...above]);
    if (this.#count(open) > MOST_BOXES) {
      open = new Set(above);
      this.say("Other groups were closed to make room.");
    }
    const changed = open.size !== this.open.size || above.some((one) => !this.open.has(one));
    this.revealed = this.open = open;
    if (changed) this.#arrange();
    const box = this.scene.boxes.get(id);
    if (!box) return;
    const scale = Math.max(this.view.scale, 0.8);
    const top = box.open ? Math.min(box.height, 80) : box.height;
    this.view = {
      scale,
      x: this.width / 2 - scale * (box.x + box.width / 2),
      y: this.height / 2 - scale * (box.y + top / 2),
    };
    this.focus(id);
  }

  show(id) {
    this.reveal(id);
    if (!this.tree.isContainer(id)) this.select(id);
  }

  focus(id) {
    this.focused = id;
    const texts = facts(this.tree, id).map(([term, text]) => `${term} ${text}`);
    byId("announce").textContent = [this.tree.title(id), ...texts].join(", ");
    this.draw();
  }

  /** Select a node, and mark its paths to the output. */
  select(id) {
    this.selected = id;
    this.onPath = id === null ? null : this.tree.graph.pathsToOutput([id]);
    this.#mark();
    this.panel.select(id, this.onPath?.reduce((sum, seen) => sum + seen, 0));
    this.draw();
  }

  /** Which of the visible boxes and links the marked paths go through. */
  #mark() {
    this.path = null;
    if (!this.onPath) return;
    const { graph } = this.tree;
    const item = visibleItems(this.tree, openContainers(this.tree, this.open));
    const items = new Set([item[this.selected]]);
    const pairs = new Set();
    this.onPath.forEach((seen, node) => seen && items.add(item[node]));
    for (let i = 0; i < graph.source.length; i++) {
      const [from, to] = [graph.source[i], graph.target[i]];
      if (this.onPath[from] && this.onPath[to]) pairs.add(`${item[from]}>${item[to]}`);
    }
    const links = this.scene.links.filter(({ from, to }) => pairs.has(`${from}>${to}`));
    this.path = { items, links: new Set(links) };
  }

  search(text) {
    this.hits = this.tree.search(text);
    this.hit = -1;
    byId("hits").textContent = text.trim() ? (this.hits.length ? formatCount(this.hits.length) : "none") : "";
    return this.hits.length;
  }

  nextHit(step) {
    if (!this.hits.length) return null;
    const start = this.hit < 0 && step < 0 ? 0 : this.hit;
    this.hit = (start + step + this.hits.length) % this.hits.length;
    byId("hits").textContent = `${formatCount(this.hit + 1)} of ${formatCount(this.hits.length)}`;
    this.reveal(this.hits[this.hit]);
    return this.hits[this.hit];
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const scale = Math.min(ZOOM.most, Math.max(ZOOM.least, this.view.scale * factor));
    const ratio = scale / this.view.scale;
    this.view = { scale, x: x - ratio * (x - this.view.x), y: y - ratio * (y - this.view.y) };
    this.draw();
  }

  /** Show the whole graph, or from its top as much of it as can be read. */
  fit(readable = false) {
    const margin = { top: byId("tools").offsetHeight + 28, side: this.width < 500 ? 12 : 24 };
    const { width, height } = this.scene;
    const across = (this.width - 2 * margin.side) / width;
    const down = (this.height - margin.top - margin.side) / height;
    const least = readable ? Math.min(Math.max(across, ZOOM.legible), ZOOM.full) : ZOOM.least;
    const scale = Math.max(Math.min(across, down, 1.25), least);
    const spare = this.height - margin.top - margin.side - scale * height;
    this.view = {
      scale,
      x: (this.width - scale * width) / 2,
      y: margin.top + Math.max(0, spare / 2),
    };
    this.fitted = { view: this.view, readable };
    this.draw();
  }

  start() {
    this.fit(true);
  }

  pan(x, y) {
    this.view = { ...this.view, x: this.view.x + x, y: this.view.y + y };
    this.draw();
  }

  /** The item at a place on the canvas; the frame of an open container counts by its title. */
  at(clientX, clientY) {
    const x = (clientX - this.view.x) / this.view.scale;
    const y = (clientY - this.view.y) / this.view.scale;
    let found = null;
    for (const box of this.scene.boxes.values()) {
      const height = box.open ? GAP.header : box.height;
      if (x < box.x || x > box.x + box.width || y < box.y || y > box.y + height) continue;
      if (found === null || box.depth >= this.scene.boxes.get(found).depth) found = box.id;
    }
    return found;
  }

  activate(id) {
    if (id === null) this.select(null);
    else if (!this.tree.isContainer(id)) this.select(this.selected === id ? null : id);
    else if (this.open.has(id)) this.collapse(id);
    else this.expand(id);
  }

  /** Move the focus to the next box in a direction. */
  step(dx, dy) {
    const boxes = [...this.scene.boxes.values()];
    const middle = (box) => [box.x + box.width / 2, box.y + (box.open ? GAP.header / 2 : box.height / 2)];
    const current = this.scene.boxes.get(this.focused ?? this.selected);
    if (!current) return this.focus(boxes[0].id);
    const [x, y] = middle(current);
    let best = null;
    let least = Infinity;
    for (const box of boxes) {
      const [toX, toY] = middle(box).map((value, i) => value - [x, y][i]);
      const along = toX * dx + toY * dy;
      const distance = along + 3 * Math.abs(toX * dy + toY * dx);
      if (along > 1 && distance < least) [best, least] = [box, distance];
    }
    if (!best) return;
    this.focus(best.id);
    const [toX, toY] = middle(best).map((value) => value * this.view.scale);
    const [left, top] = [toX + this.view.x, toY + this.view.y];
    const shift = (value, size) => Math.min(Math.max(value, 80), size - 80) - value;
    this.pan(shift(left, this.width), shift(top, this.height));
  }

  hover(id, x, y) {
    if (id !== this.hovered) {
      this.hovered = id;
      this.draw();
      if (id !== null) byId("tip").replaceChildren(...description(this.tree, id));
    }
    const tip = byId("tip");
    tip.hidden = id === null;
    canvas.classList.toggle("pointing", id !== null);
    if (id === null) return;
    const { offsetWidth, offsetHeight } = tip;
    const left = x + 14 + offsetWidth > this.width ? x - 14 - offsetWidth : x + 14;
    const top = y + 14 + offsetHeight > this.height ? y - 14 - offsetHeight : y + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  }

  say(text) {
    const status = byId("status");
    status.textContent = text;
    status.hidden = false;
    clearTimeout(this.silence);
    this.silence = setTimeout(() => (status.hidden = true), 6000);
  }

  #look(area, detail) {
    const { tree, colours, path, selected, focused, hovered } = this;
    return { tree, colours, path, selected, focused, hovered, area, detail };
  }

  draw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.#paint();
    });
  }

  #paint() {
    const ratio = devicePixelRatio;
    const context = canvas.getContext("2d");
    const { x, y, scale } = this.view;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = this.colours.back;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * x, ratio * y);
    const area = {
      left: -x / scale, right: (this.width - x) / scale,
      top: -y / scale, bottom: (this.height - y) / scale,
    };
    drawScene(new CanvasPen(context), this.scene, this.#look(area, scale > 0.3));
  }

  /** The graph as it is drawn now, as the text of an SVG file. */
  svg() {
    const pen = new SvgPen();
    const all = { left: -Infinity, right: Infinity, top: -Infinity, bottom: Infinity };
    drawScene(pen, this.scene, { ...this.#look(all, true), hovered: null, focused: null });
    return pen.file(this.scene.width, this.scene.height, this.colours.back);
  }

  #resize() {
    const { clientWidth, clientHeight } = canvas;
    this.width = clientWidth;
    this.height = clientHeight;
    canvas.width = Math.round(clientWidth * devicePixelRatio);
    canvas.height = Math.round(clientHeight * devicePixelRatio);
  }

  resized() {
    const [width, height] = [this.width, this.height];
    this.#resize();
    if (this.fitted.view === this.view) this.fit(this.fitted.readable);
    else this.pan((this.width - width) / 2, (this.height - height) / 2);
    this.#paint();
  }

  recoloured() {
    this.colours = palette();
    this.draw();
  }
}
