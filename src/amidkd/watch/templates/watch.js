/* Takes each changed part of the page from the server, and keeps what the reader did to it: scrolling, sorting, filter. */
(() => {
  "use strict";
  let seen = version;
  let source = null;
  const link = document.querySelector(".link");

  function stateOf(part) {
    const heading = part.querySelector("[aria-sort]");
    return {
      open: [...part.querySelectorAll("details")].map((item) => item.open),
      scrolled: [...part.querySelectorAll(".scroll")].map((item) => item.scrollLeft),
      words: part.querySelector("input[type=search]")?.value ?? "",
      typing: document.activeElement?.matches("input[type=search]") && part.contains(document.activeElement),
      column: heading ? heading.cellIndex : null,
      turns: heading?.getAttribute("aria-sort") === "descending" ? 2 : 1,
    };
  }

  function restore(part, state) {
    part.querySelectorAll("details").forEach((item, place) => { item.open = state.open[place] ?? false; });
    if (state.column !== null) {
      const button = part.querySelectorAll("thead th")[state.column]?.querySelector("button");
      for (let turn = 0; turn < state.turns; turn += 1) button?.click();
    }
    const field = part.querySelector("input[type=search]");
    if (field && state.words) {
      field.value = state.words;
      field.dispatchEvent(new Event("input"));
    }
    if (field && state.typing) field.focus();
    part.querySelectorAll(".scroll").forEach((item, place) => { item.scrollLeft = state.scrolled[place] ?? 0; });
  }

  function take(event) {
    const { title, parts } = JSON.parse(event.data);
    document.title = title;
    for (const [name, html] of Object.entries(parts)) {
      const part = document.getElementById(`part-${name}`);
      const state = stateOf(part);
      part.innerHTML = html;
      amidkd.enhance(part);
      restore(part, state);
    }
    seen = event.lastEventId;
  }

  function connect() {
    if (source) return;
    source = new EventSource(`/events?since=${encodeURIComponent(seen)}`);
    source.onopen = () => { link.hidden = true; };
    source.onmessage = take;
    source.onerror = () => {
      link.hidden = false;
      if (source.readyState === EventSource.CLOSED) { source = null; setTimeout(connect, 2000); }
    };
  }

  /* A browser keeps few connections to one address: a tab that nobody sees gives its own back. */
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) connect();
    else if (source) { source.close(); source = null; }
  });
  connect();
})();
