"use strict";
// Everything that peers said goes into the page as text, never as markup.
const POLL_MS = 700;
// Okabe and Ito's palette, told apart with any colour vision; signs and dashes say the same.
const COLOURS = { member: "#009e73", learner: "#56b4e9", joiner: "#56b4e9", suspect: "#e69f00", paused: "#e69f00",
  gone: "#d55e00", left: "#999999", done: "#009e73" };
const SIGNS = { member: "●", learner: "◐", joiner: "○", suspect: "?", paused: "‖", gone: "✕", left: "→", done: "✓" };
const SYMBOLS = { member: "circle", learner: "diamond", joiner: "diamond-open", suspect: "triangle-up", paused: "square",
  gone: "x", left: "circle-open", done: "star" };
const PARTS = [["compute_s", "computing", "#0072b2"], ["waiting_s", "waiting for others", "#e69f00"],
  ["sync_s", "exchange", "#cc79a7"], ["update_s", "update", "#009e73"]];
const CHANGES = { "scale-out": "joined", "scale-in": "left", failure: "lost", "connect-link": "link made",
  "disconnect-link": "link cut", admit: "let in", "learner-lost": "learner lost", "sync-plan": "sync plan", view: "view" };
const MARKS = { "scale-out": "triangle-up", "scale-in": "triangle-down", failure: "x", "connect-link": "cross",
  "disconnect-link": "cross-open", admit: "diamond-open", "learner-lost": "x-open", "sync-plan": "square-open" };
let picture = null, version = "", failures = 0;

const $ = (id) => document.getElementById(id);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function el(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 0.9995) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 120) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
function bytes(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]])
    if (count >= size) return `${(count / size).toFixed(1)} ${unit}`;
  return `${Math.round(count || 0)} B`;
}
const percent = (share) => share === null || share === undefined ? "" : `${Math.round(share * 100)} %`;
const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });
const ago = (at) => at ? duration(Math.max(picture.at - at, 0)) : "";

function table(id, heads, rows) {
  const target = $(id), head = el("thead"), line = el("tr"), body = el("tbody");
  for (const [text, kind] of heads) line.append(el("th", text, { scope: "col", ...(kind ? { class: kind } : {}) }));
  head.append(line);
  for (const cells of rows) {
    const row = el("tr");
    cells.forEach((cell, i) => {
      const made = cell instanceof Node ? el("td") : el("td", cell);
      if (cell instanceof Node) made.append(cell);
      if (heads[i][1]) made.className = heads[i][1];
      row.append(made);
    });
    body.append(row);
  }
  target.replaceChildren(head, body);
}
function state(peer) {
  const made = el("span", peer.state, { class: `state state-${peer.state}`, "data-sign": SIGNS[peer.state] || "" });
  if (peer.why) made.title = peer.why;
  return made;
}
function split(worker) {
  const total = PARTS.reduce((sum, [key]) => sum + (worker[key] || 0), 0);
  if (!total) return "";
  const text = PARTS.map(([key, name]) => `${name} ${duration(worker[key] || 0)}`).join(", ");
  const made = el("span", null, { class: "split", role: "img", "aria-label": text, title: text });
  for (const [key, , colour] of PARTS) {
    const part = el("i");
    part.style.width = `${100 * (worker[key] || 0) / total}%`;
    part.style.background = colour;
    made.append(part);
  }
  return made;
}

function drawMembers() {
  const order = ["member", "suspect", "paused", "learner", "joiner", "done", "left", "gone"];
  const peers = Object.values(picture.peers).sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state) || (a.name < b.name ? -1 : 1));
  table("members", [["peer"], ["state"], ["since"], ["party"], ["step", "number"], ["sums", "number"],
    ["contributed", "number"], ["left out", "number"], ["step time"], ["samples/s", "number"], ["cpu", "number"],
    ["memory", "number"], ["gpu", "number"], ["why", "text"]],
  peers.map((p) => [p.name, state(p), p.since ? `${clock(p.since)} (${ago(p.since)})` : "", p.party.slice(0, 8), p.step, percent(p.share),
    p.contributed, p.late ? `${p.late} (last ${p.last_late})` : "", split(p.worker),
    p.worker.samples_per_s ? p.worker.samples_per_s.toFixed(1) : "", percent(p.host.cpu),
    p.host.memory_total ? percent(p.host.memory / p.host.memory_total) : "",
    p.gpus.map((g) => `${percent(g.use)} ${percent(g.memory / g.memory_total)}`).join(", "), p.why]));
}
function drawLinks() {
  const way = (link, from) => {
    const sends = link.sends[from];
    if (!sends) return ["", "", ""];
    const by = Object.entries(sends.bytes).filter(([, n]) => n).map(([what, n]) => `${what} ${bytes(n)}`).join(", ");
    return [`${bytes(sends.use)}/s`, sends.rate ? `${bytes(sends.rate)}/s` : "", by];
  };
  const rows = [];
  const over = (end) => ["gone", "left", "done"].includes((picture.peers[end] || {}).state);
  for (const link of Object.values(picture.links).sort((a, b) => (a.ends.join(" ") < b.ends.join(" ") ? -1 : 1))) {
    if (link.state === "down" && link.ends.some(over)) continue;
    for (const [from, to] of [link.ends, [...link.ends].reverse()])
      rows.push([`${from} → ${to}`, link.state, ago(link.since), ...way(link, from), duration(link.rtt_s), link.losses || "", link.state === "up" ? "" : link.why]);
  }
  table("links", [["link"], ["state"], ["for"], ["carries", "number"], ["measured rate", "number"], ["sent so far"],
    ["round trip", "number"], ["losses", "number"], ["why", "text"]], rows);
}
function drawEvents() {
  const all = $("kinds").value === "all";
  const rows = picture.events.filter((e) => all || e.first_step).slice(-150).reverse().map((e) => {
    const took = Object.values(e.handling_ms), work = Object.values(e.computing_ms);
    return [clock(e.at), CHANGES[e.kind] || e.kind, (e.first_step ? e.reason : `${e.peer}: ${e.text}`) + (e.times > 1 ? ` (${e.times} times)` : ""),
      e.view, e.first_step || e.step, took.length ? duration(Math.max(...took) / 1000) : "",
      work.length ? duration(Math.max(...work) / 1000) : "",
      e.first_step && e.usual_s !== null ? `${duration(e.extra_s)}` : "", e.usual_s === null ? "" : duration(e.usual_s)];
  });
  table("timeline", [["when"], ["what"], ["why", "text"], ["view", "number"], ["from step", "number"], ["handled in", "number"],
    ["of it work", "number"], ["cost the run", "number"], ["usual step", "number"]], rows);
}
function drawJoins() {
  const shown = Object.values(picture.joins).filter((j) => !j.ended || picture.at - j.ended < 60);
  $("joins-section").hidden = !shown.length;
  $("joins").replaceChildren(...shown.map((join) => {
    const fetched = Object.values(join.sources).reduce((a, b) => a + b, 0), done = join.ended > 0;
    const box = el("div", null, { class: "join" }), bar = el("progress", null, { max: 1, "aria-label": `${join.peer}'s state` });
    if (join.bytes) bar.value = done ? 1 : Math.min(fetched / join.bytes, 1);
    const left = join.seconds_left !== null && !done && join.phase === "fetch" ? `, about ${duration(join.seconds_left)} left` : "";
    const head = done ? `${join.peer}: ${join.outcome} after ${duration(join.ended - join.began)}`
      : `${join.peer}: ${join.phase || "starting"} for ${ago(join.began)}${left}`;
    const from = Object.entries(join.sources).map(([donor, n]) => `${bytes(n)} from ${donor}`).join(", ");
    box.append(el("p", head), bar, el("p", `${join.bytes ? `${bytes(join.bytes)} of step ${join.step}` : ""}${from ? `: ${from}` : ""}`
      + (join.extra_s ? `; steps took ${duration(join.extra_s)} longer meanwhile` : ""), { class: "note" }));
    return box;
  }));
}

function layout(more = {}) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true };
  return { margin: { l: 48, r: 48, t: 6, b: 34 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: true,
    font: { color: css("--ink"), size: 12 }, legend: { orientation: "h", y: -0.22, yanchor: "top" }, ...more,
    xaxis: { ...axis, ...(more.xaxis || {}) }, yaxis: { ...axis, ...(more.yaxis || {}) }, ...(more.yaxis2 ? { yaxis2: { ...axis, ...more.yaxis2 } } : {}) };
}
const draw = (id, traces, more) => Plotly.react(id, traces, layout(more), { displayModeBar: false, responsive: true });
const times = (points) => points.map((p) => new Date(p[0] * 1000));

function drawOverlay() {
  const peers = Object.values(picture.peers).filter((p) => !["left", "gone", "done"].includes(p.state) || picture.at - p.since < 30)
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const place = {};
  peers.forEach((p, i) => { const turn = 2 * Math.PI * i / Math.max(peers.length, 1) + Math.PI / 2; place[p.name] = [Math.cos(turn), Math.sin(turn)]; });
  const links = Object.values(picture.links).filter((l) => l.ends.every((end) => place[end]));
  const use = (l) => Object.values(l.sends).reduce((sum, way) => sum + way.use, 0);
  const most = Math.max(...links.map(use), 1);
  const lines = links.map((l) => ({ x: l.ends.map((e) => place[e][0]), y: l.ends.map((e) => place[e][1]), mode: "lines", hoverinfo: "skip", showlegend: false,
    line: { width: l.state === "up" ? 1 + 5 * use(l) / most : 1.5, color: l.state === "up" ? css("--dim") : "#d55e00", dash: { up: "solid", down: "dash", cut: "dot" }[l.state] } }));
  const labels = links.filter((l) => l.state === "up" && links.length <= 15);
  const annotations = labels.map((l) => ({ x: place[l.ends[0]][0] * 0.64 + place[l.ends[1]][0] * 0.36, y: place[l.ends[0]][1] * 0.64 + place[l.ends[1]][1] * 0.36,
    text: `${bytes(use(l))}/s`, hovertext: plain(`${l.ends.join(" - ")}, round trip ${duration(l.rtt_s)}`), showarrow: false, bgcolor: css("--paper"), borderpad: 1,
    font: { size: 11, color: css("--ink") } }));
  const nodes = { x: peers.map((p) => place[p.name][0]), y: peers.map((p) => place[p.name][1]), mode: "markers+text", showlegend: false, hoverinfo: "text",
    text: peers.map((p) => plain(`${SIGNS[p.state] || ""} ${p.name}`)), textposition: peers.map((p) => (place[p.name][1] >= -0.01 ? "top center" : "bottom center")),
    hovertext: peers.map((p) => plain(`${p.name}: ${p.state} for ${ago(p.since)}`)),
    marker: { size: 22, symbol: peers.map((p) => SYMBOLS[p.state]), color: peers.map((p) => COLOURS[p.state]), line: { width: 2, color: css("--paper") } } };
  const hidden = { visible: false, fixedrange: true };
  draw("overlay", [...lines, nodes], { annotations, xaxis: { ...hidden, range: [-1.6, 1.6] }, yaxis: { ...hidden, range: [-1.4, 1.4] }, margin: { l: 0, r: 0, t: 0, b: 0 } });
}
function drawSeries() {
  const points = picture.series.points, x = times(points);
  draw("loss", [
    { x, y: points.map((p) => p[2]), name: "loss", mode: "lines", line: { color: "#0072b2", width: 2 } },
    { x, y: points.map((p) => p[3]), name: "samples/s", mode: "lines", yaxis: "y2", line: { color: "#e69f00", width: 1.5, dash: "dot" } },
  ], { yaxis: { title: { text: "loss" } }, yaxis2: { overlaying: "y", side: "right", rangemode: "tozero", title: { text: "samples/s" }, showgrid: false } });
  const changes = picture.events.filter((e) => e.first_step && e.kind !== "view");
  const top = Math.max(...points.slice(-POINTS_SEEN).map((p) => p[4] || 0), 0.001);
  const kinds = [...new Set(changes.map((e) => e.kind))];
  const marks = kinds.map((kind) => {
    const mine = changes.filter((e) => e.kind === kind);
    return { x: mine.map((e) => new Date(e.at * 1000)), y: mine.map(() => top * 1.08), name: CHANGES[kind] || kind, mode: "markers", hoverinfo: "text+x",
      text: mine.map((e) => plain(e.reason)), marker: { size: 11, symbol: MARKS[kind] || "circle-open", color: kind === "failure" ? "#d55e00" : "#0072b2" } };
  });
  draw("times", [{ x, y: points.map((p) => p[4]), name: "seconds per step", mode: "lines", line: { color: css("--ink"), width: 1.5 } }, ...marks],
    { yaxis: { rangemode: "tozero", title: { text: "s" } } });
}
const POINTS_SEEN = 1024;
function drawWho() {
  const steps = picture.steps.slice(-80), names = [...new Set(steps.flatMap((s) => [...s.contributors, ...s.late]))].sort().reverse();
  const z = names.map((name) => steps.map((s) => (s.late.includes(name) ? 1 : s.contributors.includes(name) ? 2 : 0)));
  const words = ["no part", "left out as late", "contributed"];
  draw("who", [{ type: "heatmap", x: steps.map((s) => s.step), y: names.map(plain), z, zmin: 0, zmax: 2, showscale: false, xgap: 1, ygap: 3,
    colorscale: [[0, css("--soft")], [0.5, "#e69f00"], [1, "#0072b2"]], text: z.map((row) => row.map((v) => words[v])), hovertemplate: "step %{x}, %{y}: %{text}<extra></extra>" }],
  { xaxis: { title: { text: "step (blue: contributed, orange: left out)" } }, margin: { l: 60, r: 10, t: 6, b: 40 }, showlegend: false });
}
function drawLegend() {
  const parts = PARTS.map(([, name, colour]) => {
    const made = el("span", name, { class: "key" }), mark = el("i");
    mark.style.background = colour;
    made.prepend(mark);
    return made;
  });
  $("parts").replaceChildren("A step's time: ", ...parts);
}
function drawFacts() {
  $("standing").textContent = picture.standing;
  document.title = `Chaos: step ${picture.step}`;
  const facts = [["view", picture.view], ["stable up to", picture.stable], ["usual step", duration(picture.usual_s)], ["samples", Math.round(picture.samples)],
    ["running for", duration(picture.at - picture.began)], ["lineage", picture.lineage.slice(0, 8)]];
  $("facts").replaceChildren(...facts.map(([name, value]) => { const box = el("div"); box.append(el("dt", name), el("dd", value)); return box; }));
}
function drawAll() {
  if (!picture) return;
  for (const part of [drawFacts, drawMembers, drawOverlay, drawSeries, drawWho, drawJoins, drawEvents, drawLinks]) part();
  document.body.dataset.drawn = String(picture.events_told);
}
function trouble(text) { $("trouble").textContent = text; $("trouble").hidden = !text; }

async function look() {
  try {
    const answer = await fetch("picture.json", { headers: version ? { "If-None-Match": version } : {}, cache: "no-store" });
    if (answer.status === 403 || answer.status === 401) { trouble("this page's token is not valid any more: open it again with the one that was printed"); return; }
    if (answer.status === 200) {
      const found = await answer.json();
      version = answer.headers.get("ETag") || "";
      picture = found.picture;
      trouble(found.trouble);
      if (!document.hidden) drawAll();
    }
    failures = 0;
  } catch (error) {
    failures += 1;
    if (failures > 2) trouble("the dashboard does not answer; what is shown is old");
  }
  setTimeout(look, POLL_MS);
}
$("kinds").addEventListener("change", drawAll);
$("filter").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("visibilitychange", drawAll);
drawLegend();
look();
