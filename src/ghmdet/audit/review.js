// One suspicion at a time. Decisions are kept in the browser and exported; nothing leaves the page otherwise.
const { audit, items, review, counts } = JSON.parse(document.getElementById("items").textContent);
const find = (selector) => document.querySelector(selector);
const kept = `ghmdet-audit-${audit}`;
let decisions = {};
try { decisions = JSON.parse(localStorage.getItem(kept)) ?? {}; } catch { /* no storage: they last as long as the page */ }
const undone = [];
// The one list over all, or that of a kind, where a label may be that is likelier something else.
const listOf = (name) => name ? items.filter((one) => one.kind === name).sort((a, b) => b.score - a.score) : items.filter((one) => one.likeliest && one.id <= review);
let chosen = listOf(""), at = 0, kind = "";

const sentence = {
  missing: (one) => `Nothing is labelled here. Add ${one.new_class}?`,
  class: (one) => `Labelled ${one.class}. Make it ${one.new_class}?`,
  shifted: (one) => `This ${one.class} is beside its object. Move the box?`,
  spurious: (one) => `Nothing is seen here. Remove this ${one.class}?`,
  duplicate: (one) => `A second label on one object. Remove this ${one.class}${one.twin.length ? " and keep the dashed one" : ""}?`,
};
const classOf = (one) => one.class ?? one.new_class;
const svg = (name, values) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
  return made;
};
const rect = (box, of) => svg("rect", { x: box[0], y: box[1], width: box[2], height: box[3], class: of });

const RECENT = 20;
function overlap([ax, ay, aw, ah], [bx, by, bw, bh]) {
  const both = Math.max(0, Math.min(ax + aw, bx + bw) - Math.max(ax, bx)) * Math.max(0, Math.min(ay + ah, by + bh) - Math.max(ay, by));
  return both / (aw * ah + bw * bh - both);
}
// The accepted suspicion that is of the same label, or has brought this one's object a box: `audit apply` refuses the second.
const twin = (one) => items.find((other) =>
  other !== one && other.picture === one.picture && decisions[other.id] === "accept" && ((one.label && one.label === other.label) ||
  (other.new_box && one.new_box && (other.new_class === one.new_class || (one.kind !== "class" && other.kind !== "class")) && overlap(other.new_box, one.new_box) >= .5)));

function show() {
  const one = chosen[at];
  const decided = chosen.filter((each) => decisions[each.id]);
  const last = decided.slice(-RECENT), accepted = last.filter((each) => decisions[each.id] === "accept").length;
  find(".now").textContent = (one ? `${decided.length} of ${chosen.length} decided.` : "Nothing to review.") +
    (last.length === RECENT ? ` Of the last ${RECENT}, ${accepted} accepted.` : "") + (one ? ` Number ${one.id}.` : "");
  find("progress").value = chosen.length ? decided.length / chosen.length : 0;
  find(".review").hidden = !one;
  if (!one) return;
  const [left, top, side] = one.window;
  find(".stage img").src = `crops/${String(one.id).padStart(5, "0")}.jpg`;
  find(".stage img").alt = `${classOf(one)} in ${one.picture}`;
  const drawing = find(".stage svg");
  drawing.setAttribute("viewBox", `${left} ${top} ${side} ${side}`);
  drawing.replaceChildren(
    ...one.around.map(([x1, y1, x2, y2]) => rect([x1, y1, x2 - x1, y2 - y1], "near")),
    ...(one.twin.length ? [rect(one.twin, "halo")] : []),  // below the label, which may lie on it
    ...(one.box && one.kind !== "class" ? [rect(one.box, "halo"), rect(one.box, "given")] : []),
    ...(one.twin.length ? [rect(one.twin, "suggested")] : []),
    ...(one.new_box ? [rect(one.new_box, "halo"), rect(one.new_box, one.kind === "class" ? "given" : "suggested")] : []));
  const first = twin(one);
  find(".said").textContent = sentence[one.kind](one);
  find(".twin").textContent = first ? `Number ${first.id} was accepted for this object: accept one of the two.` : "";
  const facts = { picture: one.picture, kind: one.kind, score: one.score, g: one.g, gr: one.gr ?? "–", decision: decisions[one.id] ?? "none yet" };
  find(".facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => {
    const [term, text] = ["dt", "dd"].map((tag) => document.createElement(tag));
    [term.textContent, text.textContent] = [name, value];
    return [term, text];
  }));
  for (const [key, word] of [["a", "accept"], ["r", "reject"]])
    find(`[data-key="${key}"]`).setAttribute("aria-pressed", decisions[one.id] === word);
}
function keep() {
  try { localStorage.setItem(kept, JSON.stringify(decisions)); } catch { /* see above */ }
}
function go(step) {
  at = Math.max(0, Math.min(chosen.length - 1, at + step));
  show();
}
function decide(word) {
  const one = chosen[at];
  undone.push([one.id, decisions[one.id]]);
  decisions[one.id] = word;
  keep();
  go(1);
}
function undo() {
  const [id, before] = undone.pop() ?? [];
  if (id === undefined) return;
  if (before) decisions[id] = before; else delete decisions[id];
  keep();
  const place = chosen.findIndex((one) => one.id === id);
  if (place >= 0) at = place;
  show();
}
const keys = { a: () => decide("accept"), r: () => decide("reject"), n: () => go(1), b: () => go(-1), u: undo, arrowright: () => go(1), arrowleft: () => go(-1) };
const press = (key) => { if (chosen.length) keys[key]?.(); };
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
  const key = event.key.toLowerCase();
  press(key);
  if (key in keys) find(".stage").scrollIntoView({ block: "nearest" });
});
for (const button of document.querySelectorAll("[data-key]")) button.addEventListener("click", () => press(button.dataset.key));

function filter() {
  const list = listOf(kind), names = [...new Set(list.map(classOf))].sort(), before = find("#of").value;
  find("#of").replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name)));
  const name = find("#of").value = names.includes(before) ? before : "";
  chosen = list.filter((one) => !name || classOf(one) === name);
  at = Math.max(0, chosen.findIndex((one) => !decisions[one.id]));
  show();
}
for (const name of ["", ...new Set(items.map((one) => one.kind))]) {
  const button = document.createElement("button");
  button.type = "button";
  const here = listOf(name).length;
  button.textContent = `${name || "all"} ${here}${here < counts[name] ? ` of ${counts[name]}` : ""}`;
  button.setAttribute("aria-pressed", !name);
  button.addEventListener("click", () => {
    kind = name;
    for (const other of find("#kinds").children) other.setAttribute("aria-pressed", other === button);
    filter();
  });
  find("#kinds").append(button);
}
find("#of").addEventListener("change", filter);
find("#export").addEventListener("click", () => {
  const list = items.filter((one) => decisions[one.id]).map((one) => ({ id: one.id, decision: decisions[one.id] }));
  const file = new Blob([JSON.stringify({ audit, decisions: list }, null, 1)], { type: "application/json" });
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: "decisions.json" });
  link.click();
  URL.revokeObjectURL(link.href);
});
filter();
