// The training spectrum at one epoch and class: counts on a log scale, and each region's share of the gradient.
function drawSpectrum(box, data, epoch, of) {
  const M = data.counts[0][0][0].length;
  const narrow = box.clientWidth < 600;
  const percent = (x) => (x >= 9.95 || x === 0 ? x.toFixed(0) : x.toPrecision(2)) + " %";
  const figure = (title, caption, width, height, top, ticks, label, shapes) => {
    const left = 44, right = 8, bottom = 38, head = 8;
    const x = (g) => left + g * (width - left - right);
    const y = (v) => height - bottom - (Math.max(0, Math.min(v, top)) / top) * (height - bottom - head);
    const lines = ticks.map(([v, text]) =>
      `<line class="grid" x1="${left}" x2="${width - right}" y1="${y(v)}" y2="${y(v)}"/>` +
      `<text class="tick" x="${left - 6}" y="${y(v) + 4}" text-anchor="end">${text}</text>`).join("");
    const below = [0, .2, .4, .6, .8, 1].map((g) =>
      `<text class="tick" x="${x(g)}" y="${height - bottom + 17}" text-anchor="middle">${g}</text>`).join("");
    const axis = `<text class="tick" x="${x(.5)}" y="${height - 4}" text-anchor="middle">gradient norm g: 0 right, 1 wrong</text>`;
    return `<figure class="plot drawn"><figcaption><b>${title}.</b> ${caption}</figcaption>` +
      `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${label}">${lines}${shapes(x, y)}${below}${axis}</svg></figure>`;
  };
  const column = (kind, m, from, to, x, y, gap) =>
    `<rect class="${kind}" x="${(x(m / M) + gap).toFixed(1)}" width="${(x(1 / M) - x(0) - 2 * gap).toFixed(1)}" ` +
    `y="${y(to).toFixed(1)}" height="${Math.max(0, y(from) - y(to)).toFixed(1)}"/>`;

  const [background, objects] = data.counts[epoch][of];
  const log = (n) => (n > 0 ? Math.log10(n) + .15 : 0);  // one example still shows
  const most = Math.max(1, ...data.counts.flatMap((one) => one[of].flat()));
  const decades = Math.floor(Math.log10(most));
  const step = Math.ceil((decades + 1) / 6);
  const name = (d) => (d < 3 ? 10 ** d : d < 6 ? 10 ** (d - 3) + "k" : d < 9 ? 10 ** (d - 6) + "M" : 10 ** (d - 9) + "G");
  const ticks = [];
  for (let d = 0; d <= decades; d += step) ticks.push([log(10 ** d), name(d)]);
  const outline = (x, y) => {
    let path = `M ${x(0)} ${y(0)}`;
    objects.forEach((n, m) => { path += `V ${y(log(n)).toFixed(1)} H ${x((m + 1) / M).toFixed(1)}`; });
    return `<path class="objects" d="${path} V ${y(0)}"/>`;
  };
  const width = Math.max(box.clientWidth - (narrow ? 26 : 36), 260);
  let page = figure("How many examples are how wrong", "Grey: background. Orange line: objects. Each line is " +
    `${10 ** step} times the one below.`, width, narrow ? 260 : 300, log(most) * 1.04, ticks, "Number of examples over the gradient norm",
    (x, y) => background.map((n, m) => column("background", m, 0, log(n), x, y, .75)).join("") + outline(x, y));

  const panels = [["before", "Share of the gradient, cross entropy"], ["after", "Share of the gradient, harmonized"]];
  const top = Math.max(1, ...panels.flatMap(([key]) => data[key][epoch][of][0].map((n, m) => n + data[key][epoch][of][1][m]))) / 10;
  const every = [1, 2, 5, 10, 20, 50].find((size) => top / size < 5);
  const levels = [0, 1, 2, 3, 4].map((n) => n * every).filter((level) => level <= top);
  const pair = panels.map(([key, title]) => {
    const [empty, full] = data[key][epoch][of];
    const own = full.reduce((a, b) => a + b, 0) / 10;
    return figure(title, key === "before" ? `As it comes; objects (orange) have ${percent(own)}.` : `${data.after_name}; objects have ${percent(own)}.`,
      narrow ? width : (width - 60) / 2, 220, top * 1.04, levels.map((level) => [level, level + " %"]), title,
      (x, y) => full.map((n, m) => column("objects-filled", m, 0, n / 10, x, y, .5) +
        column("background", m, n / 10, (n + empty[m]) / 10, x, y, .5)).join(""));
  });
  box.innerHTML = page + `<div class="plots">${pair.join("")}</div>`;

  const sum = (list) => list.reduce((a, b) => a + b, 0);
  const short = (n) => (n >= 1e9 ? (n / 1e9).toPrecision(3) + " G" : n >= 1e6 ? (n / 1e6).toPrecision(3) + " M" : Math.round(n).toLocaleString("en"));
  const hard = sum(background.slice(M / 2)) + sum(objects.slice(M / 2));
  const share = data.share[epoch][of];
  return `Epoch ${data.epochs[epoch]} of ${data.epochs[data.epochs.length - 1]}: ${short(sum(background))} examples of background, ` +
    `${short(sum(objects))} of objects; ${short(hard)} are more wrong than right (g of .5 or more).` +
    (of ? ` This class has ${percent(share[0])} of the whole gradient, ${percent(share[1])} harmonized.` : "");
}
