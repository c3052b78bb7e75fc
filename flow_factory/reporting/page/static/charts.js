"use strict";
// Charts of metrics by uPlot: one zoom and one smoothing for all. Texts are set as text, never as HTML.
const Charts = (() => {
  const WINDOWS = [1, 3, 5, 9, 15, 25, 51, 101];
  const all = [];
  let zoomed = null, window_ = 1, busy = false;
  const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // As in curves.png: windows that are not full would look like a late turn.
  function smooth(y, width) {
    if (width < 2 || y.length < 2 * width) return null;
    const half = (width - 1) / 2;
    return y.map((_, k) => {
      if (k < half || k + half >= y.length) return null;
      const part = y.slice(k - half, k + half + 1).filter(v => v !== null);
      return part.length ? part.reduce((a, b) => a + b) / part.length : null;
    });
  }

  function table(chart) {
    const steps = [...new Set(chart.lines.flatMap(line => line.x))].sort((a, b) => a - b);
    const place = new Map(steps.map((step, k) => [step, k]));
    const spread = (x, y) => {
      const column = new Array(steps.length).fill(undefined);
      x.forEach((step, k) => { column[place.get(step)] = y[k]; });
      return column;
    };
    const columns = [steps], series = [{label: "epoch"}];
    chart.lines.forEach((line, k) => {
      const colour = () => css(`--c${(line.colour ?? (line.name.startsWith("eval/") ? 1 : k)) % 6}`);
      const smoothed = smooth(line.y, window_), few = line.x.length < 40 || line.name.startsWith("eval");
      const dash = line.dash ? [6, 4] : undefined;
      if (smoothed) {
        columns.push(spread(line.x, line.y));
        series.push({label: `${line.label}, each epoch`, stroke: () => `${colour()}55`, width: 1, points: {show: false}, spanGaps: true, class: "raw"});
      }
      columns.push(spread(line.x, smoothed || line.y));
      series.push({label: line.label, stroke: colour, width: 2, dash, spanGaps: true,
        points: {show: few && !smoothed, size: 6, fill: colour, stroke: colour}});
    });
    return {columns, series};
  }

  const shown = value => value == null ? "–" : Number(value.toPrecision(5)).toString();

  function options(chart, width) {
    const axis = {stroke: () => css("--faint"), grid: {stroke: () => css("--grid"), width: 1}, ticks: {show: false}};
    const {columns, series} = table(chart);
    series.forEach((s, k) => { s.value = (u, v) => k || v == null ? shown(v) : String(v); });
    const whole = (u, splits) => splits.map(v => Number.isInteger(v) ? String(v) : "");
    return [{
      width, height: 230, series, cursor: {sync: {key: "epochs", setSeries: false}, drag: {x: true, y: false}},
      scales: {x: {time: false, range: (u, low, high) => {
        const [a, b] = zoomed || [low ?? 0, high ?? 1];
        return a === b ? [a - 1, b + 1] : [a, b];
      }}},
      axes: [{...axis, values: whole, size: 32}, {...axis, size: 64, values: (u, splits) => splits.map(shown)}],
      hooks: {setSelect: [u => {
        if (u.select.width > 4) zoom([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
        u.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
      }], ready: [u => u.over.addEventListener("dblclick", () => zoom(null))]},
    }, columns];
  }

  function build(entry) {
    if (entry.plot) entry.plot.destroy();
    const [opts, columns] = options(entry.chart, Math.max(200, entry.place.clientWidth));
    entry.plot = new uPlot(opts, columns, entry.place);
  }

  function draw(chart, home) {
    const box = document.createElement("div"), title = document.createElement("h3"), unit = document.createElement("p");
    const place = document.createElement("div");
    box.className = "chart"; unit.className = "hint"; title.textContent = chart.title; unit.textContent = chart.unit;
    box.append(title, unit, place); home.append(box);
    const entry = {chart, box, place, plot: null};
    all.push(entry);
    build(entry);
    new ResizeObserver(() => {
      if (place.clientWidth && place.clientWidth !== entry.plot.width) entry.plot.setSize({width: place.clientWidth, height: 230});
    }).observe(place);
    return entry;
  }

  function zoom(range) {
    if (busy) return;
    busy = true;
    zoomed = range && [Math.max(range[0], first()), Math.min(range[1], last())];
    if (zoomed && zoomed[1] <= zoomed[0]) zoomed = null;
    for (const {plot} of all) {
      const steps = plot.data[0];
      plot.setScale("x", zoomed ? {min: zoomed[0], max: zoomed[1]} : {min: steps[0], max: steps[steps.length - 1]});
    }
    busy = false;
    if (api.onZoom) api.onZoom(zoomed);
  }

  const first = () => Math.min(...all.map(e => e.plot.data[0][0]));
  const last = () => Math.max(...all.map(e => e.plot.data[0][e.plot.data[0].length - 1]));
  const api = {
    WINDOWS, draw, zoom, first, last, onZoom: null,
    setSmoothing(width) { window_ = width; all.forEach(build); },
    // New points of charts that are there, known by any of their lines; returns those of which there was no chart.
    update(charts) {
      return charts.filter(chart => {
        const names = new Set(chart.lines.map(line => line.name));
        const entry = all.find(e => e.chart.lines.some(line => names.has(line.name)));
        if (!entry) return true;
        if (JSON.stringify(entry.chart) !== JSON.stringify(chart)) {
          entry.chart = chart;
          entry.box.querySelector("h3").textContent = chart.title;
          build(entry);
        }
        return false;
      });
    },
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all.forEach(build));
  return api;
})();
