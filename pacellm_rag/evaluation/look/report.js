"use strict";
// Filters the list of samples. Without it the page shows all of them.
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const rows = [...document.querySelectorAll("table.samples tbody tr")].map((row) => ({
    row,
    words: row.textContent.toLowerCase(),
    is: new Set(row.dataset.is.split(" ")),
  }));
  const { words, task, kind, shown } = form.elements;
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const sample of rows) {
      const fits =
        (!task?.value || sample.row.dataset.task === task.value) &&
        (!kind.value || sample.is.has(kind.value)) &&
        wanted.every((word) => sample.words.includes(word));
      sample.row.hidden = !fits;
      count += fits;
    }
    const number = (n) => n.toLocaleString("en");
    shown.value = `${number(count)} of ${number(rows.length)} shown`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
})();
