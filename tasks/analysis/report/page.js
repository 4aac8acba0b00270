"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const value = (row, column) => {
    const given = row.cells[column].dataset.value;
    return given === undefined ? row.cells[column].textContent.trim() : given === "" ? null : Number(given);
  };
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, column), value(b, column)];
      // What has no figure stays at the end.
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" ? x - y : x.localeCompare(y, undefined, { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}

const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

// The rows of a comparison are told apart by their places in it.
function show(section, place) {
  section.classList.toggle("picked", place !== null);
  for (const mark of section.querySelectorAll("[data-row]")) {
    mark.classList.toggle("on", mark.dataset.row === place);
  }
}

for (const section of document.querySelectorAll("section.comparison")) {
  const pressed = () => section.querySelector('.legend [aria-pressed="true"]')?.dataset.row ?? null;
  section.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("[data-row]");
    show(section, mark ? mark.dataset.row : pressed());
    tip.hidden = !mark?.dataset.tip;
    if (tip.hidden) return;
    tip.textContent = mark.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - width - 4))}px`;
    tip.style.top = `${event.clientY > height + 24 ? event.clientY - height - 12 : event.clientY + 18}px`;
  });
  section.addEventListener("pointerleave", () => {
    tip.hidden = true;
    show(section, pressed());
  });
  for (const button of section.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of section.querySelectorAll(".legend button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      show(section, pressed());
    });
  }
}
