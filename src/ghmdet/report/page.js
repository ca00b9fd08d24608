// Theme, slider, filters; without this script the page shows everything, standing still.
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

for (const spectrum of document.querySelectorAll(".spectrum")) {
  const data = JSON.parse(spectrum.querySelector("script").textContent);
  const slider = spectrum.querySelector(".epoch");
  const of = spectrum.querySelector(".of");
  of.append(...data.classes.map((name, place) => new Option(name, place)));
  const last = data.epochs.length - 1;
  if (slider) [slider.max, slider.value] = [last, last];
  const draw = () => {
    const epoch = slider ? Number(slider.value) : last;
    const box = spectrum.querySelector(".drawing");
    if (!spectrum.checkVisibility()) return;  // in a run that is folded
    if (slider) slider.setAttribute("aria-valuetext", `epoch ${data.epochs[epoch]}`);
    spectrum.querySelector(".now").textContent = drawSpectrum(box, data, epoch, Number(of.value));
  };
  slider?.addEventListener("input", draw);
  of.addEventListener("change", draw);
  new ResizeObserver(draw).observe(spectrum);
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

const folded = () => document.querySelectorAll("details:not([open])");
let opened = [];
addEventListener("beforeprint", () => { opened = [...folded()]; for (const one of opened) one.open = true; });
addEventListener("afterprint", () => { for (const one of opened) one.open = false; });
