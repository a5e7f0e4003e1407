// Draws what /events tells: the whole once, then what changed. Names come from a cluster in which others name things,
// so they only ever become text. Each frame draws only what was touched since the last one.
"use strict";

const COMPACT_FROM = 150;     // Nodes; more are drawn as small tiles without their pods.
const LIT_MS = 4000;          // How long a level stays lit.
const POINTS = 600;
const STEPS = 300;

const $ = id => document.getElementById(id);
const nodes = new Map();      // By id: what is known of a node, and its elements.
const groupViews = new Map(); // By name; "" is for nodes of no group.
let model = blank();
let frame = 0;
let selected = null;          // The id of the node in the details panel.
let current = null;           // The id of the node that the Tab key reaches.
let resume = {};              // By name: the nodes to focus and to open after everything was told anew.
const dirty = { nodes: new Set(), parts: new Set() };

function blank() {
  return { title: "", levels: [], last: [], points: [], steps: [], head: null, groups: [], waiting: { total: 0, pods: [] }, ray: [], rayClusters: [], hpas: [] };
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
// Writing the same text again would still cost layout.
function write(element, text) { if (element.textContent !== text) element.textContent = text; }
function mark(element, name, value) { if (element.getAttribute(name) !== value) element.setAttribute(name, value); }

// ---- What comes in ----

function connect() {
  const events = new EventSource("events");
  events.onopen = () => setLink(true);
  events.onmessage = message => take(JSON.parse(message.data));
  events.onerror = () => {
    setLink(false);
    // The browser comes back by itself unless it was refused.
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}

function setLink(on) {
  write($("link"), on ? "live" : "connection lost");
  $("link").dataset.is = on ? "on" : "off";
  $("lost").hidden = on;
  document.body.classList.toggle("lost", !on);
}

function take(update) {
  if (update.full) begin(update.full);
  for (const part of ["head", "groups", "waiting", "ray", "rayClusters", "hpas"]) {
    if (update[part]) { model[part] = update[part]; dirty.parts.add(part); }
  }
  for (const change of update.nodes || []) {
    const node = nodes.get(change.id) || { id: change.id };
    Object.assign(node, change);
    nodes.set(change.id, node);
    dirty.nodes.add(change.id);
  }
  for (const id of update.gone || []) { remove(id); dirty.parts.add("gone"); }
  if (update.point) {
    model.points.push(update.point);
    if (model.points.length > POINTS) model.points = model.points.filter((_, index) => index % 2 === 1);
    dirty.parts.add("points");
  }
  if (update.steps) {
    model.steps.push(...update.steps);
    model.steps.splice(0, Math.max(0, model.steps.length - STEPS));
    dirty.parts.add("steps");
    if (!update.full) update.steps.forEach(act);
  }
  schedule();
}

function begin(full) {
  const focused = nodes.get(current)?.name, had = $("groups").contains(document.activeElement);
  const opened = nodes.get(selected)?.name;
  nodes.clear();
  dirty.nodes.clear();
  groupViews.clear();
  $("groups").replaceChildren();
  [current, selected] = [null, null];
  // The same node goes by another number after a restart; whoever was reading about it goes on.
  resume = { focused: had ? focused : null, opened };
  model = { ...blank(), title: full.title, levels: full.levels, points: full.points };
  full.last.forEach(step => { model.last[step.level] = step; });
  ["head", "groups", "waiting", "ray", "rayClusters", "hpas", "points", "steps", "levels"].forEach(part => dirty.parts.add(part));
}

function remove(id) {
  const node = nodes.get(id);
  if (!node) return;
  nodes.delete(id);
  dirty.nodes.delete(id);
  if (current === id) current = null;
  if (!node.view) return;
  const focused = document.activeElement === node.view.tile;
  node.view.tile.remove();
  if (focused) focusNode(nodes.keys().next().value);
}

const words = [];
let speaking = 0;
function act(step) {
  model.last[step.level] = step;
  const card = $("flow").children[step.level];
  if (card) {
    card.dataset.lit = "";
    clearTimeout(card.timer);
    card.timer = setTimeout(() => { delete card.dataset.lit; }, LIT_MS);
  }
  // One sentence a second at most, the newest: nobody can listen to more.
  if (step.level === 3) {
    words.push(`Ebb ${step.what}${step.because ? `: ${step.because}` : ""}`);
    if (!speaking) speaking = setTimeout(speak, 300);
  }
}
function speak() {
  const more = words.length > 1 ? `, and ${words.length - 1} more` : "";
  write($("announce"), `${words[words.length - 1]}${more}.`);
  words.length = 0;
  speaking = setTimeout(() => { speaking = 0; if (words.length) speak(); }, 1000);
}

// ---- Drawing, at most once a frame ----

function schedule() { if (!frame) frame = requestAnimationFrame(draw); }

function draw() {
  frame = 0;
  const { parts } = dirty;
  if (parts.has("levels")) drawLevels();
  if (parts.has("groups") || dirty.nodes.size || parts.has("gone")) drawGroups();
  for (const id of dirty.nodes) drawNode(nodes.get(id));
  if (parts.has("head")) drawHead();
  if (parts.has("waiting") || parts.has("head")) drawWaiting();
  if (parts.has("steps")) drawSteps();
  if (parts.size) drawFlow();
  if (parts.has("points")) drawCharts();
  if (parts.has("levels")) comeBack();
  if (selected !== null && (dirty.nodes.has(selected) || parts.has("head") || parts.has("gone"))) drawDetails();
  if (current === null && nodes.size) setCurrent(nodes.keys().next().value);
  const any = nodes.size > 0 || model.groups.length > 0;
  $("empty").hidden = any;
  dirty.nodes.clear();
  parts.clear();
}

function drawHead() {
  const { head } = model;
  write($("title"), model.title);
  write($("clock"), clock(head.now));
  $("clock").dateTime = new Date(head.now).toISOString();
  $("clock").title = new Date(head.now).toISOString();
  write($("leading"), head.leading ? "leading" : "not leading");
  $("leading").dataset.is = head.leading ? "on" : "off";
  write($("synced"), head.synced ? "synced" : "not synced");
  $("synced").dataset.is = head.synced ? "on" : "off";
  write($("count"), String(nodes.size));
  write($("pending"), String(model.waiting.total));
  write($("rate"), dollars(head.cost.perHour));
  write($("total"), dollars(head.cost.total));
}

function drawLevels() {
  const select = $("level");
  while (select.options.length > 1) select.remove(1);
  $("flow").replaceChildren(...model.levels.map((title, index) => {
    const option = make("option", "", title);
    option.value = String(index);
    select.append(option);
    const card = make("li", "level");
    const heading = make("h3");
    heading.append(make("span", "", title), make("span", "ago"));
    card.append(heading, make("p", "now"), make("p", "last"));
    return card;
  }));
}

function drawFlow() {
  const sum = (list, key) => list.reduce((all, item) => all + (item[key] || 0), 0);
  const { ray, rayClusters, hpas, groups, head, waiting } = model;
  const instances = sum(groups, "instances");
  const desired = groups.some(group => group.desired !== null) ? sum(groups, "desired") : "?";
  let ready = 0;
  for (const node of nodes.values()) ready += node.state.ready ? 1 : 0;
  const cpu = Math.max(...hpas.map(hpa => hpa.cpuPercent ?? -1));
  const now = [
    ray.length ? `${sum(ray, "tasksQueued")} tasks queued, ${sum(ray, "tasksRunning")} running` : requestsIn(rayClusters),
    ray.length ? `${sum(ray, "workers")} workers, wants ${sum(ray, "wanted")}`
      : rayClusters.length ? `${count(sum(rayClusters, "anticipated"), "worker")} needed that ${sum(rayClusters, "anticipated") === 1 ? "is no pod" : "are no pods"} yet` : "not observed",
    hpas.length ? `${sum(hpas, "current")} of ${sum(hpas, "desired")} replicas${cpu >= 0 ? `, CPU ${cpu} %` : ""}` : "not observed",
    head ? (head.leading ? "leading" : "standing by") : "",
    groups.length ? `desired ${desired}, ${instances} instances` : "no groups",
    `${count(ready, "node")} ready, ${count(waiting.total, "pod")} waiting`,
  ];
  [...$("flow").children].forEach((card, index) => {
    const [heading, state, last] = card.children;
    const step = model.last[index];
    write(state, now[index]);
    write(last, step ? step.what : "");
    last.title = step ? step.because : "";
    write(heading.lastChild, step && head ? ago(head.now - step.at) : "");
  });
}

// What waits in real Ray clusters, as their heads told; of those that tell nothing, why.
function requestsIn(clusters) {
  if (!clusters.length) return "not observed";
  const told = clusters.filter(cluster => cluster.waiting !== null), silent = clusters.filter(cluster => cluster.problem);
  const waiting = told.reduce((all, cluster) => all + cluster.waiting, 0);
  const said = told.length ? `${count(waiting, "request")} waiting` : "nothing told yet";
  return silent.length ? `${said}; ${silent[0].name}: ${silent[0].problem}` : said;
}

function drawGroups() {
  const wanted = model.groups.map(group => group.name);
  for (const id of dirty.nodes) {
    const name = nodes.get(id).state.group ?? "";
    if (!wanted.includes(name)) wanted.push(name);
  }
  for (const name of wanted) if (!groupViews.has(name)) groupViews.set(name, newGroup(name));
  const compact = nodes.size >= COMPACT_FROM;
  if ($("nodes").classList.contains("compact") !== compact) {
    $("nodes").classList.toggle("compact", compact);
    for (const id of nodes.keys()) dirty.nodes.add(id);
  }
  for (const [name, view] of groupViews) {
    const group = model.groups.find(group => group.name === name);
    write(view.title, name || "Other nodes");
    write(view.type, group ? group.instanceType : "");
    view.meter.hidden = !group;
    if (group) {
      const desired = group.desired ?? "?";
      const known = group.observed ? "" : " · not known to AWS yet";
      write(view.scale, `${group.instances} of ${desired} desired · min ${group.min} · max ${group.max}${known}`);
      view.meter.max = Math.max(1, group.max);
      view.meter.value = group.instances;
    } else write(view.scale, "");
  }
}

function newGroup(name) {
  const section = make("div", "group");
  const row = make("div", "row");
  const view = { section, title: make("h3"), type: make("span", "type"), scale: make("span"), meter: make("meter"), tiles: make("div", "tiles"), none: make("p", "quiet none", "No node. The group is at zero, or its first is on its way.") };
  const scale = make("div", "scale");
  mark(view.meter, "aria-hidden", "true");
  scale.append(view.meter, view.scale);
  row.append(view.title, view.type, scale);
  mark(view.tiles, "role", "listbox");
  mark(view.tiles, "aria-label", name ? `Nodes of ${name}` : "Nodes of no group");
  section.append(row, view.tiles, view.none);
  const next = name ? groupViews.get("")?.section : null;
  $("groups").insertBefore(section, next ?? null);
  return view;
}

function stateOf({ state }) {
  if (state.drained) return ["draining", "drained"];
  if (state.draining) return ["draining", "draining"];
  if (!state.ready) return ["unknown", "not ready"];
  const why = { history: "just started", cpu_steal: "CPU steal", memory_pressure: "memory pressure", run_queue: "run queue", cpu: "CPU", gpu: "GPU" }[state.why];
  if (state.class === "busy" && state.waste) return ["busy", `busy: ${why}, no GPU works`];
  if (state.class === "busy") return ["busy", `busy: ${why}`];
  if (state.class === "idle") return ["idle", "idle"];
  if (state.class === "silent") return ["unknown", "unknown: agent silent"];
  if (state.why === "initialization") return ["unknown", "unknown: work just started"];
  return ["unknown", state.why === "history" ? "unknown: just started" : `unknown: no ${why} figures`];
}

function newTile(node) {
  const tile = make("div", "node");
  tile.tabIndex = -1;
  tile.dataset.id = String(node.id);
  mark(tile, "role", "option");
  mark(tile, "aria-selected", "false");
  const bars = make("div", "bars");
  const bar = (kind, label) => {
    const row = make("div", `bar ${kind}`), track = make("div", "track"), asked = make("u"), used = make("i"), text = make("b");
    track.append(asked, used);
    row.append(make("span", "", label), track, text);
    bars.append(row);
    return { row, asked, used, text };
  };
  node.view = { tile, name: make("p", "name", short(node.name)), mark: make("p", "mark"), cpu: bar("cpu", "CPU"), mem: bar("mem", "mem"), gpu: bar("gpu", "GPU"), pods: make("div", "pods") };
  tile.title = node.name;
  tile.append(node.view.name, node.view.mark, bars, node.view.pods);
}

function drawNode(node) {
  const compact = nodes.size >= COMPACT_FROM;
  if (!node.view) newTile(node);
  const { view, state } = node;
  // Use moves with every report; the rest seldom.
  if (view.state !== state || view.drawnPods !== node.pods || view.compact !== compact) drawNodeState(node, compact);
  const [cpu, memory, gpu] = node.use;
  setBar(view.cpu, cpu, state.requested[0] / state.allocatable[0], compact);
  if (!compact) setBar(view.mem, memory, state.requested[1] / state.allocatable[1]);
  if (state.allocatable[2]) setBar(view.gpu, gpu, state.requested[2] / state.allocatable[2], compact);
}

function drawNodeState(node, compact) {
  const { view, state } = node;
  const home = groupViews.get(state.group ?? "");
  if (view.tile.parentNode !== home.tiles) {
    // By name, as in the picture; most come in this order already.
    let before = null;
    for (let other = home.tiles.lastElementChild; other && other.title > node.name; other = other.previousElementSibling) before = other;
    home.tiles.insertBefore(view.tile, before);
  }
  const [is, label] = stateOf(node);
  const cordon = state.unschedulable && is !== "draining" ? ", cordoned" : "";
  // Of many, what tells one from the next is the end.
  write(view.name, compact ? short(node.name).split("-").slice(-2).join("-").slice(-7) : short(node.name));
  mark(view.tile, "data-is", is);
  mark(view.mark, "data-is", is);
  write(view.mark, label + cordon);
  view.gpu.row.hidden = !state.allocatable[2];
  if (!compact) view.pods.replaceChildren(...node.pods.map(pod => podChip(pod, state)));
  const work = node.pods.filter(pod => !(pod[1] & 1)).length;
  mark(view.tile, "aria-label", `${node.name}, ${label}${cordon}, ${count(work, "pod")} besides daemons`);
  [view.state, view.drawnPods, view.compact] = [state, node.pods, compact];
}

function setBar(bar, used, asked, textless) {
  const scale = share => `scaleX(${Math.min(1, share || 0).toFixed(3)})`;
  const [usedScale, askedScale] = [scale((used ?? 0) / 100), scale(asked)];
  if (bar.usedScale !== usedScale) bar.used.style.transform = bar.usedScale = usedScale;
  if (bar.askedScale !== askedScale) bar.asked.style.transform = bar.askedScale = askedScale;
  if (!textless) write(bar.text, used === null ? "?" : `${used} %`);
}

function podChip([name, flags, [cpu, , gpus]], state) {
  const chip = make("span", "pod");
  chip.title = name;
  if (flags & 1) chip.classList.add("daemon");
  if (flags & 2) chip.classList.add("going");
  if (gpus) chip.classList.add("has-gpu");
  if (cpu * 3 > state.allocatable[0]) chip.classList.add("large");
  return chip;
}

function drawWaiting() {
  const { total, pods } = model.waiting;
  $("waiting-none").hidden = total > 0;
  const rows = pods.slice(0, 50).map(({ pod, since, requests, because }) => {
    const row = make("li");
    row.append(make("p", "pod-name", pod), make("p", "quiet", `${amounts(requests)} · for ${span(model.head.now - since)}`));
    if (because) row.append(make("p", "", because));
    return row;
  });
  if (total > rows.length) rows.push(make("li", "quiet", `and ${total - rows.length} more`));
  $("waiting").replaceChildren(...rows);
}

function drawSteps() {
  const level = $("level").value, text = $("text").value.trim().toLowerCase();
  const shown = model.steps.filter(step => (level === "" || String(step.level) === level)
    && (!text || `${step.what} ${step.because}`.toLowerCase().includes(text)));
  $("steps-none").hidden = shown.length > 0;
  write($("steps-none"), model.steps.length ? "Nothing matches." : "Nothing yet.");
  $("steps").replaceChildren(...shown.reverse().map(step => {
    const row = make("li"), what = make("p"), time = make("time", "", clock(step.at));
    row.dataset.level = String(step.level);
    time.dateTime = new Date(step.at).toISOString();
    what.append(make("span", "who", `${model.levels[step.level]} `), step.what);
    row.append(time, what);
    if (step.because) row.append(make("p", "why", step.because));
    return row;
  }));
}

// ---- Timeline: one small chart for each, on the same axis of time ----

const CHARTS = [["queue", "Tasks queued"], ["waits", "Pods waiting"], ["count", "Nodes"]].map(([kind, title], index) => {
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    return element;
  };
  const row = make("div", `chart ${kind}`), side = make("div"), value = make("p", "value", "–"), peak = make("p", "quiet");
  side.append(make("p", "what", title), value, peak);
  const picture = svg("svg", { viewBox: "0 0 1000 60", preserveAspectRatio: "none", role: "img" });
  const area = svg("path", { class: "area" }), line = svg("path", {});
  picture.append(svg("line", { x1: 0, x2: 1000, y1: 60, y2: 60 }), area, line);
  row.append(side, picture);
  return { title, column: index + 1, row, value, peak, picture, area, line };
});
const axis = make("p", "axis"), axisFrom = make("span"), axisTo = make("span");
axis.append(axisFrom, axisTo);

function drawCharts() {
  const { points } = model;
  if (!points.length) return;
  const from = points[0][0], to = points[points.length - 1][0], width = Math.max(1, to - from);
  for (const chart of CHARTS) {
    const known = points.filter(point => point[chart.column] !== null);
    const last = known.length ? known[known.length - 1][chart.column] : null;
    const top = Math.max(1, ...known.map(point => point[chart.column]));
    write(chart.value, last === null ? "–" : String(last));
    write(chart.peak, last === null ? "not observed" : `at most ${top}`);
    mark(chart.picture, "aria-label", last === null ? `${chart.title}: not observed` : `${chart.title}: ${last} now, at most ${top} since ${clock(from)}`);
    let path = "", former = 0;
    known.forEach((point, index) => {
      const x = ((point[0] - from) * 1000 / width).toFixed(1), y = (58 - point[chart.column] * 54 / top).toFixed(1);
      path += index ? (y === former ? `H${x}` : `H${x}V${y}`) : `M${x} ${y}`;
      former = y;
    });
    chart.line.setAttribute("d", path);
    chart.area.setAttribute("d", path ? `${path}V60H${((known[0][0] - from) * 1000 / width).toFixed(1)}Z` : "");
  }
  write(axisFrom, clock(from));
  write(axisTo, clock(to));
}

// ---- One node in detail, and the keyboard ----

function drawDetails() {
  const node = nodes.get(selected), body = $("details-body");
  if (!node) {
    body.replaceChildren(make("p", "", "This node is gone."));
    return;
  }
  const { state } = node, [is, label] = stateOf(node);
  const head = make("p", "mark", label + (state.unschedulable ? ", cordoned" : ""));
  head.dataset.is = is;
  const group = model.groups.find(group => group.name === state.group);
  const about = [state.group ? `group ${state.group}` : "of no group", group?.instanceType, state.since && model.head ? `${state.class} for ${span(model.head.now - state.since)}` : null, state.waste && model.head ? `no GPU has worked for ${span(model.head.now - state.waste)}` : null];
  const figure = (index, unit) => [node.use[index] === null || node.use[index] === undefined ? "unknown" : `${node.use[index]} %`, unit(state.requested[index]), unit(state.allocatable[index])];
  const rows = [["CPU", ...figure(0, cores)], ["Memory", ...figure(1, gib)]];
  if (state.allocatable[2]) rows.push(["GPU", ...figure(2, String)]);
  [["CPU steal", 3], ["Run queue", 4], ["Memory pressure", 5]].forEach(([name, index]) => {
    if (node.use[index] !== null) rows.push([name, `${node.use[index]} %`, "", ""]);
  });
  const pods = node.pods.map(([name, flags, requests]) => [name + (flags & 1 ? " (daemon)" : "") + (flags & 2 ? " (terminating)" : ""), amounts(requests)]);
  body.replaceChildren(make("h3", "", node.name), head, make("p", "quiet", about.filter(Boolean).join(" · ")),
    table(["", "used", "requested", "allocatable"], rows), table([count(pods.length, "pod"), "requests"], pods));
}

function table(titles, rows) {
  const element = make("table"), head = make("tr"), body = make("tbody"), top = make("thead");
  head.append(...titles.map(title => { const cell = make(title ? "th" : "td", "", title); if (title) cell.scope = "col"; return cell; }));
  top.append(head);
  body.append(...rows.map(([first, ...rest]) => {
    const row = make("tr"), name = make("th", "", first);
    name.scope = "row";
    row.append(name, ...rest.map(text => make("td", "", text)));
    return row;
  }));
  element.append(top, body);
  return element;
}

function comeBack() {
  for (const node of nodes.values()) {
    if (node.name === resume.opened) open(node.id);
    if (node.name === resume.focused) focusNode(node.id);
  }
  $("details").hidden = selected === null;
  resume = {};
}
function setCurrent(id) {
  const former = nodes.get(current)?.view;
  if (former) former.tile.tabIndex = -1;
  current = id ?? null;
  const view = nodes.get(current)?.view;
  if (view) view.tile.tabIndex = 0;
}
function focusNode(id) {
  setCurrent(id);
  nodes.get(id)?.view?.tile.focus();
}
function open(id) {
  close(false);
  selected = id;
  mark(nodes.get(id).view.tile, "aria-selected", "true");
  $("details").hidden = false;
  drawDetails();
}
function close(back) {
  const node = nodes.get(selected);
  if (node) mark(node.view.tile, "aria-selected", "false");
  $("details").hidden = true;
  if (back && selected !== null) focusNode(node ? selected : nodes.keys().next().value);
  selected = null;
}

// The nearest tile in the next row up or down, by where the tiles are.
function vertical(tiles, index, step) {
  const x = tiles[index].getBoundingClientRect();
  let row = null, best = index, distance = Infinity;
  for (let other = index + step; other >= 0 && other < tiles.length; other += step) {
    const box = tiles[other].getBoundingClientRect();
    if (Math.abs(box.top - x.top) < 2) continue;
    row ??= box.top;
    if (Math.abs(box.top - row) > 2) break;
    if (Math.abs(box.left - x.left) < distance) [best, distance] = [other, Math.abs(box.left - x.left)];
  }
  return best;
}

$("groups").addEventListener("keydown", event => {
  const tile = event.target.closest(".node");
  if (!tile) return;
  const tiles = [...$("groups").querySelectorAll(".node")], index = tiles.indexOf(tile);
  const to = { ArrowRight: () => index + 1, ArrowLeft: () => index - 1, ArrowDown: () => vertical(tiles, index, 1), ArrowUp: () => vertical(tiles, index, -1), Home: () => 0, End: () => tiles.length - 1 }[event.key];
  if (to) {
    const next = tiles[Math.max(0, Math.min(tiles.length - 1, to()))];
    focusNode(Number(next.dataset.id));
  } else if (event.key === "Enter" || event.key === " ") open(Number(tile.dataset.id));
  else return;
  event.preventDefault();
});
$("groups").addEventListener("click", event => {
  const tile = event.target.closest(".node");
  if (!tile) return;
  focusNode(Number(tile.dataset.id));
  open(Number(tile.dataset.id));
});
document.addEventListener("keydown", event => { if (event.key === "Escape" && selected !== null) close(true); });
$("close").addEventListener("click", () => close(true));
$("filter").addEventListener("input", drawSteps);
$("filter").addEventListener("submit", event => event.preventDefault());

// ---- Words ----

function clock(millis) { return new Date(millis).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false }); }
function span(millis) {
  const seconds = Math.max(0, Math.round(millis / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${seconds % 60}s`;
  return `${Math.floor(seconds / 3600)}h ${Math.floor(seconds / 60) % 60}m`;
}
function ago(millis) { return millis < 1000 ? "now" : `${span(millis)} ago`; }
function dollars(micros) { return micros === null || micros === undefined ? "unknown" : `$${(micros / 1e6).toFixed(2)}`; }
function count(number, thing) { return `${number} ${thing}${number === 1 ? "" : "s"}`; }
function cores(millis) { return count(+(millis / 1000).toFixed(2), "core"); }
function gib(mebi) { return `${+(mebi / 1024).toFixed(1)} GiB`; }
function amounts([cpu, memory, gpus]) { return [cores(cpu), gib(memory), gpus ? `${gpus} GPU` : null].filter(Boolean).join(", "); }
function short(name) { return name.includes(".") && !/^[\d.]+$/.test(name) ? name.slice(0, name.indexOf(".")) || name : name; }

$("charts").append(...CHARTS.map(chart => chart.row), axis);
connect();
