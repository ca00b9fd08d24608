// Theme, slider and filters. Without this script the page shows everything, standing still.
document.documentElement.classList.add("script");

const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const paint = (dark) => {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  theme.setAttribute("aria-pressed", dark);
};
paint(prefersDark.matches);
prefersDark.addEventListener("change", (event) => paint(event.matches));
theme.addEventListener("click", () => paint(theme.getAttribute("aria-pressed") !== "true"));

const sum = (list) => list.reduce((a, b) => a + b, 0);
const percent = (x) => (x >= 9.95 || x === 0 ? x.toFixed(0) : x.toPrecision(2)) + " %";
const short = (n) => n.toLocaleString("en", { maximumSignificantDigits: 3, notation: n < 1e6 ? "standard" : "compact" });

// Two step lines over g, one of background and one of objects; heights and ticks in shares of the axis.
function chart(title, caption, ticks, background, objects, filled) {
  const steps = (heights) => `M0 1${heights.map((height, m) => `V${(1 - height).toFixed(4)}H${m + 1}`).join("")}V1`;
  const lines = ticks.map(([height, name]) => `<span style="bottom: ${100 * height}%">${name}</span>`).join("");
  return `<figure class="drawn"><figcaption><b>${title}.</b> ${caption}</figcaption><div class="axes">${lines}` +
    `<svg viewBox="0 0 ${objects.length} 1" preserveAspectRatio="none" role="img" aria-label="${title}">` +
    `<path class="background" d="${steps(background)}"/><path class="objects${filled ? " filled" : ""}" d="${steps(objects)}"/></svg></div>` +
    `<div class="below"><span>0</span><span>.2</span><span>.4</span><span>.6</span><span>.8</span><span>1</span></div>` +
    `<p class="below">right<span>gradient norm g</span>wrong</p></figure>`;
}

// What training saw in one epoch, of all classes (0) or one: counts on a log scale, and who has the gradient.
function draw(data, epoch, of) {
  const most = Math.max(0, ...data.counts.flatMap((one) => one[of].flat())) + 150;  // one example still shows
  const step = Math.ceil(most / 6000);
  const decades = [...Array(Math.floor((most - 150) / 1000 / step) + 1).keys()].map((i) => i * step);
  const height = (n) => (n < 0 ? 0 : (n + 150) / (1.04 * most));
  const [background, objects] = data.counts[epoch][of];
  const counted = chart("How many examples are how wrong", `Grey: background. Orange line: objects. Each line is ${10 ** step} times the one below.`,
    decades.map((d) => [height(1000 * d), short(10 ** d)]), background.map(height), objects.map(height), false);

  const columns = ["before", "after"].map((key) => data[key][epoch][of]);
  const stacked = columns.map(([empty, full]) => empty.map((n, m) => n + full[m]));
  const top = Math.max(10, ...stacked.flat()) * 1.04;  // in thousandths
  const every = [10, 20, 50, 100, 200, 500].find((size) => top / size < 5);
  const levels = [0, 1, 2, 3, 4].map((n) => n * every).filter((level) => level <= top);
  const shares = columns.map(([, full], i) => chart(
    `Share of the gradient, ${i ? "harmonized" : "cross entropy"}`, `${i ? data.form + ": o" : "O"}bjects (orange) have ${percent(data.objects[epoch][of][i])}.`,
    levels.map((level) => [level / top, level / 10 + " %"]), stacked[i].map((n) => n / top), full.map((n) => n / top), true));

  const number = (list) => sum(list.map((n) => (n < 0 ? 0 : Math.round(10 ** (n / 1000)))));
  const hard = [background, objects].map((list) => number(list.slice(list.length / 2)));
  const own = data.share[epoch][of].map(percent);
  return [counted + `<div class="plots">${shares.join("")}</div>`,
    `Epoch ${data.epochs[epoch]} of ${data.epochs.at(-1)}: ${short(number(background))} examples of background, ${short(number(objects))} of objects; ` +
    `${short(sum(hard))} are more wrong than right (g of .5 or more).` +
    (of ? ` This class has ${own[0]} of the whole gradient, ${own[1]} harmonized.` : "")];
}

for (const spectrum of document.querySelectorAll(".spectrum")) {
  const data = JSON.parse(spectrum.querySelector("script").textContent);
  const slider = spectrum.querySelector(".epoch");
  const of = spectrum.querySelector(".of");
  of.append(...data.classes.map((name, place) => new Option(name, place)));
  const last = data.epochs.length - 1;
  if (slider) [slider.max, slider.value] = [last, last];
  const show = () => {
    const epoch = slider ? Number(slider.value) : last;
    slider?.setAttribute("aria-valuetext", `epoch ${data.epochs[epoch]}`);
    [spectrum.querySelector(".drawing").innerHTML, spectrum.querySelector(".now").textContent] = draw(data, epoch, Number(of.value));
  };
  slider?.addEventListener("input", show);
  of.addEventListener("change", show);
  show();
}

for (const gallery of document.querySelectorAll(".gallery")) {
  const crops = [...gallery.querySelectorAll("li[data-kind]")];
  const kinds = [...gallery.querySelectorAll("button[data-kind]")];
  const ofClass = gallery.querySelector("select");
  const status = gallery.querySelector(".now");
  const all = status.textContent;
  const filter = () => {
    const kind = kinds.find((one) => one.getAttribute("aria-pressed") === "true").dataset.kind;
    for (const crop of crops)
      crop.hidden = (kind && crop.dataset.kind !== kind) || (ofClass.value && crop.dataset.class !== ofClass.value);
    const shown = crops.filter((crop) => !crop.hidden).length;
    status.textContent = shown === crops.length ? all : `${shown} of these ${crops.length} shown.`;
  };
  for (const button of kinds)
    button.addEventListener("click", () => {
      for (const other of kinds) other.setAttribute("aria-pressed", other === button);
      filter();
    });
  ofClass.addEventListener("change", filter);
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
