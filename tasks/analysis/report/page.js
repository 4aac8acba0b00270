"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const cellValue = (row, column) => {
    const { dataset, textContent } = row.cells[column];
    if (dataset.value === undefined) return textContent.trim();
    return dataset.value === "" ? null : Number(dataset.value);
  };
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of headers) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [cellValue(a, column), cellValue(b, column)];
      // Rows without a value stay at the end.
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return descending ? -order : order;
    });
    body.append(...rows);
  }));
}

// Marks of the same row have the same `data-row`.
function highlight(section, row) {
  section.classList.toggle("highlighting", row !== null);
  for (const mark of section.querySelectorAll("[data-row]")) {
    mark.classList.toggle("on", mark.dataset.row === row);
  }
}

for (const section of document.querySelectorAll("section.comparison")) {
  const pressedRow = () => section.querySelector('.legend [aria-pressed="true"]')?.dataset.row ?? null;
  section.addEventListener("pointermove", ({ target }) => {
    highlight(section, target.closest("[data-row]")?.dataset.row ?? pressedRow());
  });
  section.addEventListener("pointerleave", () => highlight(section, pressedRow()));
  for (const button of section.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") !== "true";
      for (const other of section.querySelectorAll(".legend button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(pressed));
      highlight(section, pressedRow());
    });
  }
}
