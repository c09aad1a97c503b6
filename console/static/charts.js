// The charts: one line an entry, drawn by uPlot from the frames that are kept.

import { clock, number } from "./format.js";

const HEIGHT = 150;

// Series of a chart: label, colour, the figure of a frame; `scale` for a second axis, `points` for dots alone.
const CHARTS = {
  "chart-requests": [
    { label: "offered / s", colour: "--one", of: (f) => f.figures.offered_qps, digits: 1 },
    { label: "answered / s", colour: "--three", of: (f) => f.figures.answered_qps, digits: 1 },
  ],
  "chart-time": [
    { label: "p99 ms", colour: "--two", of: (f) => f.figures.p99_ms },
    { label: "p50 ms", colour: "--one", of: (f) => f.figures.p50_ms },
    { label: "SLO", colour: "--bad", of: (f) => f.figures.slo_ms, dash: [6, 4] },
  ],
  "chart-beams": [
    { label: "rows", colour: "--one", of: (f) => f.figures.rows, fill: true },
    { label: "configured", colour: "--dim", of: (f) => f.figures.rows_base, dash: [6, 4] },
    { label: "waiting", colour: "--two", of: (f) => f.figures.queue, scale: "waiting" },
  ],
  "chart-rejects": [
    { label: "turned away / s", colour: "--bad", of: (f) => sum(f.figures.rejects), fill: true, digits: 1 },
  ],
  "chart-index": [
    { label: "sign of life, s ago", colour: "--one", of: (f) => f.figures.index_lag_s, points: true, digits: 1 },
    { label: "versions behind", colour: "--two", of: behind, points: true, scale: "behind" },
  ],
  "chart-versions": [
    { label: "answers", colour: "--three", of: (f) => answering(f), stepped: true, width: 3 },
    { label: "CURRENT", colour: "--two", of: (f) => f.versions?.current, stepped: true, dash: [4, 4] },
    { label: "canary", colour: "--one", of: (f) => f.versions?.canary, stepped: true, width: 2 },
    { label: "its share, %", colour: "--dim", of: sharePercent, stepped: true, scale: "share" },
  ],
  "chart-loss": [
    { label: "served and replayed", colour: "--one", of: (f) => f.figures.online_loss, stepped: true, digits: 2 },
    { label: "requests of the logs", colour: "--two", of: (f) => f.figures.probe_loss, stepped: true, digits: 2 },
  ],
  "chart-revenue": [
    { label: "online", colour: "--three", of: (f) => f.figures.revenue_online },
    { label: "frozen", colour: "--dim", of: (f) => f.figures.revenue_frozen, dash: [6, 4] },
  ],
};

function sum(rates) {
  return rates ? Object.values(rates).reduce((total, rate) => total + (rate ?? 0), 0) : null;
}

function sharePercent(frame) {
  const share = frame.versions?.canary_share;
  return share === undefined || share === null ? null : 100 * share;
}

export function behind(frame) {
  const { sequence, index_version: read } = frame.figures;
  return sequence === undefined || read === undefined || sequence === null || read === null
    ? null
    : Math.max(sequence - read, 0);
}

// The oldest version that a scheduler process answers with.
function answering(frame) {
  const versions = Object.values(frame.figures.models ?? {});
  return versions.length ? Math.min(...versions) : null;
}

export function makeCharts() {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const charts = Object.entries(CHARTS).map(([id, lines]) => {
    const place = document.getElementById(id);
    const plot = new uPlot(options(place.clientWidth, lines, colour), [[], ...lines.map(() => [])], place);
    new ResizeObserver(() => {
      if (place.clientWidth) plot.setSize({ width: place.clientWidth, height: HEIGHT });
    }).observe(place);
    return { lines, plot };
  });
  return (frames) => {
    const times = frames.map((frame) => frame.t);
    for (const { lines, plot } of charts) {
      plot.setData([times, ...lines.map((line) => frames.map((frame) => line.of(frame) ?? null))]);
    }
  };
}

function options(width, lines, colour) {
  const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const scales = [...new Set(lines.map((line) => line.scale ?? "y"))];
  return {
    width,
    height: HEIGHT,
    cursor: { y: false },
    scales: {
      x: { time: true },
      ...Object.fromEntries(scales.map((scale) => [scale, { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] }])),
    },
    axes: [
      { ...axis, values: (_, times) => times.map(clock), space: 70, size: 28 },
      ...scales.map((scale, i) => ({ ...axis, scale, size: 44, side: i ? 1 : 3, grid: i ? { show: false } : axis.grid })),
    ],
    series: [
      {},
      ...lines.map((line) => ({
        label: line.label,
        scale: line.scale ?? "y",
        stroke: colour(line.colour),
        width: line.points ? 0 : (line.width ?? 1.5),
        dash: line.dash,
        fill: line.fill ? `${colour(line.colour)}33` : undefined,
        paths: line.points ? () => null : line.stepped ? uPlot.paths.stepped({ align: 1 }) : undefined,
        points: line.points
          ? { show: true, size: 4, fill: colour(line.colour) }
          : { show: false },
        // Beside the label while the pointer is over the chart.
        value: (_, value) => (value === null ? "" : number(value, line.digits ?? 0)),
      })),
    ],
  };
}
