"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const S = D.steps, P = D.spans, STATUS = D.statuses;
const count = S.func.length, spans = P.step.length;
const $ = id => document.getElementById(id);
const idOf = i => typeof S.id === "number" ? i + 1 : S.id[i];
const placeOf = typeof S.id === "number" ? id => (id >= 1 && id <= S.id ? id - 1 : -1)
  : (m => id => m.has(id) ? m.get(id) : -1)(new Map(S.id.map((id, i) => [id, i])));
const lastSession = D.sessions.length;

// ------------------------------------------------------------------------------------------------ words and colours
const PALETTE = ["#7fb3e0", "#f2b36b", "#87cf9b", "#e59a9a", "#b9a3e3", "#d9c766", "#7fcfcf", "#e3a1cf", "#b5bcc4", "#a8d26d",
  "#c9a98a", "#9fb0ff"];
const SHARES = { busy: ["#87cf9b", "busy"], memory: ["#e59a9a", "no memory free"], gpus: ["#e3a1cf", "no card free"],
  cpus: ["#c9a98a", "no slot free"], overhead: ["#f2b36b", "overhead"], prerequisites: ["#7fb3e0", "waiting for prerequisites"],
  input: ["#7fcfcf", "no steps yet"], tail: ["#b9a3e3", "nothing left to start"], start: ["#b5bcc4", "start and end"] };
const BY_STATUS = { finished: "#87cf9b", failed: "#e5706a", lost: "#e5706a", running: "#7fb3e0", cut: "#f2b36b", skipped: "#d9c766",
  aborted: "#f2b36b", "in doubt": "#f2b36b", new: "#b5bcc4" };
const funcColour = f => f < PALETTE.length ? PALETTE[f] : `hsl(${(f * 137.5) % 360} 45% 70%)`;
const isBad = s => STATUS[s] === "failed" || STATUS[s] === "lost";
const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function seconds(us) {
  const s = us / 1e6;
  if (us <= 0) return "0 s";
  if (s < 1e-3) return `${Math.round(us)} µs`;
  if (s < 1) return `${(s * 1e3).toPrecision(3).replace(/\.?0+$/, m => m.includes(".") ? "" : m)} ms`;
  if (s < 60) return `${s < 10 ? s.toFixed(2) : s.toFixed(1)} s`;
  const m = Math.floor(s / 60);
  return m < 60 ? `${m} min ${String(Math.floor(s % 60)).padStart(2, "0")} s` : `${Math.floor(m / 60)} h ${String(m % 60).padStart(2, "0")} min`;
}
const bytes = kib => kib == null ? "–" : kib < 1024 ** 2 ? `${Math.round(kib * 1.024e-3)} MB` : `${(kib * 1.024e-6).toFixed(1)} GB`;
const percent = share => `${(100 * share).toFixed(share && share < .1 ? 1 : 0)} %`;
const number = n => String(n).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
const plural = (n, what) => `${number(n)} ${what}${n === 1 ? "" : "s"}`;
function el(tag, text, attributes) {
  const e = document.createElement(tag);
  if (text != null) e.textContent = text;
  for (const [k, v] of Object.entries(attributes || {})) k === "class" ? e.className = v : e.setAttribute(k, v);
  return e;
}
function swatch(colour) { const i = el("i"); i.style.background = colour; return i; }
const called = i => `${D.functions[S.func[i]]}(${S.args[i]})`;

// ------------------------------------------------------------------------------------------------ head and limits
function head() {
  $("name").textContent = D.protocol;
  const word = D.alive ? `${D.status}, still going on` : D.status;
  $("status").textContent = word; $("status").classList.add(D.status);
  $("where").textContent = `${D.runDir} · report of ${new Date(D.made * 1000).toLocaleString()}`;
  const tally = {};
  for (const s of S.status) tally[STATUS[s]] = (tally[STATUS[s]] || 0) + 1;
  const total = D.sessions[lastSession - 1].to, L = D.limits;
  let cpu = 0, known = false, work = 0;
  for (let i = 0; i < spans; i++) { if (P.cpu[i] != null) { cpu += P.cpu[i]; known = true; } work += P.length[i]; }
  const last = D.sessions[lastSession - 1];
  const tiles = [[number(count), "steps"], [number(tally.finished || 0), "finished"]];
  for (const s of ["running", "failed", "lost", "skipped", "aborted", "in doubt", "new"]) if (tally[s]) tiles.push([number(tally[s]), s === "new" ? "not run" : s]);
  if (last.kept) tiles.push([number(last.kept), "kept from before"]);
  tiles.push([seconds(total), lastSession > 1 ? `in ${lastSession} sessions` : "wall time"], [seconds(work), "of step time"]);
  if (known) tiles.push([seconds(cpu), "of CPU time"]);
  tiles.push([percent(L.shares.busy), "of the workers' time busy"], [last.threads || "–", last.threads === 1 ? "worker" : "workers"]);
  for (const [value, what] of tiles) { const t = el("div", null, { class: "tile" }); t.append(el("b", value), el("span", what)); $("tiles").append(t); }
  if (D.message) { $("message").textContent = D.message.length > 1500 ? D.message.slice(0, 1500) + " …" : D.message; $("message").hidden = false; }
  for (const section of document.querySelectorAll("main section")) $("nav").append(el("a", section.querySelector("h2").textContent, { href: "#" + section.id }));
}
function limits() {
  const L = D.limits, main = L.limits[0];
  const names = { workers: "The number of workers", "critical path": "The longest chain of steps", "slow step": "One slow step",
    imbalance: "Imbalance at the end", memory: "Memory", gpus: "Graphics cards", cpus: "Worker slots", overhead: "Overhead",
    start: "Start and end", "undeclared memory": "Memory that is not declared", input: "Slow input", nothing: "Nothing" };
  const say = (where, limit, strong) => {
    where.append(el("b", `${names[limit.kind] || limit.kind}. `), limit.sentence + " ");
    if (limit.kind === "slow step" && placeOf(limit.steps[0]) >= 0) where.append(stepLink(placeOf(limit.steps[0]), "Show it."));
    if (!strong && limit.advice) where.append(" " + limit.advice);
  };
  say($("verdict"), main, true);
  $("advice").textContent = main.advice;
  const told = [];
  for (const [kind, [colour, name]] of Object.entries(SHARES)) {
    const share = L.shares[kind] || 0;
    if (share < .0005) continue;
    const part = el("span", null, { title: `${name}: ${percent(share)}` });
    part.style.width = `${100 * share}%`; part.style.background = colour;
    $("shares").append(part);
    const item = el("li"); item.append(swatch(colour), `${name} ${percent(share)}`); $("legend").append(item);
    told.push(`${name} ${percent(share)}`);
  }
  $("shares").setAttribute("aria-label", "The workers' time: " + told.join(", "));
  for (const limit of L.limits.slice(1)) { const p = el("p"); say(p, limit, false); $("others").append(p); }
  if (L.session !== lastSession) $("path").append(`This is about session ${L.session}, the last one in which steps ran. `);
  else if (L.path.length > 1) {
    $("path").append(`The longest chain (${seconds(L.pathSeconds * 1e6)}): `);
    L.path.forEach((id, n) => {
      if (n >= 12 && n < L.path.length - 3) { if (n === 12) $("path").append(" → …"); return; }
      if (n) $("path").append(" → ");
      const i = placeOf(id);
      $("path").append(i < 0 ? String(id) : stepLink(i, `${id} ${D.functions[S.func[i]]}`));
    });
  }
}
function stepLink(i, text) {
  const b = el("button", text == null ? String(idOf(i)) : text, { class: "link", type: "button" });
  b.addEventListener("click", () => select(i, true));
  return b;
}

// ------------------------------------------------------------------------------------------------ canvases
// A canvas that follows its size, the theme and the pointer. `draw(ctx, width, height)` is called when something changed.
function surface(canvas, handlers) {
  const ctx = canvas.getContext("2d");
  let asked = false;
  const s = { canvas, width: 0, height: 0, ask() { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; s.paint(); }); } },
    paint() {
      if (canvas.hidden) return;
      const ratio = window.devicePixelRatio || 1, height = handlers.height(canvas.clientWidth);
      canvas.style.height = height + "px";
      s.width = canvas.clientWidth; s.height = height;
      const w = Math.round(s.width * ratio), h = Math.round(height * ratio);
      if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
      ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
      ctx.clearRect(0, 0, s.width, s.height);
      ctx.font = "12px system-ui, sans-serif"; ctx.textBaseline = "middle";
      handlers.draw(ctx, s.width, s.height);
    } };
  new ResizeObserver(() => s.ask()).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => s.ask());
  const pointers = new Map();
  let moved = 0;
  const at = e => { const r = canvas.getBoundingClientRect(); return [e.clientX - r.left, e.clientY - r.top]; };
  canvas.addEventListener("pointerdown", e => { pointers.set(e.pointerId, at(e)); moved = 0; try { canvas.setPointerCapture(e.pointerId); } catch (error) { /* a pointer made by a script */ } });
  canvas.addEventListener("pointermove", e => {
    const [x, y] = at(e), before = pointers.get(e.pointerId);
    if (!before) { handlers.hover(x, y, e); return; }
    if (pointers.size === 1) { handlers.pan(x - before[0], y - before[1]); moved += Math.abs(x - before[0]) + Math.abs(y - before[1]); }
    else {
      const other = [...pointers].find(([id]) => id !== e.pointerId)[1];
      const d0 = Math.hypot(before[0] - other[0], before[1] - other[1]), d1 = Math.hypot(x - other[0], y - other[1]);
      if (d0 > 5 && d1 > 5) handlers.zoom(d1 / d0, (x + other[0]) / 2, (y + other[1]) / 2);
      moved += 10;
    }
    pointers.set(e.pointerId, [x, y]); hideTip();
  });
  canvas.addEventListener("pointerup", e => { pointers.delete(e.pointerId); if (moved < 5) handlers.click(...at(e)); });
  canvas.addEventListener("pointercancel", e => pointers.delete(e.pointerId));
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("dblclick", e => handlers.zoom(2.5, ...at(e)));
  canvas.addEventListener("wheel", e => {
    if (e.ctrlKey || e.metaKey) { e.preventDefault(); handlers.zoom(Math.exp(-e.deltaY / 250), ...at(e)); }
    else if (e.shiftKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) { e.preventDefault(); handlers.pan(-(e.deltaX || e.deltaY), 0); }
  }, { passive: false });
  canvas.addEventListener("keydown", e => {
    if (e.ctrlKey || e.metaKey || e.altKey) return;
    const x = s.width / 2, y = s.height / 2;
    const keys = { "+": () => handlers.zoom(1.6, x, y), "=": () => handlers.zoom(1.6, x, y), "-": () => handlers.zoom(1 / 1.6, x, y), "0": handlers.fit,
      n: () => handlers.next(1), p: () => handlers.next(-1), ...handlers.keys };
    if (keys[e.key]) { e.preventDefault(); keys[e.key](); }
  });
  return s;
}
function showTip(text, e) {
  const tip = $("tip");
  tip.textContent = text; tip.hidden = false;
  tip.style.left = Math.min(e.clientX + 12, innerWidth - Math.min(340, tip.offsetWidth) - 6) + "px";
  tip.style.top = (e.clientY + 18 + tip.offsetHeight > innerHeight ? e.clientY - tip.offsetHeight - 8 : e.clientY + 18) + "px";
}
function hideTip() { $("tip").hidden = true; }
function cut(ctx, text, width) {
  if (ctx.measureText(text).width <= width) return text;
  let n = Math.max(0, Math.floor(text.length * width / ctx.measureText(text).width) - 1);
  return n > 1 ? text.slice(0, n) + "…" : "";
}

// ------------------------------------------------------------------------------------------------ timeline
const T = { from: 0, to: 1, colour: "func", span: -1 };
const rows = Math.max(1, ...D.sessions.map(s => s.workers.length));
const rowSpans = Array.from({ length: rows }, () => []);
for (let k = 0; k < spans; k++) rowSpans[P.row[k]].push(k);
const spanOfStep = new Map();  // of the last session, the last attempt
for (let k = 0; k < spans; k++) if (P.session[k] === lastSession) spanOfStep.set(P.step[k], k);
const whole = Math.max(1, D.sessions[lastSession - 1].to);
const rowHeight = rows > 48 ? 11 : rows > 20 ? 16 : 24, LEFT = 46, TOP = 22, LOAD = 44;
const rowName = r => D.sessions.some(s => (s.workers[r] || "").startsWith("coordinator")) ? "coord." : `w ${r + 1}`;
let timeline;
function timelineFit() { T.from = 0; T.to = whole * 1.005; timeline.ask(); }
function timelineZoom(factor, x) {
  const w = Math.max(1, timeline.width - LEFT), at = T.from + (T.to - T.from) * Math.max(0, x - LEFT) / w;
  const size = Math.min(whole * 1.005, Math.max(20, (T.to - T.from) / factor));
  T.from = at - (at - T.from) * size / (T.to - T.from); T.to = T.from + size; timelineClamp();
}
function timelineClamp() {
  const size = T.to - T.from, most = whole * 1.005;
  if (T.from < 0) { T.from = 0; T.to = size; }
  if (T.to > most) { T.to = most; T.from = Math.max(0, most - size); }
  timeline.ask();
}
function timelinePan(dx) { const d = dx * (T.to - T.from) / Math.max(1, timeline.width - LEFT); T.from -= d; T.to -= d; timelineClamp(); }
function firstVisible(list, time) {  // spans of a row do not overlap, so their ends are in order
  let a = 0, b = list.length;
  while (a < b) { const m = (a + b) >> 1; if (P.begin[list[m]] + P.length[list[m]] < time) a = m + 1; else b = m; }
  return a;
}
const spanColour = k => T.colour === "status" ? BY_STATUS[STATUS[P.status[k]]] || "#b5bcc4" : funcColour(P.func[k]);
function spanArgs(k) { const i = P.session[k] === lastSession ? placeOf(P.step[k]) : -1; return i >= 0 ? S.args[i] : ""; }
function drawTimeline(ctx, width, height) {
  const scale = (width - LEFT) / (T.to - T.from), X = t => LEFT + (t - T.from) * scale;
  const fg = css("--fg"), quiet = css("--quiet"), line = css("--line"), bad = css("--bad"), idle = css("--idle");
  const load = new Float64Array(Math.ceil(width) + 1);
  ticks(ctx, width, height, X, quiet, line);
  for (let r = 0; r < rows; r++) {
    const y = TOP + r * rowHeight, h = rowHeight - 3, list = rowSpans[r];
    ctx.fillStyle = idle; ctx.globalAlpha = .5; ctx.fillRect(LEFT, y, width - LEFT, h); ctx.globalAlpha = 1;
    ctx.fillStyle = quiet; ctx.textAlign = "left";
    if (rowHeight > 11 || r % 4 === 0) ctx.fillText(rowName(r), 4, y + h / 2);
    let pixel = -1, colour = "";
    for (let n = firstVisible(list, T.from); n < list.length; n++) {
      const k = list[n];
      if (P.begin[k] > T.to) break;
      const x0 = Math.max(LEFT, X(P.begin[k])), x1 = Math.min(width, X(P.begin[k] + P.length[k]));
      for (let x = Math.floor(x0); x <= x1 && x < load.length; x++) load[x] += Math.max(0, Math.min(x1, x + 1) - Math.max(x0, x));
      const failed = isBad(P.status[k]);
      if (x1 - x0 < 1 && !failed) {
        if (Math.floor(x0) === pixel) continue;
        pixel = Math.floor(x0);
        const c = spanColour(k); if (c !== colour) { ctx.fillStyle = c; colour = c; }
        ctx.fillRect(pixel, y, 1, h); continue;
      }
      const w = Math.max(failed ? 3 : 1, x1 - x0 - (x1 - x0 > 4 ? 1 : 0)), c = spanColour(k);
      if (c !== colour) { ctx.fillStyle = c; colour = c; }
      ctx.fillRect(x0, y, w, h);
      if (failed) { ctx.fillStyle = colour = bad; ctx.fillRect(x0, y + h - 4, w, 4); ctx.fillRect(x0, y, w, 2); }
      if (w > 42 && rowHeight > 14) {
        ctx.fillStyle = "#14181d"; colour = "";
        ctx.fillText(cut(ctx, `${P.step[k]} ${D.functions[P.func[k]]}(${spanArgs(k)})`, w - 8), x0 + 4, y + h / 2);
      }
    }
  }
  const bottom = TOP + rows * rowHeight;
  ctx.fillStyle = css("--accent"); ctx.globalAlpha = .55;
  for (let x = LEFT; x < width; x++) { const v = Math.min(1, load[x] / rows) * (LOAD - 12); if (v > 0) ctx.fillRect(x, bottom + LOAD - 4 - v, 1, v); }
  ctx.globalAlpha = 1; ctx.fillStyle = quiet; ctx.fillText("busy", 4, bottom + LOAD / 2);
  for (const s of D.sessions.slice(1)) {
    const x = X(s.from);
    if (x < LEFT || x > width) continue;
    ctx.strokeStyle = fg; ctx.setLineDash([4, 3]); ctx.beginPath(); ctx.moveTo(x, TOP - 4); ctx.lineTo(x, bottom + LOAD); ctx.stroke(); ctx.setLineDash([]);
    ctx.fillStyle = fg; ctx.fillText(`session ${s.number}`, x + 4, bottom + 8);
  }
  if (T.span >= 0) drawSelectedSpan(ctx, width, X, fg);
}
function drawSelectedSpan(ctx, width, X, fg) {
  const k = T.span, mid = j => TOP + P.row[j] * rowHeight + (rowHeight - 3) / 2;
  ctx.save(); ctx.beginPath(); ctx.rect(LEFT, 0, width - LEFT, 1e5); ctx.clip();
  const i = P.session[k] === lastSession ? placeOf(P.step[k]) : -1;
  if (i >= 0) {
    ctx.strokeStyle = fg; ctx.globalAlpha = .6; ctx.beginPath();
    const line = (a, b) => { ctx.moveTo(X(P.begin[a] + P.length[a]), mid(a)); ctx.lineTo(X(P.begin[b]), mid(b)); };
    for (const j of needsOf(i).slice(0, 300)) { const a = spanOfStep.get(idOf(j)); if (a != null) line(a, k); }
    for (const j of followersOf(i).slice(0, 300)) { const b = spanOfStep.get(idOf(j)); if (b != null) line(k, b); }
    ctx.stroke(); ctx.globalAlpha = 1;
  }
  const x0 = X(P.begin[k]), w = Math.max(3, P.length[k] * (X(1) - X(0)));
  ctx.strokeStyle = fg; ctx.lineWidth = 2; ctx.strokeRect(x0, TOP + P.row[k] * rowHeight - 1, w, rowHeight - 1); ctx.lineWidth = 1;
  ctx.restore();
}
function moment(t, step) {  // of an axis whose marks are `step` apart: with as many digits as tell them apart
  if (step >= 1e6 || !t) return seconds(t);
  const unit = whole < 1e6 ? [1e3, "ms"] : [1e6, "s"];
  return `${(t / unit[0]).toFixed(Math.max(0, Math.ceil(-Math.log10(step / unit[0]) - 1e-9)))} ${unit[1]}`;
}
function ticks(ctx, width, height, X, quiet, line) {
  const target = (T.to - T.from) * 90 / Math.max(200, width), nice = [1, 2, 5].flatMap(m => Array.from({ length: 12 }, (_, e) => m * 10 ** e))
    .concat([15e6, 30e6, 60e6, 120e6, 300e6, 600e6, 1800e6, 3600e6, 7200e6, 14400e6, 43200e6, 86400e6]).sort((a, b) => a - b);
  const step = nice.find(n => n >= target && (n < 60e6 || n % 60e6 === 0)) || 86400e6;
  ctx.textAlign = "left";
  for (let t = Math.ceil(T.from / step) * step; t <= T.to; t += step) {
    const x = Math.round(X(t)) + .5;
    if (x < LEFT) continue;
    ctx.strokeStyle = line; ctx.beginPath(); ctx.moveTo(x, TOP - 6); ctx.lineTo(x, height); ctx.stroke();
    ctx.fillStyle = quiet;
    const text = moment(t, step);
    if (x + 3 + ctx.measureText(text).width < width) ctx.fillText(text, x + 3, 9);
  }
}
function spanAt(x, y) {
  const r = Math.floor((y - TOP) / rowHeight);
  if (r < 0 || r >= rows || x < LEFT) return -1;
  const per = (T.to - T.from) / (timeline.width - LEFT), t = T.from + (x - LEFT) * per, list = rowSpans[r];
  const n = firstVisible(list, t - 2 * per);
  let best = -1, near = 3 * per;
  for (let m = n; m < Math.min(list.length, n + 50); m++) {
    const k = list[m], d = t < P.begin[k] ? P.begin[k] - t : Math.max(0, t - P.begin[k] - P.length[k]);
    if (d < near) { near = d; best = k; }
    if (!d || P.begin[k] > t + 3 * per) break;
  }
  return best;
}
function selectSpan(k, reveal) {
  T.span = k;
  const i = P.session[k] === lastSession ? placeOf(P.step[k]) : -1;
  if (i >= 0) G.step = i;
  if (reveal) {
    const b = P.begin[k], l = Math.max(P.length[k], 1);
    if (b < T.from || b + l > T.to || l / (T.to - T.from) < .004) {
      const size = Math.min(whole * 1.005, Math.max(l * 40, 50)); T.from = b + l / 2 - size / 2; T.to = T.from + size; timelineClamp();
    }
  }
  timeline.ask(); graph.ask(); detail(i, k);
}
function select(i, reveal) {
  const k = spanOfStep.get(idOf(i));
  G.step = i;
  if (k != null) selectSpan(k, reveal); else { T.span = -1; timeline.ask(); graph.ask(); detail(i, -1); }
}
function nextSpan(d) {
  if (T.span < 0) { if (spans) selectSpan(rowSpans.find(l => l.length)[0], true); return; }
  const list = rowSpans[P.row[T.span]], n = list.indexOf(T.span) + d;
  if (n >= 0 && n < list.length) selectSpan(list[n], true);
}
function otherRow(d) {
  if (T.span < 0) { nextSpan(1); return; }
  for (let r = P.row[T.span] + d; r >= 0 && r < rows; r += d) {
    if (!rowSpans[r].length) continue;
    const n = Math.min(firstVisible(rowSpans[r], P.begin[T.span]), rowSpans[r].length - 1);
    selectSpan(rowSpans[r][n], true); return;
  }
}
function setUpTimeline() {
  timeline = surface($("t-canvas"), { height: () => TOP + rows * rowHeight + LOAD, draw: drawTimeline, zoom: timelineZoom, pan: dx => timelinePan(dx),
    fit: timelineFit, next: nextSpan, click: (x, y) => { const k = spanAt(x, y); if (k >= 0) selectSpan(k, false); },
    hover: (x, y, e) => {
      const k = spanAt(x, y);
      if (k < 0) { hideTip(); return; }
      showTip(`${P.step[k]} ${D.functions[P.func[k]]}(${spanArgs(k)}) · ${seconds(P.length[k])} · ${STATUS[P.status[k]]}`, e);
    },
    keys: { ArrowLeft: () => timelinePan(80), ArrowRight: () => timelinePan(-80), ArrowUp: () => otherRow(-1), ArrowDown: () => otherRow(1) } });
  $("t-in").onclick = () => timelineZoom(2, timeline.width / 2); $("t-out").onclick = () => timelineZoom(.5, timeline.width / 2); $("t-fit").onclick = timelineFit;
  $("t-colour").onchange = e => { T.colour = e.target.value; key(); timeline.ask(); };
  $("t-canvas").setAttribute("aria-label", `Timeline: ${plural(spans, "attempt")} of steps on ${plural(rows, "worker")} in ${seconds(whole)}`);
  const used = new Set(P.func);
  function key() {
    $("functions-key").textContent = "";
    const entries = T.colour === "func" ? D.functions.map((name, f) => [name, funcColour(f), used.has(f)]).filter(e => e[2])
      : STATUS.filter(s => P.status.includes(STATUS.indexOf(s))).map(s => [s, BY_STATUS[s]]);
    for (const [name, colour] of entries.slice(0, 24)) { const li = el("li"); li.append(swatch(colour), name); $("functions-key").append(li); }
    if (entries.length > 24) $("functions-key").append(el("li", `and ${entries.length - 24} more`));
  }
  key();
  let at = -1;
  $("find").addEventListener("submit", e => {
    e.preventDefault();
    const q = $("query").value.trim().toLowerCase(), id = /^\d+$/.test(q) ? placeOf(Number(q)) : -1;
    if (!q) return;
    if (id >= 0) { $("found").textContent = ""; select(id, true); return; }
    for (let n = 1; n <= count; n++) {
      const i = (at + n + count) % count;
      if (called(i).toLowerCase().includes(q)) { at = i; $("found").textContent = ""; select(i, true); return; }
    }
    $("found").textContent = "no such step";
  });
  T.from = 0; T.to = whole * 1.005;
}

// ------------------------------------------------------------------------------------------------ graph
const G = { step: -1, x: 0, y: 0, scale: 1, place: null, w: 0, h: 0 };
let followStart = null, follow = null, graph;
const needsOf = i => S.needs.slice(S.starts[i], S.starts[i + 1]);
function followersOf(i) {
  if (!follow) {
    followStart = new Int32Array(count + 2);
    for (const p of S.needs) followStart[p + 1]++;
    for (let j = 0; j < count; j++) followStart[j + 1] += followStart[j];
    const at = followStart.slice(); follow = new Int32Array(S.needs.length);
    for (let j = 0; j < count; j++) for (let e = S.starts[j]; e < S.starts[j + 1]; e++) follow[at[S.needs[e]]++] = j;
  }
  return Array.from(follow.subarray(followStart[i], followStart[i + 1]));
}
const small = count <= 80, CELL_W = small ? 8 : 3, CELL_H = 1, PITCH_X = CELL_W + .5, PITCH_Y = 1.35, GAP = 3;
function layoutSteps() {  // columns by depth; wide layers become blocks, and blocks are broken into bands like words into lines
  const layers = [];
  for (let i = 0; i < count; i++) (layers[S.depth[i]] = layers[S.depth[i]] || []).push(i);
  const most = small ? 24 : Math.max(24, Math.ceil(Math.sqrt(count * 1.4)));
  const rank = new Float64Array(count);
  const blocks = layers.map((layer, d) => {
    if (d) {
      for (const i of layer) { let sum = 0, a = S.starts[i], b = S.starts[i + 1]; for (let e = a; e < b; e++) sum += rank[S.needs[e]]; rank[i] = sum / Math.max(1, b - a); }
      layer.sort((i, j) => rank[i] - rank[j] || i - j);
    }
    const high = Math.min(layer.length, most);
    layer.forEach((i, n) => { rank[i] = (n + .5) / layer.length; });
    return { layer, high, w: Math.ceil(layer.length / high) * PITCH_X + GAP, h: high * PITCH_Y };
  });
  const area = blocks.reduce((a, b) => a + b.w * (b.h + 2), 0), wide = Math.max(...blocks.map(b => b.w), Math.sqrt(area * 2.4), small ? 60 : 0);
  const X = new Float64Array(count), Y = new Float64Array(count);
  let x = 0, y = 0, band = [], width = 0;
  const close = () => { const high = Math.max(...band.map(b => b.h)); for (const b of band) place(b, y + (high - b.h) / 2); y += high + 2; band = []; x = 0; };
  const place = (b, top) => b.layer.forEach((i, n) => { X[i] = b.x + Math.floor(n / b.high) * PITCH_X; Y[i] = top + (n % b.high) * PITCH_Y; });
  for (const b of blocks) { if (band.length && x + b.w > wide) close(); b.x = x; x += b.w; width = Math.max(width, x - GAP); band.push(b); }
  if (band.length) close();
  G.place = { X, Y }; G.w = width; G.h = y - 2;
  const order = Array.from({ length: count }, (_, i) => i).sort((i, j) => X[i] - X[j]);
  G.order = order;
}
function graphFit() {
  const w = graph.width || 800, h = graphHeight(w);
  G.scale = Math.min((w - 20) / G.w, (h - 20) / G.h, 34); G.x = (w - G.w * G.scale) / 2; G.y = (h - G.h * G.scale) / 2; graph.ask();
}
function graphHeight(w) { return Math.round(Math.min(innerHeight * .7, Math.max(220, G.place ? Math.min(560, G.h / G.w * w * 1.05 + 30) : 300))); }
function graphZoom(f, x, y) {
  const s = Math.min(90, Math.max(.02, G.scale * f)); f = s / G.scale;
  G.x = x - (x - G.x) * f; G.y = y - (y - G.y) * f; G.scale = s; graph.ask();
}
const MOST_EDGES = 5000;
function drawGraph(ctx, width, height) {
  const { X, Y } = G.place, s = G.scale, w = CELL_W * s, h = CELL_H * s;
  const fg = css("--fg"), quiet = css("--quiet"), bad = css("--bad");
  const shown = [];
  for (let i = 0; i < count; i++) { const x = G.x + X[i] * s, y = G.y + Y[i] * s; if (x + w >= 0 && x <= width && y + h >= 0 && y <= height) shown.push(i); }
  let edges = 0;
  for (const i of shown) edges += S.starts[i + 1] - S.starts[i];
  const right = i => [G.x + X[i] * s + w, G.y + Y[i] * s + h / 2], left = i => [G.x + X[i] * s, G.y + Y[i] * s + h / 2];
  const curve = (a, b) => { const [x0, y0] = right(a), [x1, y1] = left(b), d = Math.max(12, Math.abs(x1 - x0) / 2); ctx.moveTo(x0, y0); ctx.bezierCurveTo(x0 + d, y0, x1 - d, y1, x1, y1); };
  const all = edges <= MOST_EDGES;
  if (all) {
    ctx.strokeStyle = quiet; ctx.globalAlpha = edges > 800 ? .25 : .55; ctx.beginPath();
    for (const i of shown) for (let e = S.starts[i]; e < S.starts[i + 1]; e++) curve(S.needs[e], i);
    ctx.stroke(); ctx.globalAlpha = 1;
  }
  if (G.step >= 0) {
    ctx.strokeStyle = fg; ctx.lineWidth = 1.6; ctx.beginPath();
    for (const j of needsOf(G.step).slice(0, 3000)) curve(j, G.step);
    for (const j of followersOf(G.step).slice(0, 3000)) curve(G.step, j);
    ctx.stroke(); ctx.lineWidth = 1;
  }
  let colour = "";
  for (const i of shown) {
    const x = G.x + X[i] * s, y = G.y + Y[i] * s, status = STATUS[S.status[i]];
    const c = status === "finished" ? funcColour(S.func[i]) : BY_STATUS[status];
    if (c !== colour) { ctx.fillStyle = c; colour = c; }
    ctx.fillRect(x, y, Math.max(1, w), Math.max(1, h));
    if (isBad(S.status[i])) { ctx.strokeStyle = bad; ctx.lineWidth = 2; ctx.strokeRect(x, y, Math.max(2, w), Math.max(2, h)); ctx.lineWidth = 1; }
    if (h > 11 && w > 34) {
      ctx.fillStyle = "#14181d"; colour = ""; ctx.textAlign = "left";
      const two = h > 30;
      const tx = Math.max(x, 0) + 3, room = x + w - tx - 3;
      ctx.fillText(cut(ctx, `${idOf(i)} ${D.functions[S.func[i]]}`, room), tx, y + (two ? h / 2 - 8 : h / 2));
      if (two) ctx.fillText(cut(ctx, S.args[i], room), tx, y + h / 2 + 8);
    }
  }
  if (G.step >= 0) { ctx.strokeStyle = fg; ctx.lineWidth = 2; ctx.strokeRect(G.x + X[G.step] * s - 1, G.y + Y[G.step] * s - 1, Math.max(4, w) + 2, Math.max(4, h) + 2); ctx.lineWidth = 1; }
  $("g-note").textContent = (all ? "" : `${number(edges)} prerequisites are too many to draw: zoom in, or select a step to see its own. `) +
    `${number(shown.length)} of ${plural(count, "step")} in view`;
}
function stepAt(x, y) {
  const { X, Y } = G.place, s = G.scale, gx = (x - G.x) / s, gy = (y - G.y) / s;
  for (let i = 0; i < count; i++) if (gx >= X[i] && gx <= X[i] + CELL_W && gy >= Y[i] && gy <= Y[i] + CELL_H) return i;
  return -1;
}
function nextStep(d) { const i = G.step < 0 ? 0 : Math.min(count - 1, Math.max(0, G.step + d)); select(i, false); showStep(i); }
function showStep(i) {
  const { X, Y } = G.place, x = G.x + X[i] * G.scale, y = G.y + Y[i] * G.scale;
  if (x < 0 || y < 0 || x > graph.width - 20 || y > graph.height - 10) { G.x += graph.width / 2 - x; G.y += graph.height / 2 - y; }
  graph.ask();
}
function setUpGraph() {
  const canvas = $("g-canvas");
  const pan = (dx, dy) => { G.x += dx; G.y += dy; graph.ask(); };
  graph = surface(canvas, { height: graphHeight, draw: drawGraph, zoom: graphZoom, pan, fit: graphFit, next: nextStep,
    click: (x, y) => { const i = stepAt(x, y); if (i >= 0) select(i, false); },
    hover: (x, y, e) => { const i = stepAt(x, y); if (i < 0) hideTip(); else showTip(`${idOf(i)} ${called(i)} · ${STATUS[S.status[i]]}`, e); },
    keys: { ArrowLeft: () => pan(60, 0), ArrowRight: () => pan(-60, 0), ArrowUp: () => pan(0, 60), ArrowDown: () => pan(0, -60) } });
  canvas.style.touchAction = "none";
  canvas.setAttribute("aria-label", `Graph of ${plural(count, "step")} with ${plural(S.needs.length, "prerequisite")}`);
  $("g-in").onclick = () => graphZoom(1.6, graph.width / 2, graph.height / 2); $("g-out").onclick = () => graphZoom(1 / 1.6, graph.width / 2, graph.height / 2);
  $("g-fit").onclick = graphFit;
  const show = mode => {
    const all = mode === "steps";
    canvas.hidden = !all; $("g-functions").hidden = all; $("g-tools").hidden = !all; $("g-help").hidden = !all; $("g-note").textContent = "";
    if (all) {
      if (!G.place) layoutSteps();
      graph.width = canvas.clientWidth; graphFit(); graph.paint();
    } else if (!$("g-functions").firstChild) functionGraph();
  };
  $("g-mode").onchange = e => show(e.target.value);
  const mode = count && small ? "steps" : "functions";
  $("g-mode").value = mode;
  if (count) show(mode); else $("graph").hidden = true;
}
function functionGraph() {
  const groups = new Map(), edges = new Map();
  for (let i = 0; i < count; i++) {
    const f = S.func[i];
    let g = groups.get(f);
    if (!g) groups.set(f, g = { f, steps: 0, depth: 0, time: 0, bad: 0, done: 0 });
    g.steps++; g.depth += S.depth[i]; g.bad += isBad(S.status[i]) ? 1 : 0; g.done += STATUS[S.status[i]] === "finished" ? 1 : 0;
    for (let e = S.starts[i]; e < S.starts[i + 1]; e++) { const k = S.func[S.needs[e]] * 65536 + f; edges.set(k, (edges.get(k) || 0) + 1); }
  }
  for (let k = 0; k < spans; k++) { const g = groups.get(P.func[k]); if (g && P.session[k] === lastSession) g.time += P.length[k]; }
  const nodes = [...groups.values()].sort((a, b) => a.depth / a.steps - b.depth / b.steps).slice(0, 100);
  nodes.forEach((g, n) => { g.n = n; g.level = 0; });
  const links = [...edges].map(([k, n]) => ({ a: groups.get(Math.floor(k / 65536)), b: groups.get(k % 65536), n })).filter(l => l.a.n != null && l.b.n != null);
  for (const g of nodes) for (const l of links) if (l.b === g && l.a.n < g.n) g.level = Math.max(g.level, l.a.level + 1);
  const W = 214, H = 60, GX = 66, GY = 22, levels = [];
  for (const g of nodes) (levels[g.level] = levels[g.level] || []).push(g);
  const narrow = $("graph").clientWidth < 620, tall = Math.max(...levels.map(l => l.length));
  levels.forEach((level, d) => level.forEach((g, n) => {
    const off = (tall - level.length) / 2 + n;
    g.x = narrow ? 14 + off * (W + 20) : 2 + d * (W + GX); g.y = narrow ? 2 + d * (H + 40) : 16 + off * (H + GY);
  }));
  const NS = "http://www.w3.org/2000/svg";
  const make = (tag, a, text) => { const e = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(a)) e.setAttribute(k, v); if (text != null) e.textContent = text; return e; };
  const right = Math.max(...nodes.map(g => g.x)) + W + 26, low = Math.max(...nodes.map(g => g.y)) + H + 6;
  const svg = make("svg", { width: right, height: low, viewBox: `0 0 ${right} ${low}`, role: "img",
    "aria-label": "Functions: " + links.map(l => `${D.functions[l.b.f]} after ${D.functions[l.a.f]}`).slice(0, 40).join(", ") });
  for (const l of links) {
    const width = Math.min(7, 1 + Math.log10(l.n));
    let path;
    if (l.a === l.b) path = `M${l.a.x + W} ${l.a.y + 18} c 24 -10 24 34 0 24`;
    else if (narrow) { const x0 = l.a.x + W / 2, y0 = l.a.y + H, x1 = l.b.x + W / 2, y1 = l.b.y; path = `M${x0} ${y0} C ${x0} ${y0 + 24} ${x1} ${y1 - 24} ${x1} ${y1}`; }
    else { const x0 = l.a.x + W, y0 = l.a.y + H / 2, x1 = l.b.x, y1 = l.b.y + H / 2, d = Math.max(30, Math.abs(x1 - x0) / 2); path = `M${x0} ${y0} C ${x0 + d} ${y0} ${x1 - d} ${y1} ${x1} ${y1}`; }
    const p = make("path", { d: path, fill: "none", stroke: "currentColor", "stroke-opacity": .45, "stroke-width": width });
    p.append(make("title", {}, `${plural(l.n, "prerequisite")}: ${D.functions[l.b.f]} after ${D.functions[l.a.f]}`));
    svg.append(p);
  }
  for (const g of nodes) {
    const box = make("g", {}), name = D.functions[g.f];
    box.append(make("title", {}, `${name}: ${plural(g.steps, "step")}, ${g.done} finished${g.bad ? `, ${g.bad} failed` : ""}, ${seconds(g.time)} in all`),
      make("rect", { x: g.x, y: g.y, width: W, height: H, rx: 6, fill: funcColour(g.f), stroke: g.bad ? css("--bad") : "none", "stroke-width": 2.5 }),
      make("text", { x: g.x + 10, y: g.y + 23, class: "inbox" }, name.length > 27 ? name.slice(0, 26) + "…" : name),
      make("text", { x: g.x + 10, y: g.y + 43, class: "inbox sub" }, `${plural(g.steps, "step")} · ${seconds(g.time)}${g.bad ? ` · ${g.bad} failed` : g.done < g.steps ? ` · ${number(g.done)} done` : ""}`));
    svg.append(box);
  }
  $("g-functions").append(svg);
  if (groups.size > nodes.length) $("g-note").textContent = `the first ${nodes.length} of ${groups.size} functions`;
}

// ------------------------------------------------------------------------------------------------ tables
function functionsTable() {
  const groups = D.functions.map((name, f) => ({ f, name, times: [], total: 0, cpu: 0, known: 0, peak: null, bad: 0 }));
  for (let k = 0; k < spans; k++) {
    const g = groups[P.func[k]];
    g.bad += isBad(P.status[k]) ? 1 : 0;
    if (P.peak[k] != null) g.peak = Math.max(g.peak || 0, P.peak[k]);
    if (STATUS[P.status[k]] !== "finished") continue;
    g.times.push(P.length[k]); g.total += P.length[k];
    if (P.cpu[k] != null) { g.cpu += P.cpu[k]; g.known += P.length[k]; }
  }
  const ran = groups.filter(g => g.times.length || g.bad);
  for (const g of ran) {
    g.times.sort((a, b) => a - b);
    const q = p => g.times.length ? g.times[Math.min(g.times.length - 1, Math.floor(p * g.times.length))] : 0;
    Object.assign(g, { min: q(0), median: q(.5), high: q(.95), max: q(1), use: g.known ? g.cpu / g.known : null, n: g.times.length });
  }
  if (!ran.length) { $("functions").hidden = $("slowest").hidden = true; return; }
  const low = Math.log(Math.max(1, Math.min(...ran.map(g => g.min || 1e12)))), top = Math.log(Math.max(2, ...ran.map(g => g.max)));
  const place = t => Math.max(0, 100 * (Math.log(Math.max(1, t)) - low) / Math.max(.01, top - low));
  const columns = [["Function", g => g.name, "name"], ["Finished", g => number(g.n), "n"], ["Failed", g => g.bad ? number(g.bad) : "–", "bad"],
    ["In all", g => seconds(g.total), "total"], ["Shortest", g => seconds(g.min), "min"], ["Median", g => seconds(g.median), "median"],
    ["95 %", g => seconds(g.high), "high"], ["Longest", g => seconds(g.max), "max"], ["Spread (logarithmic)", null, null],
    ["CPU use", g => g.use == null ? "–" : percent(g.use), "use"], ["Peak memory", g => bytes(g.peak), "peak"]];
  let by = "total", down = true;
  const fill = () => {
    const table = $("f-table"), head = el("tr");
    table.textContent = "";
    for (const [title, , key] of columns) {
      const th = el("th", key ? null : title, { scope: "col", class: key && key !== "name" ? "n" : "" });
      if (key) {
        const b = el("button", title, { type: "button" });
        b.onclick = () => { down = by === key ? !down : key !== "name"; by = key; fill(); table.querySelector(`th[aria-sort] button`).focus(); };
        th.append(b);
        if (by === key) th.setAttribute("aria-sort", down ? "descending" : "ascending");
      }
      head.append(th);
    }
    const thead = el("thead"), tbody = el("tbody"); thead.append(head);
    const order = [...ran].sort((a, b) => (a[by] === b[by] ? 0 : (a[by] ?? -1) < (b[by] ?? -1) ? -1 : 1) * (down ? -1 : 1));
    for (const g of order) {
      const tr = el("tr");
      for (const [, value, key] of columns) {
        const td = el("td", value && key !== "name" ? value(g) : null, { class: value && key !== "name" ? "n nowrap" : "" });
        if (key === "name") td.append(swatch(funcColour(g.f)), g.name);
        if (!value) {
          const range = el("span", null, { class: "range", role: "img", "aria-label": `from ${seconds(g.min)} to ${seconds(g.max)}` }), bar = el("span"), mid = el("b");
          bar.style.left = place(g.min) + "%"; bar.style.width = Math.max(1, place(g.max) - place(g.min)) + "%"; bar.style.background = funcColour(g.f);
          mid.style.left = place(g.median) + "%"; if (g.n) range.append(bar, mid); td.append(range);
        }
        tr.append(td);
      }
      tbody.append(tr);
    }
    table.append(thead, tbody);
  };
  fill();
  $("f-note").textContent = "Times of finished attempts, of all sessions. CPU use: CPU seconds for each second; above 100 % several cores. Peak memory: of the worker and the largest program that the step started, for steps long enough to be looked at.";
  const longest = Array.from({ length: spans }, (_, k) => k).sort((a, b) => P.length[b] - P.length[a]).slice(0, 15);
  const body = el("tbody"), header = el("tr"), thead = el("thead");
  for (const [t, c] of [["Step", "n"], ["Call", ""], ["Status", ""], ["Took", "n"], ["CPU", "n"], ["Peak memory", "n"], ["Worker", ""]]) header.append(el("th", t, { class: c, scope: "col" }));
  thead.append(header);
  for (const k of longest) {
    const tr = el("tr"), i = P.session[k] === lastSession ? placeOf(P.step[k]) : -1, id = el("td", null, { class: "n" });
    const b = el("button", String(P.step[k]), { class: "link", type: "button" }); b.onclick = () => selectSpan(k, true); id.append(b);
    tr.append(id, el("td", i >= 0 ? called(i) : D.functions[P.func[k]], { class: "wide" }), el("td", STATUS[P.status[k]]), el("td", seconds(P.length[k]), { class: "n nowrap" }),
      el("td", P.cpu[k] == null ? "–" : seconds(P.cpu[k]), { class: "n nowrap" }), el("td", bytes(P.peak[k]), { class: "n nowrap" }), el("td", workerName(k), { class: "nowrap" }));
    body.append(tr);
  }
  $("s-table").append(thead, body);
}
const workerName = k => D.sessions[P.session[k] - 1].workers[P.row[k]] || "–";
function failures() {
  if (!D.failures.length) { $("failed").append(el("p", D.alive ? "No step has failed so far." : "No step failed.")); return; }
  D.failures.forEach((f, n) => {
    const d = el("details"), summary = el("summary"), i = placeOf(f.step);
    if (n < 3) d.open = true;
    summary.append(el("b", `Step ${f.step} ${f.func}(${f.args})`), ` ${f.status}${f.attempts > 1 ? ` after ${f.attempts} attempts` : ""}: ${f.cause}`);
    d.append(summary);
    if (i >= 0) { const p = el("p"); p.append(stepLink(i, "Show it in the timeline")); d.append(p); }
    if (f.traceback) d.append(el("p", "Traceback"), el("pre", f.traceback, { tabindex: "0" }));
    if (f.log) d.append(el("p", "Its output"), el("pre", f.log, { tabindex: "0" }));
    $("failed").append(d);
  });
  if (D.failed > D.failures.length) $("failed").append(el("p", `and ${number(D.failed - D.failures.length)} more failed`));
}
function setting() {
  for (const [id, title, list] of [["environment", "Environment", D.environment], ["values", "Values of the form", D.values]]) {
    const body = el("tbody");
    for (const [k, v] of list) { const tr = el("tr"); tr.append(el("td", k), el("td", v === "" ? "–" : v)); body.append(tr); }
    $(id).append(el("caption", title), body);
  }
}
function detail(i, k) {
  const body = $("detail-body"), dl = el("dl");
  body.textContent = "";
  const id = k >= 0 ? P.step[k] : idOf(i), name = i >= 0 ? called(i) : D.functions[P.func[k]];
  body.append(el("b", `Step ${id} ${name}`), dl);
  const row = (t, v) => { const dd = el("dd"); v instanceof Node ? dd.append(v) : dd.textContent = v; dl.append(el("dt", t), dd); };
  row("status", k >= 0 ? STATUS[P.status[k]] + (P.attempt[k] > 1 ? `, attempt ${P.attempt[k]}` : "") : STATUS[S.status[i]] === "finished" ? "kept from an earlier session" : STATUS[S.status[i]]);
  if (k >= 0) {
    row("took", `${seconds(P.length[k])}, from ${seconds(P.begin[k])} to ${seconds(P.begin[k] + P.length[k])}` + (lastSession > 1 ? `, session ${P.session[k]}` : ""));
    if (P.cpu[k] != null) row("CPU", `${seconds(P.cpu[k])} (${percent(P.length[k] ? P.cpu[k] / P.length[k] : 0)})`);
    if (P.peak[k] != null) row("peak memory", bytes(P.peak[k]));
    const moved = P.traffic[k], amount = n => n == null ? "–" : n < 1e3 ? `${n} bytes` : n < 1e6 ? `${Math.round(n / 1e3)} kB` : bytes(n / 1024);
    if (moved && moved[0] != null) row("read, written", `${amount(moved[0])}, ${amount(moved[1])}`);
    if (moved) row("to its worker, and back", `${amount(moved[2])}, ${amount(moved[3])}`);
    row("worker", workerName(k));
  }
  if (i >= 0) {
    const list = ids => { const s = el("span"); ids.slice(0, 40).forEach((j, n) => { if (n) s.append(", "); s.append(stepLink(j)); }); if (ids.length > 40) s.append(` and ${number(ids.length - 40)} more`); return s; };
    const needs = needsOf(i), after = followersOf(i);
    if (needs.length) row("after", list(needs));
    if (after.length) row("before", list(after));
    const f = D.failures.find(f => f.step === id);
    if (f) row("why", f.cause);
  }
  $("detail").hidden = false;
}
$("close").onclick = () => { $("detail").hidden = true; };
document.addEventListener("keydown", e => { if (e.key === "Escape") { $("detail").hidden = true; hideTip(); } });

head(); limits(); setUpTimeline(); setUpGraph(); functionsTable(); failures(); setting();
timeline.paint();
document.documentElement.dataset.ready = "yes";
})();
