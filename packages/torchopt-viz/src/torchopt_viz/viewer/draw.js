/** Draws a laid out graph with a pen: on the canvas, or as the text of an SVG file. */
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const KINDS = [
  ["parameter", "Parameter: a leaf with a name"],
  ["leaf", "Leaf without a name"],
  ["tensor", "Named tensor that was computed"],
  ["function", "Function with a backward pass"],
  ["step", "Fused optimizer step"],
  ["output", "Output"],
  ["cut", "Place where a gradient is cut"],
];

const measuring = document.createElement("canvas").getContext("2d");
const widths = new Map();

function textWidth(text, font) {
  const key = font + text;
  if (!widths.has(key)) {
    measuring.font = font;
    widths.set(key, measuring.measureText(text).width);
  }
  return widths.get(key);
}

const TITLE = `500 12.5px ${FONT}`;
const SMALL = `11px ${FONT}`;
const WIDEST = 280;

/** A text that is at most so wide, shortened in its middle. */
function fitted(text, font, width) {
  if (textWidth(text, font) <= width) return text;
  let [low, high] = [1, text.length - 1];
  const cut = (kept) => {
    const tail = Math.floor(kept / 2);
    return `${text.slice(0, kept - tail)}…${tail ? text.slice(-tail) : ""}`;
  };
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    measuring.font = font;
    if (measuring.measureText(cut(middle)).width <= width) low = middle;
    else high = middle - 1;
  }
  return cut(low);
}

/** The [width, height] of a closed item. */
function boxSize(tree, id) {
  const title = textWidth(tree.title(id), TITLE) + (tree.isContainer(id) ? 18 : 0);
  const subtitle = textWidth(tree.subtitle(id), SMALL);
  const width = Math.min(Math.max(title, subtitle), WIDEST) + 24;
  return [Math.ceil(Math.max(width, 56)), tree.subtitle(id) ? 44 : 28];
}

/** The colours of the page as it is now, light or dark. */
function palette() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["back", "text", "faint", "line", "accent", "frame", "frame-edge", "box", "edge"];
  const colours = Object.fromEntries(names.map((name) => [name, get(name)]));
  for (const [kind] of KINDS) colours[kind] = [get(`${kind}-fill`), get(`${kind}-edge`)];
  for (const kind of ["graph", "module", "backward", "part", "leaves", "group-step"]) {
    colours[kind] = [get("group-fill"), get("group-edge")];
  }
  colours.leaves = colours.leaf;
  colours.backward = [get("backward-fill"), get("backward-edge")];
  return colours;
}

/**
 * @param pen A CanvasPen or an SvgPen.
 * @param scene What Layout.arrange returned.
 * @param look {tree, colours, path: null or {items, links}, selected, focused, hovered, area,
 *   detail: whether there is room for text}.
 */
function drawScene(pen, scene, look) {
  const { tree, colours, path, area } = look;
  const seen = (box) =>
    box.x < area.right && box.x + box.width > area.left &&
    box.y < area.bottom && box.y + box.height > area.top;
  const boxes = [...scene.boxes.values()].filter(seen);
  for (const box of boxes) {
    if (box.open) drawFrame(pen, box, look);
  }
  const links = scene.links.filter((link) => seen((link.bounds ??= bounds(link.points))));
  const touched = (link) =>
    path ? path.links.has(link) : link.from === look.hovered || link.to === look.hovered;
  for (const link of links) if (!touched(link)) drawLink(pen, link, look, false, Boolean(path));
  for (const link of links) if (touched(link)) drawLink(pen, link, look, true, false);
  pen.fade(1);
  for (const box of boxes) {
    pen.fade(path && !box.open && !path.items.has(box.id) ? 0.35 : 1);
    if (box.open) drawFrameTitle(pen, box, look);
    else drawBox(pen, box, look);
  }
  pen.fade(1);
  for (const id of [look.selected, look.focused]) {
    const box = scene.boxes.get(id);
    if (!box) continue;
    const { x, y, width, height } = box;
    const ring = { stroke: colours.accent, width: 2, dash: id === look.selected ? null : [4, 3] };
    pen.box(x - 4, y - 4, width + 8, height + 8, 9, ring);
  }
}

function bounds(points) {
  const [x, y] = [Math.min(...points.map(({ x }) => x)), Math.min(...points.map(({ y }) => y))];
  const right = Math.max(...points.map(({ x }) => x));
  const bottom = Math.max(...points.map(({ y }) => y));
  return { x, y, width: right - x + 1, height: bottom - y + 1 };
}

function drawFrame(pen, box, { tree, colours }) {
  const backward = tree.kind(box.id) === "backward";
  const stroke = backward ? colours.backward[1] : colours["frame-edge"];
  pen.box(box.x, box.y, box.width, box.height, 10, { fill: colours.frame, stroke, width: 1 });
}

function drawFrameTitle(pen, box, { tree, colours, detail, hovered }) {
  if (!detail) return;
  const sign = hovered === box.id ? colours.accent : colours.faint;
  const title = fitted(tree.title(box.id), TITLE, box.width - 44);
  pen.text("−", box.x + 13, box.y + 20, { font: TITLE, fill: sign });
  const halo = colours.back;
  pen.text(title, box.x + 27, box.y + 20, { font: TITLE, fill: colours.text, halo });
}

function drawLink(pen, link, { tree, colours, detail }, strong, faded) {
  const { points, count } = link;
  const stroke = strong ? colours.accent : colours.edge;
  pen.fade(faded ? 0.25 : 1);
  const width = (strong ? 1.8 : 1.1) + Math.min(1.6, Math.log10(count) * 0.6);
  pen.curve(link, { stroke, width });
  if (!detail) return;
  const end = points.at(-1);
  const before = { x: end.x, y: end.y - (link.back ? -1 : 1) };
  pen.arrow(points.length > 2 ? points.at(-2) : before, end, stroke);
  if (count > 1 && !faded && tree.isContainer(link.from) && tree.isContainer(link.to)) {
    const text = `×${formatCount(count)}`;
    const middle = countPlace(points);
    const half = textWidth(text, SMALL) / 2 + 3;
    pen.box(middle.x - half, middle.y - 7, 2 * half, 14, 4, { fill: colours.back });
    const fill = strong ? colours.accent : colours.faint;
    pen.text(text, middle.x, middle.y + 4, { font: SMALL, fill, align: "center" });
  }
}

/** A point right after the source of a link, where there is neither a box nor a title. */
function countPlace([from, next]) {
  return { x: from.x, y: from.y + 14 * Math.sign(next.y - from.y) };
}

function drawBox(pen, box, { tree, colours, detail, hovered }) {
  const { id, x, y, width, height } = box;
  const group = tree.isContainer(id);
  const kind = tree.kind(id);
  const [pale, edge] = colours[group && kind === "step" ? "group-step" : kind];
  const fill = detail ? pale : edge;
  const stroke = hovered === id ? colours.accent : edge;
  if (group && tree.at(id).times) {
    for (const shift of [6, 3]) {
      pen.box(x + shift, y + shift, width, height, 7, { fill, stroke, width: 1 });
    }
  }
  const dash = kind === "cut" ? [4, 3] : null;
  pen.box(x, y, width, height, group ? 7 : 5, { fill, stroke, width: 1.1, dash });
  if (!detail) return;
  const subtitle = tree.subtitle(id);
  const line = y + (subtitle ? 18 : height / 2 + 4.5);
  const title = fitted(tree.title(id), TITLE, width - (group ? 36 : 18));
  const middle = x + width / 2;
  if (group) pen.text("+", x + 11, line, { font: TITLE, fill: colours.faint });
  const shift = group ? 7 : 0;
  pen.text(title, middle + shift, line, { font: TITLE, fill: colours.text, align: "center" });
  const small = { font: SMALL, fill: colours.faint, align: "center" };
  if (subtitle) pen.text(fitted(subtitle, SMALL, width - 12), middle, y + 34, small);
}

class CanvasPen {
  constructor(context) {
    this.context = context;
  }

  fade(alpha) {
    this.context.globalAlpha = alpha;
  }

  box(x, y, width, height, radius, { fill, stroke, width: line, dash }) {
    const { context } = this;
    context.beginPath();
    context.roundRect(x, y, width, height, radius);
    if (fill) {
      context.fillStyle = fill;
      context.fill();
    }
    if (stroke) {
      context.setLineDash(dash ?? []);
      context.strokeStyle = stroke;
      context.lineWidth = line;
      context.stroke();
      context.setLineDash([]);
    }
  }

  curve(link, { stroke, width }) {
    this.context.strokeStyle = stroke;
    this.context.lineWidth = width;
    this.context.stroke((link.path ??= new Path2D(curvePath(link.points))));
  }

  arrow(from, to, fill) {
    this.context.fillStyle = fill;
    this.context.fill(new Path2D(arrowPath(from, to)));
  }

  text(text, x, y, { font, fill, align = "left", halo }) {
    const { context } = this;
    context.font = font;
    context.textAlign = align;
    if (halo) {
      context.strokeStyle = halo;
      context.lineWidth = 4;
      context.lineJoin = "round";
      context.strokeText(text, x, y);
    }
    context.fillStyle = fill;
    context.fillText(text, x, y);
  }
}

class SvgPen {
  constructor() {
    this.parts = [];
    this.alpha = 1;
  }

  fade(alpha) {
    this.alpha = alpha;
  }

  #add(tag, attributes, text) {
    const opacity = this.alpha === 1 ? {} : { opacity: this.alpha };
    const all = Object.entries({ ...attributes, ...opacity })
      .filter(([, value]) => value !== undefined && value !== null)
      .map(([name, value]) => `${name}="${escapeXml(value)}"`);
    const body = text === undefined ? "/>" : `>${escapeXml(text)}</${tag}>`;
    this.parts.push(`<${tag} ${all.join(" ")}${body}`);
  }

  box(x, y, width, height, rx, { fill = "none", stroke, width: line, dash }) {
    const style = { fill, stroke, "stroke-width": line, "stroke-dasharray": dash?.join(" ") };
    this.#add("rect", { x: tidy(x), y: tidy(y), width: tidy(width), height, rx, ...style });
  }

  curve({ points }, { stroke, width }) {
    this.#add("path", { d: curvePath(points), fill: "none", stroke, "stroke-width": tidy(width) });
  }

  arrow(from, to, fill) {
    this.#add("path", { d: arrowPath(from, to), fill });
  }

  text(text, x, y, { font, fill, align, halo }) {
    const anchor = align === "center" ? "middle" : undefined;
    const around = halo ? `;paint-order:stroke;stroke:${halo};stroke-width:4px` : "";
    const style = `font:${font}${around}`;
    this.#add("text", { x: tidy(x), y: tidy(y), fill, "text-anchor": anchor, style }, text);
  }

  file(width, height, back) {
    const box = `-20 -20 ${Math.ceil(width) + 40} ${Math.ceil(height) + 40}`;
    return [
      `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${box}">`,
      `<rect x="-20" y="-20" width="100%" height="100%" fill="${back}"/>`,
      ...this.parts,
      "</svg>\n",
    ].join("\n");
  }
}

const tidy = (value) => Math.round(value * 10) / 10;

function escapeXml(value) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return String(value)
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, "\ufffd")
    .replace(/[&<>"]/g, (letter) => names[letter]);
}

function curvePath(points) {
  const at = ({ x, y }) => `${tidy(x)} ${tidy(y)}`;
  const [first] = points;
  const last = points.at(-1);
  if (points.length === 2) {
    const middle = (first.y + last.y) / 2;
    return `M${at(first)}C${at({ x: first.x, y: middle })} ${at({ x: last.x, y: middle })} ${at(last)}`;
  }
  let path = `M${at(first)}`;
  for (let i = 1; i < points.length - 1; i++) {
    const [before, corner, after] = points.slice(i - 1, i + 2);
    path += `L${at(toward(corner, before))}Q${at(corner)} ${at(toward(corner, after))}`;
  }
  return `${path}L${at(last)}`;
}

/** The point near a corner, on the way to another point, where rounding begins. */
function toward(corner, other) {
  const length = Math.hypot(other.x - corner.x, other.y - corner.y) || 1;
  const share = Math.min(24 / length, 0.5);
  const along = (from, to) => from + share * (to - from);
  return { x: along(corner.x, other.x), y: along(corner.y, other.y) };
}

function arrowPath(from, to) {
  const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  const [dx, dy] = [(to.x - from.x) / length, (to.y - from.y) / length];
  const [x, y] = [to.x - 7 * dx, to.y - 7 * dy];
  const corner = (side) => `${tidy(x - side * 3.2 * dy)} ${tidy(y + side * 3.2 * dx)}`;
  return `M${tidy(to.x)} ${tidy(to.y)}L${corner(1)} ${corner(-1)}Z`;
}
