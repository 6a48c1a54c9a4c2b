function showPanel(shown) {
  byId("panel").hidden = !shown;
  byId("toggle-panel").setAttribute("aria-expanded", String(shown));
}

/** What mouse, fingers and keyboard do, and what scripts may ask of the page. */
function listen(viewer) {
  const place = (event) => [event.offsetX, event.offsetY];
  const down = new Map(); // the places of the mouse button or the fingers that are down
  let moved = false;
  const middle = () => {
    const [x, y] = [0, 1].map((i) => [...down.values()].reduce((sum, at) => sum + at[i], 0) / down.size);
    const apart = [...down.values()].reduce((sum, at) => sum + Math.hypot(at[0] - x, at[1] - y), 0);
    return { x, y, apart };
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (!down.size) moved = false;
    else moved = true; // two fingers pinch, and touch nothing
    down.set(event.pointerId, place(event));
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    if (!down.has(event.pointerId)) {
      if (event.pointerType !== "touch") viewer.hover(viewer.at(x, y), x, y);
      return;
    }
    const slack = event.pointerType === "touch" ? 10 : 4;
    const [startX, startY] = down.get(event.pointerId);
    if (!moved && Math.hypot(x - startX, y - startY) < slack) return;
    moved = true;
    viewer.hover(null);
    const before = middle();
    down.set(event.pointerId, [x, y]);
    const after = middle();
    viewer.pan(after.x - before.x, after.y - before.y);
    if (before.apart && after.apart) viewer.zoom(after.apart / before.apart, after.x, after.y);
    canvas.classList.add("dragging");
  });
  const lift = (event) => {
    down.delete(event.pointerId);
    if (!down.size) canvas.classList.remove("dragging");
  };
  canvas.addEventListener("pointerup", (event) => {
    if (down.has(event.pointerId) && !moved) {
      const [x, y] = place(event);
      const id = viewer.at(x, y);
      viewer.focused = null;
      viewer.activate(id);
      // a finger cannot point without touching: what it has selected is told at once
      viewer.hover(event.pointerType === "touch" && viewer.selected === id ? id : null, x, y);
    }
    lift(event);
  });
  canvas.addEventListener("pointercancel", lift);
  canvas.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") viewer.hover(null);
  });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    viewer.zoom(Math.exp(-event.deltaY * lines * 0.0015), ...place(event));
  }, { passive: false });

  const keys = {
    ArrowLeft: () => viewer.step(-1, 0),
    ArrowRight: () => viewer.step(1, 0),
    ArrowUp: () => viewer.step(0, -1),
    ArrowDown: () => viewer.step(0, 1),
    Enter: () => viewer.focused !== null && viewer.activate(viewer.focused),
    " ": () => viewer.focused !== null && viewer.activate(viewer.focused),
    "+": () => viewer.zoom(1.25),
    "=": () => viewer.zoom(1.25),
    "-": () => viewer.zoom(0.8),
    0: () => viewer.fit(),
    Escape: () => {
      viewer.focused = null;
      viewer.select(null);
    },
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target === byId("query")) return;
    event.preventDefault();
    showPanel(true);
    byId("query").select();
  });

  const click = (id, action) => byId(id).addEventListener("click", action);
  click("zoom-in", () => viewer.zoom(1.25));
  click("zoom-out", () => viewer.zoom(0.8));
  click("fit", () => viewer.fit());
  click("collapse", () => viewer.collapseAll());
  click("previous", () => viewer.nextHit(-1));
  click("next", () => viewer.nextHit(1));
  click("export", () => {
    const url = URL.createObjectURL(new Blob([viewer.svg()], { type: "image/svg+xml" }));
    const link = element("a", { href: url, download: `${document.title || "graph"}.svg` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
  click("toggle-panel", () => showPanel(byId("panel").hidden));
  let pause;
  byId("query").addEventListener("input", ({ target }) => {
    clearTimeout(pause);
    viewer.search(target.value);
    pause = setTimeout(() => viewer.hit < 0 && viewer.nextHit(1), 300);
  });
  byId("search").addEventListener("submit", (event) => event.preventDefault());
  byId("query").addEventListener("keydown", (event) => {
    if (event.key === "Enter") {
      event.preventDefault();
      viewer.nextHit(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") canvas.focus();
  });
  new ResizeObserver(() => viewer.resized()).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => viewer.recoloured());
}

/** What scripts and tests may ask of the page. */
function handle(viewer) {
  const { tree } = viewer;
  const inWindow = (point) => {
    const { x, y, scale } = viewer.view;
    const { left, top } = canvas.getBoundingClientRect();
    return { x: left + x + scale * point.x, y: top + y + scale * point.y };
  };
  return {
    ready: true,
    expand: (id) => viewer.expand(id),
    collapse: (id) => viewer.collapse(id),
    fit: () => viewer.fit(),
    search: (text) => viewer.search(text),
    group: (key) => tree.byGroup[key].id,
    svg: () => viewer.svg(),
    get view() {
      return { ...viewer.view };
    },
    get selected() {
      return viewer.selected;
    },
    get focused() {
      return viewer.focused;
    },
    get totalBytes() {
      return tree.root.bytes;
    },
    /** What is drawn, with its place in the window. */
    get boxes() {
      const { scale } = viewer.view;
      return Array.from(viewer.scene.boxes.values(), (box) => ({
        id: box.id,
        title: tree.title(box.id),
        kind: tree.kind(box.id),
        open: box.open,
        onPath: viewer.path?.items.has(box.id) ?? false,
        ...inWindow(box),
        width: scale * box.width,
        height: scale * box.height,
      }));
    },
    /** By item, the container around it. */
    get parents() {
      return Object.fromEntries([...tree.parent.entries()].filter(([, above]) => above >= 0));
    },
    get links() {
      return viewer.scene.links.map((link) => ({
        source: link.from,
        target: link.to,
        from: tree.title(link.from),
        to: tree.title(link.to),
        count: link.count,
        onPath: viewer.path?.links.has(link) ?? false,
        points: link.points.map(inWindow),
      }));
    },
  };
}

readGraph().then(
  (graph) => {
    showPanel(!matchMedia("(max-width: 700px)").matches); // on a phone the graph comes first
    const viewer = new Viewer(graph);
    listen(viewer);
    window.torchopt = handle(viewer);
  },
  (error) => {
    byId("summary").textContent = String(error.message ?? error);
    throw error;
  },
);
