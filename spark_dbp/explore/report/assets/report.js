"use strict";
// Draws the figures, the table and the explorer of one report. Everything of the run goes onto the page as text: there is no
// innerHTML here, and no other way from data to markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const C = data.clusters, count = C.id.length, rowOf = new Map(C.id.map((id, row) => [id, row]));
  const rows = d3.range(count);
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  const whole = n => d3.format(",")(n);
  const percent = share => share === 0 || share === 1 ? `${100 * share}%` : `${d3.format(".1f")(100 * share)}%`;
  const short = value => Math.abs(value) >= 0.001 || value === 0 ? d3.format(".3~r")(value) : value.toExponential(1);
  const brief = value => value < 1000 ? String(value) : d3.format("~s")(value);
  const state = row => C.quota[row] === C.n[row] ? "whole" : C.quota[row] === C.floor[row] ? "floor" : "between";
  const stateName = {whole: "kept whole", floor: "at its floor", between: ""};
  const stateColor = {whole: "var(--whole)", floor: "var(--floor)", between: "var(--kept)"};
  const share = row => C.quota[row] / C.n[row];
  let chosen = null;

  function make(tag, settings = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(settings)) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (name === "style") node.style.cssText = value;
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter(child => child !== null && child !== undefined));
    return node;
  }

  // Figures. Each is drawn anew when its width, or light and dark, change.
  const figures = [];
  function draw(id, build) {
    const place = document.getElementById(`chart-${id}`);
    if (place) figures.push({id, place, build, width: 0});
  }
  function paint(figure) {
    const width = Math.floor(figure.place.clientWidth);
    if (!width) return;
    figure.width = width;
    const plot = figure.build(width, figure.place);
    if (!plot) return;
    const parts = Array.isArray(plot) ? plot : [plot];
    for (const svg of parts.flatMap(part => part.tagName === "svg" ? [part] : [...part.querySelectorAll("svg")])) {
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", figure.place.dataset.alt || "");
    }
    figure.place.replaceChildren(...parts);
  }
  const repaint = () => figures.forEach(paint);
  isDark.addEventListener("change", repaint);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => figures.filter(f => f.width !== Math.floor(f.place.clientWidth)).forEach(paint), 120);
  });

  const key = (...items) => make("ul", {class: "key"}, ...items.map(([text, color, kind = ""]) =>
    make("li", {class: kind, style: `--of: ${color}`}, text)));
  const ramp = t => d3.interpolateViridis(isDark.matches ? 0.3 + 0.7 * t : 0.92 - 0.92 * t);
  const grid = {stroke: "var(--grid)", strokeOpacity: 0.6};
  const gridX = ticks => Plot.gridX({...grid, ticks}), gridY = ticks => Plot.gridY({...grid, ticks});
  const common = width => ({
    width, marginTop: 30, marginRight: 12, marginBottom: 42, marginLeft: 58,
    style: {background: "transparent", color: "var(--soft)", fontSize: "12px", overflow: "visible"},
  });
  const tip = {fill: "var(--plot-background)", stroke: "var(--grid)", textPadding: 9, fontSize: 12, lineHeight: 1.25};
  const describe = row => [
    `Cluster ${C.id[row]}`, `${whole(C.quota[row])} of ${whole(C.n[row])} kept (${percent(share(row))})`,
    `complexity ${short(C.complexity[row])} = ${short(C.intra[row])} × ${short(C.inter[row])}`,
    `weight ${short(C.weight[row] * data.total)} × even share${stateName[state(row)] ? `, ${stateName[state(row)]}` : ""}`,
  ].join("\n");
  // A figure of clusters: what the pointer is at is chosen by a click.
  function clickable(plot) {
    const svg = plot.tagName === "svg" ? plot : plot.querySelector("svg:last-of-type");
    svg.classList.add("picks-a-cluster");
    svg.addEventListener("click", () => typeof plot.value === "number" && choose(plot.value, true));
    return plot;
  }
  const ring = (x, y) => chosen === null ? null
    : Plot.dot([chosen], {x, y, r: 7, stroke: "var(--ink)", strokeWidth: 2, fill: "none"});
  // Ticks of an axis that counts.
  const counts = values => d3.ticks(0, d3.max(values) || 1, 4).filter(Number.isInteger);
  const gridAt = ticks => Plot.gridY(ticks, grid);
  // The ends of a linear axis: round, and apart also where there is one value.
  function widen(values) {
    const [low, high] = d3.extent(values);
    return low === high ? [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1] : d3.nice(low, high, 8);
  }
  // The colours of a scale, with its ends.
  const legend = (label, [low, high]) => low === high ? make("div", {class: "ramp"}, make("span", {}, label), make("b", {}, short(low))) : make("div", {class: "ramp"}, make("span", {}, label), make("b", {}, short(low)),
    make("i", {style: `background: linear-gradient(to right, ${d3.range(0, 1.01, 0.125).map(ramp).join(", ")})`}), make("b", {}, short(high)));
  // Round values of a logarithmic axis: 1, 2, 5 and so on, or powers of ten where there are many.
  function roundValues([low, high]) {
    const steps = Math.log10(high / low) > 2.5 ? [1] : Math.log10(high / low) > 0.9 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    return d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1).flatMap(e => steps.map(step => step * 10 ** e))
      .filter(value => value >= low && value <= high && (value >= 1 && Number.isInteger(value)));
  }

  draw("complexity", width => {
    const values = data.cells ? data.cells.complexity.map(cell => cell[5]) : C.complexity;
    const color = {type: "linear", domain: d3.extent(values), interpolate: () => ramp};
    const ends = color.domain;
    if (ends[0] === ends[1]) color.domain = [ends[0] * 0.9 - 1e-9, ends[0] * 1.1 + 1e-9];
    const spread = (values, first) => widen(data.cells ? data.cells.complexity.flatMap(c => [c[first], c[first + 1]]) : values);
    const x = row => C.intra[row], y = row => C.inter[row];
    const radius = count > 800 ? 3 : count > 200 ? 4 : 5.5;
    const marks = data.cells ? [
      Plot.rect(data.cells.complexity, {x1: c => c[0], x2: c => c[1], y1: c => c[2], y2: c => c[3], fill: c => c[5],
        fillOpacity: c => 0.35 + 0.65 * Math.sqrt(c[4] / d3.max(data.cells.complexity, one => one[4])), inset: 0.5}),
      Plot.tip(data.cells.complexity, Plot.pointer({x: c => (c[0] + c[1]) / 2, y: c => (c[2] + c[3]) / 2, ...tip,
        title: c => `${whole(c[4])} cluster${c[4] === 1 ? "" : "s"}\nmean complexity ${short(c[5])}`})),
    ] : [
      Plot.dot(rows, {x, y, r: radius, fill: row => C.complexity[row], stroke: "var(--bg)", strokeWidth: 0.8}),
      ring(x, y),
      Plot.tip(rows, Plot.pointer({x, y, title: describe, maxRadius: 30, ...tip})),
    ];
    const plot = Plot.plot({...common(width), height: Math.max(260, Math.min(440, width * 0.5)), color,
      x: {label: "d_intra: mean distance of samples to their centroid", labelAnchor: "right", domain: spread(C.intra, 0), ticks: width < 500 ? 5 : 9, labelArrow: "right"},
      y: {label: "d_inter: distance to near centroids", domain: spread(C.inter, 2), ticks: 6, labelArrow: "up"}, marks: [gridX(width < 500 ? 5 : 9), gridY(6), ...marks]});
    return [legend(data.cells ? "mean complexity of a cell" : "complexity", ends), data.cells ? plot : clickable(plot)];
  });

  draw("quotas", width => {
    const x = row => C.n[row], y = row => Math.max(C.quota[row], 0.5);
    const least = Math.max(1, d3.min(C.n)), most = Math.max(2, d3.max(C.n));
    const bound = [[least, least], [most, most]];
    const floor = d3.max(C.floor), lowest = d3.min(rows, y);
    const cells = data.cells && data.cells.quota.map(c => [10 ** c[0], 10 ** c[1], 10 ** c[2], 10 ** c[3], c[4], c[5]]);
    const top = cells && d3.max(cells, c => c[4]);
    const domain = cells ? [d3.min(cells, c => c[0]), d3.max(cells, c => c[1])] : [least / 1.1, most * 1.1];
    const isBelow = floor < lowest / 8;
    const range = cells ? [d3.min(cells, c => c[2]), d3.max(cells, c => c[3])]
      : [Math.max(0.5, (isBelow ? lowest : Math.min(lowest, Math.max(floor, 0.5))) / 1.25), Math.max(d3.max(rows, y), least) * 1.2];
    const inside = bound.map(([a]) => Math.min(Math.max(a, range[0]), Math.min(range[1], domain[1])));
    const marks = cells ? [
      Plot.rect(cells, {x1: c => c[0], x2: c => c[1], y1: c => c[2], y2: c => c[3], fill: "var(--kept)",
        fillOpacity: c => 0.2 + 0.8 * Math.sqrt(c[4] / top), inset: 0.5}),
      Plot.tip(cells, Plot.pointer({x: c => Math.sqrt(c[0] * c[1]), y: c => Math.sqrt(c[2] * c[3]), ...tip,
        title: c => `${whole(c[4])} cluster${c[4] === 1 ? "" : "s"}\n${percent(c[5])} kept on average`})),
    ] : [
      Plot.dot(rows, {x, y, r: count > 500 ? 2.6 : 4, fill: row => stateColor[state(row)], fillOpacity: 0.8, stroke: "var(--bg)", strokeWidth: 0.6}),
      ring(x, y),
      Plot.tip(rows, Plot.pointer({x, y, title: describe, maxRadius: 30, ...tip})),
    ];
    const plot = Plot.plot({...common(width), height: 320,
      x: {type: "log", domain, label: "rows of the cluster", tickFormat: brief, ticks: roundValues(domain), labelAnchor: "right"},
      y: {type: "log", domain: range, label: "rows kept", tickFormat: brief, ticks: roundValues(range)},
      marks: [Plot.gridX(roundValues(domain), grid), Plot.gridY(roundValues(range), grid),
        Plot.line(inside.map(v => [v, v]), {stroke: "var(--whole)", strokeWidth: 1.5, strokeDasharray: "5 4"}),
        floor >= range[0] && floor <= range[1] ? Plot.ruleY([floor], {stroke: "var(--floor)", strokeWidth: 1.5, strokeDasharray: "2 4"}) : null,
        ...marks]});
    return [key(["kept whole", "var(--whole)", "line"], [isBelow && !cells ? `floor (${whole(floor)}, below the figure)` : "floor", "var(--floor)", "line"],
      ...(cells ? [["more clusters, darker cell", "var(--kept)"]] : [["between", "var(--kept)", "dot"]])), cells ? plot : clickable(plot)];
  });

  draw("weights", width => {
    const [values, name] = {d_intra: [C.intra, "d_intra"], d_inter: [C.inter, "d_inter"], cluster_size: [C.n, "rows of the cluster"]}[data.measure]
      || [C.complexity, "complexity"];
    const x = row => values[row], y = row => C.weight[row] * data.total;
    const least = d3.min(rows, y), isLog = least > 0 && d3.max(rows, y) / least > 50;
    const plot = Plot.plot({...common(width), height: 320,
      x: {label: name, labelAnchor: "right", domain: widen(values), ticks: width < 500 ? 4 : 7, tickFormat: value => value >= 1000 ? brief(value) : short(value), labelArrow: "right"},
      y: {type: isLog ? "log" : "linear", zero: !isLog, label: "weight, in even shares", ticks: 5, tickFormat: short, nice: true},
      marks: [gridX(width < 500 ? 4 : 7), gridY(5), Plot.ruleY([1], {stroke: "var(--soft)", strokeDasharray: "5 4"}),
        Plot.dot(rows, {x, y, r: count > 500 ? 2.6 : 4, fill: row => stateColor[state(row)], fillOpacity: 0.8, stroke: "var(--bg)", strokeWidth: 0.6}),
        ring(x, y), Plot.tip(rows, Plot.pointer({x, y, title: describe, maxRadius: 30, ...tip}))]});
    return [key(["an even share", "var(--soft)", "line"], ["one cluster", "var(--kept)", "dot"]), clickable(plot)];
  });

  function drawHistogram(found, width, height, cut) {
    const unit = 1024, bars = found.n.map((n, i) => ({
      from: (found.start + i * found.width) / unit, to: (found.start + (i + 1) * found.width) / unit, n, kept: found.kept[i]}));
    const about = data.which === "random" ? "about " : "";
    const plot = Plot.plot({...common(width), height,
      x: {label: "distance to the centroid", labelAnchor: "right", ticks: width < 500 ? 5 : 9},
      y: {label: "rows", tickFormat: brief, ticks: counts(found.n), nice: true},
      marks: [gridAt(counts(found.n)),
        Plot.rectY(bars, {x1: "from", x2: "to", y1: "kept", y2: "n", fill: "var(--out)", insetLeft: 0.5, insetRight: 0.5}),
        Plot.rectY(bars, {x1: "from", x2: "to", y1: 0, y2: "kept", fill: "var(--kept)", insetLeft: 0.5, insetRight: 0.5}),
        Plot.ruleY([0], {stroke: "var(--grid)"}),
        cut === null || cut === undefined ? null : Plot.ruleX([cut], {stroke: "var(--ink)", strokeWidth: 1.5, strokeDasharray: "4 3"}),
        cut === null || cut === undefined ? null : Plot.text([cut], {x: d => d, frameAnchor: "top", dy: -12, text: d => `cut ${d3.format(".3f")(d)}`,
          fill: "var(--ink)", fontWeight: 600}),
        Plot.tip(bars, Plot.pointerX({x: d => (d.from + d.to) / 2, y: "n", ...tip,
          title: d => `${d3.format(".3f")(d.from)} to ${d3.format(".3f")(d.to)}\n${whole(d.n)} rows, ${about}${whole(d.kept)} kept`}))]});
    return [key(["kept", "var(--kept)"], ["left out", "var(--out)"]), plot];
  }
  draw("distances", width => drawHistogram(data.histogram, width, 280, null));

  for (const [method, [low, numbers]] of Object.entries(data.duplicates || {})) {
    draw(`duplicates-${method}`, width => {
      const bars = numbers.map((n, i) => ({n, from: low + (1 - low) * i / numbers.length, to: low + (1 - low) * (i + 1) / numbers.length}));
      return Plot.plot({...common(width), height: 220, x: {label: "similarity", labelAnchor: "right", domain: [low, 1], ticks: 5},
        y: {label: "duplicates", tickFormat: brief, ticks: counts(numbers), nice: true},
        marks: [gridAt(counts(numbers)), Plot.rectY(bars, {x1: "from", x2: "to", y: "n", fill: "var(--left)", insetLeft: 0.5, insetRight: 0.5}),
          Plot.ruleY([0], {stroke: "var(--grid)"}),
          Plot.tip(bars, Plot.pointerX({x: d => (d.from + d.to) / 2, y: "n", ...tip,
            title: d => `${d3.format(".4~f")(d.from)} to ${d3.format(".4~f")(d.to)}\n${whole(d.n)} duplicates`}))]});
    });
  }

  draw("kmeans", width => {
    const passes = data.kmeans.map((pass, i) => ({...pass, number: i + 1}));
    return Plot.plot({...common(width), height: 240,
      x: {label: "pass", labelAnchor: "right", ticks: d3.ticks(1, passes.length, Math.min(passes.length, width < 500 ? 5 : 10)).filter(Number.isInteger), tickFormat: "d"},
      y: {label: "objective", nice: true, ticks: 5},
      marks: [gridY(5), Plot.lineY(passes, {x: "number", y: "objective", stroke: "var(--kept)", strokeWidth: 2, curve: "monotone-x"}),
        Plot.dot(passes, {x: "number", y: "objective", fill: "var(--kept)", r: 3}),
        Plot.tip(passes, Plot.pointerX({x: "number", y: "objective", ...tip,
          title: d => `pass ${d.number}\nobjective ${d3.format(".4f")(d.objective)}\n${whole(d.moved)} rows moved`}))]});
  });

  // Rows of the run, as pictures or as lines.
  function thumbnail(number, text) {
    if (!data.hasImages) return null;
    if (number < 0) return make("span", {class: "thumb", role: "img", "aria-label": `no image of ${text}`}, "no image");
    const [content, width, height] = data.thumbnails[number];
    const image = make("img", {src: `data:image/webp;base64,${content}`, alt: text, width, height, class: Math.max(width, height) <= 48 ? "tiny" : null});
    return make("span", {class: "thumb"}, image);
  }
  function listRows(found) {
    if (!found.length) return make("p", {class: "why"}, "none");
    return make("ul", {class: `rows ${data.hasImages ? "images" : "plain"}`}, ...found.map(([name, distance, isKept, rank, caption, image]) => {
      const where = `${d3.format(".4f")(distance)}${rank ? ` · rank ${whole(rank)}` : ""}`;
      const text = caption === null ? null : make("span", {class: "c", title: caption}, caption);
      const id = make("span", {class: "k", title: name}, name);
      const detail = make("span", {class: "d"}, where);
      return data.hasImages ? make("li", {}, thumbnail(image, caption || name), text, id, detail)
        : text ? make("li", {}, text, detail, id) : make("li", {}, id, detail);
    }));
  }
  const pairs = document.getElementById("pairs");
  if (pairs) {
    const names = {exact: "Exact duplicates", minhash: "Near-duplicate texts (MinHash)", semantic: "Semantic duplicates"};
    const openMethod = ["semantic", "minhash", "exact"].find(method => (data.pairs[method] || []).length);
    for (const [method, found] of Object.entries(data.pairs)) {
      if (!found.length) continue;
      const side = (name, caption, image) => make("span", {class: "side"}, thumbnail(image, caption || name),
        make("span", {}, caption === null ? null : make("span", {class: "c"}, caption), make("span", {class: "k"}, name)));
      const lines = found.map(([similarity, one, captionOne, imageOne, other, captionOther, imageOther]) => make("li", {},
        make("span", {class: "s"}, d3.format(".4f")(similarity)), side(one, captionOne, imageOne), side(other, captionOther, imageOther)));
      const box = make("details", {open: method === openMethod},
        make("summary", {}, `${names[method] || method}: pairs to look at`),
        make("ul", {class: "pairs"}, make("li", {class: "head", "aria-hidden": "true"}, ...["similarity", "left out", "stands for it"].map(text => make("span", {}, text))), ...lines));
      pairs.append(box);
    }
  }

  // The explorer.
  const select = document.getElementById("which"), panel = document.getElementById("cluster");
  const inFull = data.shown.filter(id => rowOf.has(id));
  const numeric = [...rows].sort((a, b) => C.id[a] - C.id[b]);
  const option = row => make("option", {value: row}, `${C.id[row]} · ${whole(C.n[row])} rows`);
  const isFull = new Set(inFull);
  const rest = numeric.filter(row => !isFull.has(C.id[row]));
  select.append(make("optgroup", {label: "with examples"}, ...numeric.filter(row => isFull.has(C.id[row])).map(option)));
  if (rest.length) select.append(make("optgroup", {label: "numbers only"}, ...rest.map(option)));
  select.addEventListener("change", () => choose(Number(select.value)));
  const step = by => {
    const order = [...select.options].map(one => Number(one.value));
    choose(order[(order.indexOf(chosen) + by + order.length) % order.length]);
  };
  document.getElementById("before").addEventListener("click", () => step(-1));
  document.getElementById("after").addEventListener("click", () => step(1));
  const picks = ["most complex", "least complex", "largest", "smallest", "kept whole", "at its floor"];
  const pickButtons = new Map();
  for (const why of picks) {
    const id = inFull.find(one => data.examples[one].why.includes(why));
    if (id === undefined) continue;
    const button = make("button", {type: "button", "aria-pressed": "false", onclick: () => choose(rowOf.get(id))}, why);
    pickButtons.set(button, id);
    document.getElementById("picks").append(button);
  }
  const titles = data.which === "stratified"
    ? {kept: ["Kept", "spread over the distances"], dropped: ["Left out", "right after these"], nearest: ["Nearest to the centroid", "what the concept is"]}
    : {kept: ["Just kept", "the last within the quota"], dropped: ["Just left out", "the first beyond it"], nearest: ["Nearest to the centroid", "what the concept is"]};
  function choose(row, scrolls) {
    chosen = row;
    select.value = row;
    const id = C.id[row], found = data.examples[id], histogram = data.histograms[id];
    for (const [button, of] of pickButtons) button.setAttribute("aria-pressed", String(of === id));
    const pair = (name, value) => [make("dt", {}, name), make("dd", {}, value)];
    const why = [...(found ? found.why : []), stateName[state(row)]].filter((one, i, all) => one && all.indexOf(one) === i);
    const numbers = make("dl", {class: "numbers"}, ...pair("rows", whole(C.n[row])), ...pair("kept (quota)", `${whole(C.quota[row])} (${percent(share(row))})`),
      ...pair("target", d3.format(",.1f")(C.target[row])), ...pair("floor", whole(C.floor[row])), ...pair("weight", `${short(C.weight[row] * data.total)} × even`),
      ...pair("d_intra", d3.format(".4f")(C.intra[row])), ...pair("d_inter", d3.format(".4f")(C.inter[row])), ...pair("complexity", short(C.complexity[row])));
    const chart = make("div", {class: "chart", id: "chart-one", "data-alt": `Distances of the rows of cluster ${id}: ${whole(C.quota[row])} of ${whole(C.n[row])} kept`});
    const left = make("div", {}, make("h3", {}, `Cluster ${id}`), why.length ? make("p", {class: "why"}, why.join(", ")) : null, numbers);
    const right = make("figure", {}, make("figcaption", {}, "Rows by distance to the centroid"), histogram ? chart : make("p", {class: "why"}, "Its histogram is not on this page."));
    const isWhole = C.quota[row] === C.n[row];
    const group = (name, color) => make("div", {class: "group", style: `--of: ${color}`},
      make("h4", {}, titles[name][0], make("span", {}, titles[name][1])), listRows(found[name]));
    const groups = make("div", {class: "groups"}, ...(!found ? [make("p", {class: "why"}, "Examples of this cluster are not on this page.")]
      : isWhole ? [group("nearest", "var(--left)"), make("p", {class: "why"}, "Every row of this cluster is kept, so there is no cut to look at.")]
      : [group("nearest", "var(--left)"), group("kept", "var(--kept)"), group("dropped", "var(--out)")]));
    panel.replaceChildren(make("div", {class: "cluster"}, left, right), groups);
    const old = figures.findIndex(figure => figure.id === "one");
    if (old >= 0) figures.splice(old, 1);
    if (histogram) {
      draw("one", width => drawHistogram(histogram, width, 250, histogram.cut));
      paint(figures[figures.length - 1]);
    }
    figures.filter(figure => ["complexity", "quotas", "weights"].includes(figure.id) && figure.width).forEach(paint);
    for (const line of body.rows) {
      if (Number(line.dataset.row) === row) line.setAttribute("aria-current", "true"); else line.removeAttribute("aria-current");
    }
    if (scrolls) document.getElementById("look").scrollIntoView();
  }

  // The table.
  const columns = [
    ["cluster", row => C.id[row]], ["rows", row => C.n[row], whole], ["kept", row => C.quota[row], whole], ["share kept", share],
    ["d_intra", row => C.intra[row], d3.format(".3f")], ["d_inter", row => C.inter[row], d3.format(".3f")], ["complexity", row => C.complexity[row], value => value >= 0.0001 || value === 0 ? d3.format(".3r")(value) : value.toExponential(1)],
    ["weight × k", row => C.weight[row] * data.total, d3.format(".2f")], ["", row => stateName[state(row)]],
  ];
  const table = document.getElementById("table"), search = document.getElementById("search"), more = document.getElementById("more");
  const said = document.getElementById("found"), page = 25;
  let sorted = {by: 6, up: false}, shown = page;
  const heads = columns.map(([name], at) => make("th", {scope: "col"}, make("button", {type: "button", onclick: () => sortBy(at)},
    name || make("span", {}, "bound"))));
  const body = make("tbody");
  table.append(make("caption", {class: "hidden"}, "Clusters with their size, quota and complexity"), make("thead", {}, make("tr", {}, ...heads)), body);
  const textOf = new Map();
  for (const [id, found] of Object.entries(data.examples)) {
    const words = ["nearest", "kept", "dropped"].flatMap(name => found[name].flatMap(one => [one[0], one[4] || ""]));
    textOf.set(Number(id), [...found.why, ...words].join("\n").toLowerCase());
  }
  function sortBy(at) {
    sorted = {by: at, up: sorted.by === at ? !sorted.up : at === 0 || at === columns.length - 1};
    if (at === columns.length - 1 && sorted.up) sorted.up = false;
    fill();
  }
  function matches(row, text) {
    if (!text) return true;
    if (/^\d+$/.test(text)) return String(C.id[row]).startsWith(text) || (textOf.get(C.id[row]) || "").includes(text);
    return (textOf.get(C.id[row]) || "").includes(text) || (stateName[state(row)] || "").includes(text);
  }
  function fill() {
    const text = search.value.trim().toLowerCase(), value = columns[sorted.by][1];
    const compare = (a, b) => d3.ascending(value(a), value(b)) || d3.ascending(C.id[a], C.id[b]);
    const found = rows.filter(row => matches(row, text)).sort(sorted.up ? compare : (a, b) => -compare(a, b));
    if (/^\d+$/.test(text)) found.sort((a, b) => (C.id[b] === Number(text)) - (C.id[a] === Number(text)));
    heads.forEach((head, at) => at === sorted.by ? head.setAttribute("aria-sort", sorted.up ? "ascending" : "descending") : head.removeAttribute("aria-sort"));
    body.replaceChildren(...found.slice(0, shown).map(row => make("tr", {"data-row": row, "aria-current": row === chosen ? "true" : null, onclick: () => choose(row, true)},
      ...columns.map(([, get, format], at) => at === 0 ? make("td", {}, make("button", {type: "button", "aria-label": `Look into cluster ${C.id[row]}`}, String(C.id[row])))
        : at === 3 ? make("td", {}, make("span", {class: "meter", "aria-hidden": "true"}, make("i", {style: `width: ${100 * share(row)}%`})), percent(share(row)))
        : at === columns.length - 1 ? make("td", {}, make("span", {class: `state ${state(row)}`}, get(row)))
        : make("td", {}, format(get(row)))))));
    const all = `${whole(found.length)} cluster${found.length === 1 ? "" : "s"}`;
    said.textContent = text ? `${all} found` : all;
    more.hidden = found.length <= shown;
    more.textContent = `Show ${whole(Math.min(page * 4, found.length - shown))} more of ${whole(found.length - shown)}`;
  }
  search.addEventListener("input", () => { shown = page; fill(); });
  more.addEventListener("click", () => { shown += page * 4; fill(); });

  fill();
  repaint();
  const first = inFull.map(id => rowOf.get(id)).find(row => state(row) !== "whole");
  if (count) choose(first ?? numeric[0]);

  // The navigation says where one is.
  const links = new Map([...document.querySelectorAll("nav a")].map(link => [link.hash.slice(1), link]));
  const watch = new IntersectionObserver(seen => {
    for (const entry of seen) {
      if (!entry.isIntersecting) continue;
      for (const [id, link] of links) {
        if (id === entry.target.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
      }
    }
  }, {rootMargin: "-20% 0px -70% 0px"});
  document.querySelectorAll("main > section").forEach(one => watch.observe(one));
  document.documentElement.dataset.ready = "true";
})();
