/*
The tokens of a row, drawn when it opens: each coloured by KL(teacher‖student) at its place, with what teacher, assistant and
student find likeliest there on hover, focus or tap.
*/
(() => {
  "use strict";
  /* Upper ends of the steps of colour, in nats. */
  const steps = [0.01, 0.03, 0.1, 0.3, 1, 3];
  const stepOf = (kl) => (kl === null ? steps.length : steps.filter((end) => kl >= end).length);
  const sides = ["teacher", "assistant", "student"];

  function element(name, className, ...content) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...content);
    return made;
  }
  const visible = (text) => (text ? text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") : "(empty)");
  function chance(value) {
    if (value === null) return "unknown";
    const share = 100 * value;
    return `${value >= 1e-3 || value === 0 ? share.toFixed(1) : share.toPrecision(1)} %`;
  }

  function listOf(side, top, token) {
    const table = element("table", "top");
    table.append(element("caption", "", side));
    for (let place = 0; place < top.length; place += 2) {
      const share = element("td", "number", chance(top[place + 1]));
      share.style.setProperty("--part", `${100 * (top[place + 1] ?? 0)}%`);
      const row = element("tr", top[place] === token ? "here" : "", element("th", "", visible(top[place])), share);
      table.append(row);
    }
    return table;
  }
  function tipOf(data, place) {
    const [text, kl, p, q, ...tops] = data.tokens[place];
    const distance = kl === null ? "not finite" : `${kl.toPrecision(3)} nats`;
    const lists = element("div", "tops");
    sides.forEach((side, number) => { if (tops[number].length) lists.append(listOf(side, tops[number], text)); });
    return element(
      "div", "token-tip",
      element("div", "", element("strong", "", visible(text)), ` token ${place + 1} of ${data.tokens.length}, KL ${distance}`),
      element("div", "", `probability: teacher ${chance(p)}, student ${chance(q)}`),
      lists,
    );
  }

  function draw(row) {
    const stream = row.querySelector(".stream");
    if (stream.childElementCount) return;
    const data = JSON.parse(document.getElementById(stream.dataset.tokens).textContent);
    const made = document.createDocumentFragment();
    data.tokens.forEach(([text, kl], place) => {
      const span = element("span", `token k${stepOf(kl)}`, text.replaceAll("\n", "⏎") || "∅");
      span.dataset.place = place;
      span.tabIndex = -1;
      made.append(span);
      if (text.includes("\n")) made.append(document.createElement("br"));
    });
    stream.append(made);
    stream.hidden = false;
    row.querySelector(".plain").hidden = true;
    amidkd.tips(stream, ".token", (span) => tipOf(data, Number(span.dataset.place)));
  }
  for (const row of document.querySelectorAll("details.token-row")) {
    row.addEventListener("toggle", () => { if (row.open) draw(row); });
    if (row.open) draw(row);
  }
})();
