"use strict";
// Filters, sorts, searches and pages the samples of the page. What data says is set as
// text only (textContent), never as HTML. Without this script, or in a browser that cannot
// decompress, the table of some samples a reason stays.
(() => {
  const at = (id) => document.getElementById(id);
  const browse = at("browse");
  if (!browse || typeof DecompressionStream === "undefined") return;

  const MARKS = ["wrong", "right", "not graded"];
  let data, images, texts, matching = [];

  async function unpacked(id) {
    const text = atob(at(id).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);  // from() is slow
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  // ------------------------------------------------------------ which samples, in which order

  const number = (text) => (text.trim() === "" ? null : Number(text));

  function ranges() {
    const found = [];
    for (const input of browse.querySelectorAll("input[data-score]")) {
      const limit = number(input.value);
      if (limit === null || Number.isNaN(limit)) continue;
      found.push([data.scores[input.dataset.score], input.dataset.end === "1", limit]);
    }
    return found;
  }

  const kept = (k) => k >= 0 && data.names[k].startsWith("kept_");

  const OTHER = {
    both: (i) => kept(data.reason[i]) && kept(data.there[i]),
    here: (i) => kept(data.reason[i]) && !kept(data.there[i]),
    there: (i) => !kept(data.reason[i]) && kept(data.there[i]),
    moved: (i) => data.there[i] >= 0 && data.there[i] !== data.reason[i],
  };

  function searched() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    if (words.length && !texts)
      texts = data.row.map((_, i) =>
        [data.id[i], data.question[i], data.answer[i], data.sources[data.source[i]] ?? "",
          data.message[i], ...data.said[i].map((s) => s[3])].join("\n").toLowerCase());
    return words;
  }

  function find() {
    const words = searched();
    const reasons = new Set([...browse.querySelectorAll("[name=reason]:checked")]
      .map((box) => Number(box.value)));
    const source = number(at("source")?.value ?? "");
    const other = OTHER[at("other")?.value];
    const limits = ranges();
    const found = [];
    for (let i = 0; i < data.row.length; i++) {
      if (reasons.size && !reasons.has(data.reason[i])) continue;
      if (source !== null && data.source[i] !== source) continue;
      if (other && !other(i)) continue;
      if (!limits.every(([column, most, limit]) =>
        column[i] !== null && (most ? column[i] <= limit : column[i] >= limit))) continue;
      if (!words.every((word) => texts[i].includes(word))) continue;
      found.push(i);
    }
    const column = data.scores[at("sort").value];
    const sign = at("down").value === "1" ? -1 : 1;
    at("down").disabled = !column;
    if (column)  // what is unknown comes last either way; equal ones stay in data order
      found.sort((a, b) => (column[a] === null) - (column[b] === null)
        || sign * (column[a] - column[b]) || a - b);
    matching = found;
  }

  // ------------------------------------------------------------ one sample

  function element(name, text, parent, className) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined && text !== null) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  // text out of the data keeps its direction to itself
  const said = (text, parent, name = "span", className = "") =>
    element("bdi", text, element(name, null, parent, className));

  function picture(i, parent) {
    const row = data.row[i];
    const shown = document.querySelector(`#picked tr[data-row="${row}"] img`)?.src;
    const source = shown ?? images[row] ?? "";
    if (!/^data:image\/webp;base64,[A-Za-z0-9+/=]+$/.test(source)) return;
    const image = element("img", null, parent);
    image.src = source;
    image.alt = `image of sample ${data.id[i]}`;
  }

  function completions(i, parent) {
    if (!data.said[i].length) return;
    const details = element("details", null, parent);
    element("summary", "What the model wrote", details);
    const arms = element("div", null, details, "arms");
    for (const [arm, title] of [[1, "With the image"], [0, "Without it"]]) {
      const some = data.said[i].filter((s) => s[0] === arm);
      if (!some.length) continue;
      const column = element("div", null, arms);
      element("h4", title, column);
      for (const [, mark, cut, text] of some) {
        element("div", MARKS[mark] + (cut ? ", cut at max_new_tokens" : ""), column, "soft small");
        said(text || "(empty)", column, "blockquote");
      }
    }
  }

  function token(i, parent) {
    if (!data.token[i]) return;
    const line = element("div", "most attended token: ", parent, "soft small");
    if (!data.before[i] && !data.after[i]) {
      said(data.token[i], line, "code");
      return;
    }
    const quote = element("q", null, line, "around");
    element("bdi", data.before[i], quote);
    said(data.token[i], quote, "mark");
    element("bdi", data.after[i], quote);
  }

  const name = (k) => (k < 0 ? "unknown" : data.names[k]);

  function sample(i) {
    const item = element("li");
    item.tabIndex = -1;
    const left = element("div", null, item, "left");
    picture(i, left);
    said(data.id[i], left, "div", "id");
    if (data.source[i] >= 0) said(data.sources[data.source[i]], left, "div", "id");
    const middle = element("div", null, item, "question");
    if (data.question[i]) said(data.question[i], middle, "p");
    if (data.answer[i]) {
      const line = element("div", null, middle);
      element("span", "Answer ", line, "soft");
      said(data.answer[i], line, "b");
    }
    token(i, middle);
    completions(i, middle);
    const right = element("div", null, item, "why");
    said(name(data.reason[i]), right, "div", `tag ${name(data.reason[i]).split("_")[0]}`);
    if (data.there.length && data.there[i] !== data.reason[i])
      said(`there: ${name(data.there[i])}`, right, "div", "soft small");
    const list = element("dl", null, right);
    for (const [label, column] of Object.entries(data.scores)) {
      if (column[i] === null) continue;
      element("dt", label, list);
      element("dd", String(Number(column[i].toPrecision(3))).replace("-", "\u2212"), list);
    }
    if (data.message[i]) said(data.message[i], right, "div", "small");
    return item;
  }

  // ------------------------------------------------------------ pages

  const size = () => Number(at("size").value);
  const last = () => Math.max(1, Math.ceil(matching.length / size()));

  function show(page, focus) {
    page = Math.min(Math.max(1, Math.trunc(page) || 1), last());
    at("page").value = page;
    at("page").max = last();
    at("pages").textContent = `of ${last().toLocaleString("en")}`;
    at("count").textContent =
      `${matching.length.toLocaleString("en")} of ${data.row.length.toLocaleString("en")} samples`;
    for (const id of ["first", "before"]) at(id).disabled = page === 1;
    for (const id of ["next", "last"]) at(id).disabled = page === last();
    const start = (page - 1) * size();
    at("list").replaceChildren(...matching.slice(start, start + size()).map(sample));
    at("list").start = start + 1;
    remember(page);
    if (focus) at("list").firstElementChild?.focus();
  }

  const turn = (by, focus) => show(Number(at("page").value) + by, focus);

  function search() {
    find();
    show(1);
  }

  // ------------------------------------------------------------ the address keeps the filters

  const KEPT = ["search", "sort", "down", "source", "other", "size"];

  function remember(page) {
    const state = new URLSearchParams();
    for (const id of KEPT) {
      const control = at(id);
      if (control && control.value !== START[id]) state.set(id, control.value);
    }
    for (const box of browse.querySelectorAll("[name=reason]:checked"))
      state.append("reason", box.value);
    for (const input of browse.querySelectorAll("input[data-score]"))
      if (input.value) state.append("range", [input.dataset.end, input.value, input.dataset.score]);
    if (page > 1) state.set("page", page);
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    for (const id of KEPT) if (at(id) && state.has(id)) at(id).value = state.get(id);
    for (const box of browse.querySelectorAll("[name=reason]"))
      box.checked = state.getAll("reason").includes(box.value);
    const given = state.getAll("range").map((text) => text.split(","));
    for (const input of browse.querySelectorAll("input[data-score]"))
      input.value = given.find(([end, , ...label]) =>
        end === input.dataset.end && label.join(",") === input.dataset.score)?.[1] ?? "";
    browse.querySelector(".ranges").open = given.length > 0;
    return Number(state.get("page") ?? 1);
  }

  let START = {};

  function listen() {
    let waiting;
    browse.addEventListener("input", (event) => {
      if (event.target.id === "page") return;
      clearTimeout(waiting);  // typing: once a pause is made
      waiting = setTimeout(search, event.target.matches("[type=search],[type=number]") ? 150 : 0);
    });
    at("page").addEventListener("change", () => show(Number(at("page").value)));
    at("first").addEventListener("click", () => show(1));
    at("before").addEventListener("click", () => turn(-1));
    at("next").addEventListener("click", () => turn(1));
    at("last").addEventListener("click", () => show(last()));
    at("reset").addEventListener("click", () => {
      history.replaceState(null, "", location.pathname + location.search);
      for (const id of KEPT) if (at(id)) at(id).value = START[id];
      recall();
      search();
    });
    at("list").addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const item = event.target.closest("li");
      const move = {
        j: () => (item ? item.nextElementSibling : at("list").firstElementChild)?.focus(),
        k: () => item?.previousElementSibling?.focus(),
        ArrowRight: () => turn(1, true),
        ArrowLeft: () => turn(-1, true),
        Enter: () => {
          const details = event.target === item ? item?.querySelector("details") : null;
          if (!details) return false;
          details.open = !details.open;
        },
      }[event.key];
      if (move && move() !== false) event.preventDefault();
    });
  }

  Promise.all([unpacked("data"), unpacked("images")]).then(([found, pictures]) => {
    [data, images] = [found, pictures];
    START = Object.fromEntries(KEPT.filter((id) => at(id)).map((id) => [id, at(id).value]));
    const page = recall();
    listen();
    find();
    browse.hidden = false;
    at("picked").hidden = true;
    show(page);
    document.documentElement.dataset.ready = Math.round(performance.now());
  }, () => {});  // damaged: the table stays
})();
