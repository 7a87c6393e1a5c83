"use strict";
// Lists the ids of the ticked images; without this script the pairs are shown, and their ids can be copied.
(function () {
  const list = document.getElementById("ids");
  const boxes = Array.from(document.querySelectorAll("#gallery input[type=checkbox]"));

  function update() {
    const ticked = boxes.filter(function (box) { return box.checked; });
    list.value = ticked.map(function (box) { return box.value + "\n"; }).join("");
    document.getElementById("ticked-count").textContent = String(ticked.length);
  }

  document.getElementById("ticked").hidden = false;
  for (const box of boxes) {
    box.addEventListener("change", update);
  }
  update();
})();
