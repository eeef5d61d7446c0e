"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const LAYER = "the layer as a whole";
const GLYPH = {"pass": "", "fail": "×", "unsupported": "–", "known-failure": "!", "not-exercised": "·", "vacuous": "○", "judge-error": "?"};
const WORST = ["judge-error", "fail", "vacuous", "not-exercised", "known-failure", "unsupported", "pass"];
const BAD = ["fail", "vacuous", "judge-error"];
const counts = new Map();
for (const [subject, family, hook, dtype, outcome, count] of data.counts) {
  const key = JSON.stringify([subject, family, hook]);
  if (!counts.has(key)) counts.set(key, {});
  const byDtype = counts.get(key);
  if (!Object.hasOwn(byDtype, dtype)) byDtype[dtype] = {};
  byDtype[dtype][outcome] = count;
}
const state = {subject: data.subjects[0] ?? "", family: "", dtype: "", outcome: ""};
const links = [];
let current = [0, 0];

function make(tag, text, properties = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  Object.assign(element, properties);
  return element;
}

const colour = outcome => `var(--${outcome})`;
const cellOf = (subject, family, hook) => counts.get(JSON.stringify([subject, family, hook])) ?? {};
const worstOf = tally => WORST.find(outcome => tally[outcome]);
const named = hook => hook || LAYER;

function tallied(byDtype, dtypes) {
  const sum = {};
  for (const dtype of dtypes) for (const [outcome, count] of Object.entries(byDtype[dtype] ?? {})) sum[outcome] = (sum[outcome] ?? 0) + count;
  return sum;
}

const inWords = tally => WORST.filter(outcome => tally[outcome]).map(outcome => tally[outcome] + " " + outcome).join(", ") || "nothing asked";
const shownDtypes = () => state.dtype ? [state.dtype] : data.dtypes;

function swatch(outcome) {
  const box = make("span", GLYPH[outcome], {className: "swatch"});
  box.setAttribute("aria-hidden", "true");
  box.style.background = colour(outcome);
  return box;
}

function outcomeMark(outcome) {
  const mark = make("span", undefined, {className: "outcome"});
  mark.append(swatch(outcome), outcome);
  return mark;
}

function stripes(byDtype, dtypes) {
  const wide = 100 / dtypes.length;
  const parts = dtypes.map((dtype, i) => `var(--${worstOf(byDtype[dtype] ?? {}) ?? "absent"}) ${i * wide}% ${(i + 1) * wide}%`);
  return `linear-gradient(90deg, ${parts.join(", ")})`;
}

function drawCell(s, f, family, h, hook) {
  const cell = make("td"), byDtype = cellOf(state.subject, family, hook), dtypes = shownDtypes(), tally = tallied(byDtype, dtypes);
  const worst = worstOf(tally);
  if (!worst) {
    cell.append(make("i"));
    return [cell, null];
  }
  const link = make("a", GLYPH[worst], {href: `#cell/${s}/${f}/${h}`, tabIndex: -1});
  link.style.background = stripes(byDtype, dtypes);
  link.setAttribute("aria-label", `${family}, ${named(hook)}: ${inWords(tally)}`);
  link.title = link.getAttribute("aria-label");
  link.classList.toggle("dim", Boolean(state.outcome) && !tally[state.outcome]);
  cell.append(link);
  return [cell, link];
}

function drawGrid() {
  const s = data.subjects.indexOf(state.subject), table = at("grid"), head = make("tr"), body = make("tbody"), top = make("thead");
  head.append(make("th", "family", {scope: "col"}));
  for (const hook of data.hooks) {
    const th = make("th", undefined, {scope: "col"});
    th.append(make("span", named(hook)));
    head.append(th);
  }
  links.length = 0;
  data.families.forEach((family, f) => {
    if (!family.toLowerCase().includes(state.family.toLowerCase())) return;
    const row = make("tr"), inRow = [];
    row.append(make("th", family, {scope: "row"}));
    data.hooks.forEach((hook, h) => {
      const [cell, link] = drawCell(s, f, family, h, hook);
      row.append(cell);
      inRow.push(link);
    });
    if (!inRow.some(link => link && !link.classList.contains("dim"))) return;
    body.append(row);
    links.push(inRow);
  });
  top.append(head);
  table.replaceChildren(top, body);
  at("none").hidden = links.length > 0;
  at("order").textContent = shownDtypes().join(", ");
  current = nearest(0, 0, 0, 1) ?? [0, 0];
  if (links.length) links[current[0]][current[1]].tabIndex = 0;
}

function nearest(row, column, down, across) {
  for (; links[row] && column >= 0 && column < links[row].length; row += down, column += across) if (links[row][column]) return [row, column];
  return null;
}

function moveTo(place) {
  if (!place) return;
  links[current[0]][current[1]].tabIndex = -1;
  current = place;
  const link = links[place[0]][place[1]];
  link.tabIndex = 0;
  link.focus();
}

at("grid").addEventListener("keydown", event => {
  const [row, column] = current;
  const step = {ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0]}[event.key];
  if (step) moveTo(nearest(row + step[0], column + step[1], ...step));
  else if (event.key === "Home") moveTo(nearest(row, 0, 0, 1));
  else if (event.key === "End") moveTo(nearest(row, data.hooks.length - 1, 0, -1));
  else return;
  event.preventDefault();
});

at("grid").addEventListener("focusin", event => {
  const row = links.findIndex(inRow => inRow.includes(event.target));
  if (row < 0) return;
  links[current[0]][current[1]].tabIndex = -1;
  current = [row, links[row].indexOf(event.target)];
  event.target.tabIndex = 0;
});

function table(headings, rows) {
  const element = make("table", undefined, {className: "list"}), head = make("tr");
  head.append(...headings.map(text => make("th", text, {scope: "col"})));
  element.append(head);
  for (const cells of rows) {
    const row = make("tr");
    for (const content of cells) {
      const cell = make("td");
      cell.append(content);
      row.append(cell);
    }
    element.append(row);
  }
  return element;
}

function pairs(entries) {
  const list = make("dl");
  for (const [name, content] of entries) {
    const value = make("dd");
    value.append(content);
    list.append(make("dt", name), value);
  }
  return list;
}

function openCell(s, f, h) {
  const subject = data.subjects[s], family = data.families[f], hook = data.hooks[h];
  if (subject === undefined || family === undefined || hook === undefined) return false;
  const byDtype = cellOf(subject, family, hook), view = at("cell"), rest = [];
  data.details.forEach((detail, i) => {
    if (detail.subject !== subject || detail.family !== family || (detail.hook ?? "") !== hook) return;
    rest.push([make("a", detail.check.replaceAll("_", " "), {href: `#v/${i}`}), `${detail.case} ${detail.scenario ?? ""}`, detail.dtype, outcomeMark(detail.outcome), detail.reason ?? ""]);
  });
  view.replaceChildren(
    make("p", subject, {className: "over"}), title(`${family}, ${named(hook)}`),
    table(["dtype", "verdicts"], Object.keys(byDtype).map(dtype => [dtype, inWords(byDtype[dtype])])));
  const others = Object.values(tallied(byDtype, data.dtypes)).reduce((a, b) => a + b, 0) - (tallied(byDtype, data.dtypes).pass ?? 0);
  if (others) view.append(make("h3", "What is no pass"), table(["check", "case", "dtype", "verdict", "reason"], rest));
  if (others > rest.length) view.append(make("p", `${others - rest.length} more are in the results file.`, {className: "help"}));
  view.append(back());
  return true;
}

function title(text) {
  return make("h2", text, {tabIndex: -1});
}

function back() {
  const line = make("p");
  line.append(make("a", "All families", {href: "#"}));
  return line;
}

function openVerdict(i) {
  const detail = data.details[i], view = at("verdict");
  if (!detail) return false;
  const [text, formula] = (Object.hasOwn(data.clauses, detail.clause) && data.clauses[detail.clause]) || ["", ""];
  view.replaceChildren(make("p", detail.subject, {className: "over"}), title(detail.check.replaceAll("_", " ")), outcomeMark(detail.outcome), make("p", detail.reason ?? ""));
  view.append(pairs([["hook point", named(detail.hook)], ["family", detail.family], ["case", detail.case], ["scenario", detail.scenario ?? ""], ["dtype", detail.dtype], ["device", detail.device]]));
  view.append(make("h3", "Clause " + detail.clause), make("p", text));
  if (formula) view.append(make("pre", formula));
  view.append(...where(detail), ...reproduction(detail), neighbours(Number(i)), back());
  return true;
}

function where(detail) {
  const parts = [];
  if (detail.divergent) parts.push(make("h3", "First divergent stage"), stages(detail.divergent));
  if (detail.error !== undefined) {
    const index = detail.worst ? "[" + detail.worst.join(", ") + "]" : "not recorded";
    parts.push(make("h3", "Worst element"), pairs([["index", index], ["error", detail.error], ["bound", detail.bound ?? "none"]]));
  }
  if (detail.heat) parts.push(heat(detail.heat));
  return parts;
}

function stages(divergent) {
  const list = make("ol", undefined, {id: "stages"}), order = data.hooks.filter(hook => hook), first = order.indexOf(divergent);
  if (first < 0) return make("p", divergent);
  order.forEach((hook, i) => {
    const item = make("li", hook, {title: data.stages[hook] ?? "", className: i < first ? "before" : i === first ? "first" : ""});
    if (i === first) item.setAttribute("aria-current", "step");
    list.append(item);
  });
  return list;
}

const ratio = byte => byte === 0 ? 0 : 2 ** ((byte - 128) / 8);

function heat(map) {
  const bytes = Uint8Array.from(atob(map.cells), character => character.charCodeAt(0)), figure = make("figure"), canvas = make("canvas", undefined, {id: "heat"});
  const size = Math.max(6, Math.min(28, Math.floor(560 / map.columns)));
  Object.assign(canvas, {width: map.columns, height: map.rows});
  Object.assign(canvas.style, {width: map.columns * size + "px", height: map.rows * size + "px"});
  const image = new ImageData(map.columns, map.rows);
  bytes.forEach((byte, i) => image.data.set(shade(byte), 4 * i));
  canvas.getContext("2d").putImageData(image, 0, 0);
  const broken = bytes.filter(byte => byte > 128).length, most = Math.max(...bytes);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `Error over bound: ${broken} of ${bytes.length} cells break it, the worst by a factor of ${most === 255 ? "over 60000" : ratio(most).toPrecision(2)}`);
  const caption = `Error over bound, the worst of the batch. Rows: ${map.axes[0]} (${map.sizes[0]}); columns: ${map.axes[1]} (${map.sizes[1]}). Blue keeps the bound, red breaks it; the darker the red, the more. ${canvas.getAttribute("aria-label")}.`;
  figure.append(canvas, make("figcaption", caption));
  return figure;
}

function shade(byte) {
  if (byte <= 128) {
    const much = Math.max(0, (byte - 64) / 64);
    return [235 - 120 * much, 240 - 80 * much, 245 - 25 * much, 255];
  }
  const much = Math.min(1, (byte - 128) / 96);
  return [250 - 110 * much, 190 - 175 * much, 165 - 140 * much, 255];
}

const quoted = text => "'" + String(text).replaceAll("'", "'\\''") + "'";
const literal = value => value === undefined || value === null ? "None" : JSON.stringify(value);

// what `ropebridge check --only` and `pytest -k` read: judging/ids.py
function idOf(detail) {
  const called = detail.scenario === data.plain ? "" : detail.scenario;
  return `test_${detail.check}[${[detail.hook, detail.case, called, detail.dtype, detail.device].filter(Boolean).join("-")}]`;
}

function reproduction(detail) {
  const path = Object.hasOwn(data.paths, detail.subject) ? data.paths[detail.subject] : "package.module:Factory";
  if (!detail.scenario) return [];
  const command = `ropebridge check ${quoted(path)} \\\n  --only ${quoted(idOf(detail))}`;
  const script = ["from ropebridge_conformance.judging.bench import Bench", "from ropebridge_conformance.judging.ids import read_id",
    "from ropebridge_conformance.judging.judge import judge, question_of", "from ropebridge_conformance.subjects.loading import load_subject", "",
    `question = question_of(read_id(${literal(idOf(detail))}))`,
    `verdict = judge(Bench(load_subject(${literal(path)})), question)`, "print(verdict.outcome, verdict.divergent, verdict.reason)", ""].join("\n");
  return [make("h3", "To see it again"), copied(command, "command"), copied(script, "script")];
}

function copied(text, id) {
  const box = make("div"), block = make("pre", text, {id, tabIndex: 0}), button = make("button", "Copy " + id, {type: "button"});
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(block);
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
  });
  box.append(block, button);
  return box;
}

function neighbours(i) {
  const line = make("p"), detail = data.details[i];
  const cell = [data.subjects.indexOf(detail.subject), data.families.indexOf(detail.family), data.hooks.indexOf(detail.hook ?? "")];
  line.append(make("a", "Others of this cell", {href: "#cell/" + cell.join("/")}));
  return line;
}

function route() {
  const [kind, ...words] = location.hash.slice(1).split("/"), numbers = words.map(Number);
  const opened = kind === "cell" ? openCell(...numbers) && "cell" : kind === "v" ? openVerdict(...numbers) && "verdict" : false;
  for (const id of ["matrix", "cell", "verdict"]) at(id).hidden = id !== (opened || "matrix");
  if (opened) at(opened).querySelector("h2").focus();
  else if (links.length && leaving) links[current[0]][current[1]].focus();
  leaving = Boolean(opened);
}
let leaving = false;

function fill(id, values, all) {
  if (all) at(id).append(new Option(all, ""));
  at(id).append(...values.map(value => new Option(value || "-", value)));
  at(id).addEventListener("input", () => { state[id] = at(id).value; drawGrid(); });
}

function standing() {
  const total = {};
  let sum = 0;
  for (const [, , , , outcome, count] of data.counts) {
    total[outcome] = (total[outcome] ?? 0) + count;
    sum += count;
  }
  const cut = data.expected !== null && data.expected !== sum ? ` The run was cut short: ${data.expected} were expected.` : "";
  at("standing").textContent = `${sum} verdicts: ${inWords(total)}.${cut}`;
  at("legend").append(...data.outcomes.map(outcome => {
    const item = make("li");
    item.append(outcomeMark(outcome), make("span", String(total[outcome] ?? 0), {className: "quiet"}));
    return item;
  }));
}

addEventListener("keydown", event => { if (event.key === "Escape" && location.hash.length > 1) location.hash = ""; });
addEventListener("hashchange", route);
at("filters").addEventListener("submit", event => event.preventDefault());
fill("subject", data.subjects);
fill("dtype", data.dtypes, "all");
fill("outcome", data.outcomes, "any");
at("family").addEventListener("input", () => { state.family = at("family").value; drawGrid(); });
at("causes").hidden = data.causes.length === 0;
at("causes").open = data.causes.length > 0;
at("cause-list").append(...data.causes.map(words => make("li", words)));
at("provenance").replaceWith(pairs(Object.entries(data.provenance)));
standing();
drawGrid();
route();
