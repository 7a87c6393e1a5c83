"use strict";
// Sorting and filtering of the matches, and sorting of tables; without this script everything is shown, unsorted.
(function () {
  const gallery = document.getElementById("gallery");
  const cards = gallery ? Array.from(gallery.querySelectorAll(".card")) : [];
  const order = document.getElementById("order");
  const words = document.getElementById("words");
  const status = document.getElementById("status");
  const only = document.getElementById("only");
  const count = document.getElementById("shown-count");

  function update() {
    const by = order.value;
    const wanted = words.value.trim().toLowerCase();
    const text = by === "id" || by === "training";
    const sign = by === "score" || by === "copies" ? -1 : 1;
    cards.sort(function (a, b) {
      const x = a.dataset[by], y = b.dataset[by];
      return text ? x.localeCompare(y) : sign * (Number(x) - Number(y));
    });
    let visible = 0;
    for (const card of cards) {
      const fits = (!wanted || card.dataset.words.toLowerCase().includes(wanted))
        && (!status.value || card.dataset.status === status.value)
        && (!only.checked || card.dataset.discovered === "yes");
      card.hidden = !fits;
      visible += fits;
      gallery.appendChild(card);
    }
    count.textContent = visible === cards.length ? String(visible) : visible + " of " + cards.length;
    document.getElementById("nothing").hidden = visible > 0;
  }

  if (gallery) {
    for (const control of [order, words, status, only]) control.addEventListener("input", update);
    document.getElementById("controls").hidden = false;
    document.getElementById("clear").addEventListener("click", function () {
      words.value = status.value = "";
      only.checked = false;
      update();
    });
    update();
  }

  for (const head of document.querySelectorAll("table.sortable th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      const body = head.closest("table").tBodies[0];
      const column = head.cellIndex;
      const up = head.getAttribute("aria-sort") === "descending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = Array.from(body.rows).sort(function (a, b) {
        const x = value(a), y = value(b);
        const found = isNaN(x) || isNaN(y) ? x.localeCompare(y) : Number(x) - Number(y);
        return up ? found : -found;
      });
      body.append(...rows);
    });
  }
  document.documentElement.dataset.ready = "yes";
})();
