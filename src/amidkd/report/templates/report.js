/*
What a page can do beyond being read. Everything is there without this file; it adds:

  button.theme               switches dark and light
  table[data-sort]           a click on a heading sorts; th[data-sort=none] does not. A cell sorts by its data-value where
                             it has one, else by its number or its words; what is missing comes last
  [data-filter="Label"]      a field above a table, or a list of any elements, that shows only what holds all its words
  [data-few="12"]            a list of which only so many are shown until a button below it is pressed, or a filter asks for more
  select[data-sort-for=id]   sorts the children of an element: options "kl descending" read data-kl of each child
  svg[data-readout]          reads off the curves under the pointer, or along them with the arrows
  [data-tip], svg <title>    text on hover, focus or tap; arrows move between the tips of one picture

amidkd.enhance(element) does this for what came into the page later; amidkd.tips(container, selector, contentOf) makes tips
of one's own.
*/
const amidkd = (() => {
  "use strict";
  const root = document.documentElement;

  /* Theme */
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const themeButton = document.querySelector("button.theme");
  function nameTheme() {
    themeButton.querySelector("span").textContent = isDark() ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  }
  function switchTheme() {
    const wanted = isDark() ? "light" : "dark";
    /* What the system says anyway is not kept, so that the page follows it again. */
    const same = (wanted === "dark") === dark.matches;
    if (same) delete root.dataset.theme;
    else root.dataset.theme = wanted;
    try {
      if (same) localStorage.removeItem("amidkd-theme");
      else localStorage.setItem("amidkd-theme", wanted);
    } catch { /* Not kept, then. */ }
    nameTheme();
  }
  if (themeButton) {
    themeButton.hidden = false;
    themeButton.addEventListener("click", switchTheme);
    dark.addEventListener("change", nameTheme);
    nameTheme();
  }

  /* Sorting */
  const words = new Intl.Collator("en", { numeric: true });
  function wordsOf(cell) {
    if (!cell) return "";
    if (cell.dataset.value !== undefined) return cell.dataset.value.trim();
    const parts = [...cell.childNodes].filter((node) => !node.classList?.contains("error"));
    return parts.map((node) => node.textContent).join("").trim();
  }
  function numberOf(text) {
    const plain = text.replace(/[−–]/g, "-").replace(/,(?=\d{3})/g, "").replace(/\s*%$/, "").replace("∞", "Infinity");
    return plain === "" ? NaN : Number(plain);
  }
  const isMissing = (text) => text === "" || text === "–" || text === "unknown" || text === "NaN";
  function sorted(items, textOf, descending) {
    const keyed = items.map((item) => [item, textOf(item)]);
    const there = keyed.filter(([, text]) => !isMissing(text));
    const numeric = there.every(([, text]) => !Number.isNaN(numberOf(text)));
    const compare = numeric ? (a, b) => numberOf(a[1]) - numberOf(b[1]) : (a, b) => words.compare(a[1], b[1]);
    there.sort((a, b) => (descending ? compare(b, a) : compare(a, b)) || 0);
    return [...there, ...keyed.filter(([, text]) => isMissing(text))].map(([item]) => item);
  }
  function sortTable(table, heading, column) {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    for (const body of table.tBodies) {
      body.append(...sorted([...body.rows], (row) => wordsOf(row.cells[column]), descending));
    }
  }
  function makeSortable(table) {
    [...table.tHead.rows[0].cells].forEach((heading, column) => {
      if (heading.dataset.sort === "none" || !heading.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...[...heading.childNodes].filter((node) => !node.classList?.contains("error")));
      heading.prepend(button);
      button.addEventListener("click", () => sortTable(table, heading, column));
    });
  }
  function makeSorter(select) {
    const list = document.getElementById(select.dataset.sortFor);
    select.closest("[hidden]")?.removeAttribute("hidden");
    const given = [...list.children];
    select.addEventListener("change", () => {
      const [key, way] = select.value.split(" ");
      list.append(...(key ? sorted(given, (item) => item.dataset[key] ?? "", way === "descending") : given));
      list.dispatchEvent(new Event("arranged"));
    });
  }

  /* A long list, shortened */
  function shorten(list) {
    const few = Number(list.dataset.few);
    if (list.children.length <= few) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "button";
    button.textContent = `Show all ${list.children.length}`;
    list.after(button);
    const apply = () => {
      const all = button.hidden || list.dataset.filtered === "yes";
      [...list.children].forEach((item, place) => item.classList.toggle("later", !all && place >= few));
    };
    list.addEventListener("arranged", apply);
    button.addEventListener("click", () => {
      const next = list.children[few];
      button.hidden = true;
      apply();
      next.tabIndex = -1;
      next.focus({ preventScroll: true });
    });
    apply();
  }

  /* Filtering */
  function makeFilter(target) {
    const items = () => (target.tBodies ? [...target.tBodies].flatMap((body) => [...body.rows]) : [...target.children]);
    const label = document.createElement("label");
    label.className = "filter";
    const field = document.createElement("input");
    field.type = "search";
    field.autocomplete = "off";
    const found = document.createElement("output");
    label.append(target.dataset.filter || "Filter", field, found);
    const place = target.parentElement.classList.contains("scroll") ? target.parentElement : target;
    const bar = place.previousElementSibling?.classList.contains("bar") ? place.previousElementSibling : null;
    if (bar) bar.prepend(label);
    else place.before(label);
    if (bar) bar.hidden = false;
    const apply = () => {
      const wanted = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      const all = items();
      for (const item of all) {
        const text = item.textContent.toLowerCase();
        item.hidden = !wanted.every((word) => text.includes(word));
      }
      const shown = all.filter((item) => !item.hidden).length;
      found.textContent = wanted.length ? `${shown} of ${all.length}` : "";
      target.dataset.filtered = wanted.length ? "yes" : "no";
      target.dispatchEvent(new Event("arranged"));
    };
    field.addEventListener("input", apply);
  }

  /* Tips */
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.id = "tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  let shownFor = null;
  function hideTip() {
    shownFor?.removeAttribute("aria-describedby");
    shownFor?.classList.remove("told");
    shownFor = null;
    tip.hidden = true;
  }
  function showTip(item, content) {
    if (shownFor === item) return;
    hideTip();
    shownFor = item;
    tip.replaceChildren(content);
    tip.hidden = false;
    item.classList.add("told");
    item.setAttribute("aria-describedby", "tip");
    placeTip();
  }
  function placeTip() {
    const at = shownFor.getBoundingClientRect();
    const left = Math.min(Math.max(8, at.left + at.width / 2 - tip.offsetWidth / 2), root.clientWidth - tip.offsetWidth - 8);
    const below = at.bottom + 8;
    const above = at.top - tip.offsetHeight - 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below + tip.offsetHeight > innerHeight && above > 0 ? above : below}px`;
  }
  function nextOf(item, key, items) {
    const place = items.indexOf(item);
    if (key === "ArrowRight") return items[place + 1];
    if (key === "ArrowLeft") return items[place - 1];
    if (key === "Home") return items[0];
    if (key === "End") return items.at(-1);
    /* Up and down: the nearest one in the next line. */
    const from = item.getBoundingClientRect();
    const down = key === "ArrowDown";
    let best = null;
    let least = [Infinity, Infinity];
    const order = down ? items.slice(place + 1) : items.slice(0, Math.max(0, place)).reverse();
    for (const other of order) {
      const to = other.getBoundingClientRect();
      const line = down ? to.top - from.top : from.top - to.top;
      if (line < 2) continue;
      if (line > least[0] + 2) { if (best) break; continue; }
      const gap = Math.abs(to.left + to.width / 2 - from.left - from.width / 2);
      if (gap < least[1]) { best = other; least = [line, gap]; }
    }
    return best;
  }
  function tips(container, selector, contentOf) {
    const itemAt = (event) => {
      const item = event.target.closest?.(selector);
      return item && container.contains(item) ? item : null;
    };
    const show = (event) => {
      const item = itemAt(event);
      if (item) showTip(item, contentOf(item));
    };
    let current = container.querySelector(selector);
    const choose = (item) => {
      current?.setAttribute("tabindex", "-1");
      current = item;
      item.setAttribute("tabindex", "0");
    };
    if (current) choose(current);
    container.addEventListener("pointerover", show);
    container.addEventListener("click", (event) => {
      const item = itemAt(event);
      if (!item) return;
      choose(item);
      item.focus({ preventScroll: true });
      showTip(item, contentOf(item));
    });
    container.addEventListener("focusin", (event) => {
      const item = itemAt(event);
      if (item) { choose(item); showTip(item, contentOf(item)); }
    });
    container.addEventListener("focusout", hideTip);
    container.addEventListener("pointerout", (event) => {
      if (event.pointerType === "mouse" && shownFor !== document.activeElement) hideTip();
    });
    container.addEventListener("keydown", (event) => {
      const item = itemAt(event);
      if (!item || !["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"].includes(event.key)) return;
      event.preventDefault();
      const next = nextOf(item, event.key, [...container.querySelectorAll(selector)]);
      if (next) { next.setAttribute("tabindex", "-1"); next.focus(); }
    });
  }
  const textTip = (item) => document.createTextNode(item.dataset.tip);
  function makeTips(picture) {
    for (const title of picture.querySelectorAll("title")) {
      const item = title.parentElement;
      if (item === picture) continue;
      item.dataset.tip = title.textContent;
      item.setAttribute("aria-label", title.textContent);
      item.setAttribute("role", "img");
      item.setAttribute("tabindex", "-1");
      title.remove();
    }
    if (!picture.querySelector("[data-tip]")) return;
    picture.setAttribute("role", "group");
    tips(picture, "[data-tip]", textTip);
  }
  /* Curves: the values at the step under the pointer, or at the one that the arrows are at. */
  function makeReadout(picture) {
    const { name, lines, span: [left, right, top, bottom], limits: [low, high] } = JSON.parse(picture.dataset.readout);
    const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    const nearest = (values, value) =>
      values.reduce((best, each, at) => (Math.abs(each - value) < Math.abs(values[best] - value) ? at : best), 0);
    const cursor = document.createElementNS(picture.namespaceURI, "line");
    cursor.classList.add("cursor");
    cursor.setAttribute("y1", top);
    cursor.setAttribute("y2", bottom);
    cursor.setAttribute("visibility", "hidden");
    picture.append(cursor);
    picture.setAttribute("tabindex", "0");
    let at = 0;
    function read() {
      const step = steps[at];
      const place = left + ((step - low) / (high - low)) * (right - left);
      cursor.setAttribute("x1", place);
      cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      const told = [`${name} ${step}`];
      for (const line of lines) {
        if (step < line.x[0] || step > line.x.at(-1)) continue;
        told.push(`${line.label}: ${String(line.y[nearest(line.x, step)]).replaceAll("-", "−")}`);
      }
      hideTip();
      showTip(cursor, document.createTextNode(told.join("\n")));
      picture.setAttribute("aria-describedby", "tip");
    }
    function stop() {
      hideTip();
      cursor.setAttribute("visibility", "hidden");
      picture.removeAttribute("aria-describedby");
    }
    const point = (event) => {
      const box = picture.getBoundingClientRect();
      const place = ((event.clientX - box.left) / box.width) * picture.viewBox.baseVal.width;
      if (place < left - 6 || place > right + 6) { stop(); return; }
      at = nearest(steps, low + ((place - left) / (right - left)) * (high - low));
      read();
    };
    picture.addEventListener("pointermove", point);
    picture.addEventListener("click", point);
    picture.addEventListener("pointerleave", stop);
    picture.addEventListener("focus", () => { if (picture.matches(":focus-visible")) read(); });
    picture.addEventListener("blur", stop);
    picture.addEventListener("keydown", (event) => {
      const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: steps.length - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      at = Math.min(Math.max(moves[event.key], 0), steps.length - 1);
      read();
    });
  }

  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
  document.addEventListener("pointerdown", (event) => { if (!shownFor?.contains(event.target)) hideTip(); });
  /* A tip goes with its item; where that leaves the pointer, the browser says so. */
  document.addEventListener("scroll", () => { if (shownFor) placeTip(); }, { passive: true, capture: true });

  function enhance(part) {
    /* What a tip belonged to may have been replaced. */
    if (shownFor && !shownFor.isConnected) hideTip();
    const all = (selector) => [...(part.matches?.(selector) ? [part] : []), ...part.querySelectorAll(selector)];
    all("table[data-sort]").forEach(makeSortable);
    all("[data-filter]").forEach(makeFilter);
    all("select[data-sort-for]").forEach(makeSorter);
    all("[data-few]").forEach(shorten);
    all("svg").forEach(makeTips);
    all("svg[data-readout]").forEach(makeReadout);
    for (const item of all("[data-tip]")) {
      if (item.closest("svg")) continue;
      item.setAttribute("tabindex", "0");
      tips(item.parentElement, "[data-tip]", textTip);
    }
  }
  enhance(document.body);
  return { enhance, tips, showTip, hideTip };
})();
