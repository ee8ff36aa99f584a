"use strict";
(() => {
  // Sorts tables by the column whose header is pressed: words as words, numbers by the first number in the cell, cells
  // without one last.
  const number = (cell) => parseFloat(cell.textContent.replaceAll("\u2212", "-").replace(/^[\s<]+/, "").replace(/,(?=\d{3})/g, ""));
  const compare = (column, words, sign) => (a, b) => {
    const [x, y] = [a.cells[column], b.cells[column]];
    if (words) return sign * x.textContent.localeCompare(y.textContent, undefined, { numeric: true });
    const [p, q] = [number(x), number(y)];
    if (Number.isNaN(p) || Number.isNaN(q)) return Number.isNaN(p) - Number.isNaN(q);
    return sign * (p - q);
  };
  const sort = (header) => {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = header.closest("table").tBodies[0];
    const rows = [...body.rows].sort(compare(header.cellIndex, header.classList.contains("word"), up ? 1 : -1));
    body.append(...rows);
  };
  for (const header of document.querySelectorAll("table.sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header));
    header.append(button);
  }

  // Shows a figure as large as it is wanted, and puts it back.
  const dialog = document.createElement("dialog");
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "Close";
  close.addEventListener("click", () => dialog.close());
  dialog.append(close);
  document.body.append(dialog);
  for (const figure of document.querySelectorAll("figure")) {
    const holder = figure.querySelector("div");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.textContent = "Enlarge";
    const name = holder.querySelector("svg").getAttribute("aria-label").split(":")[0];
    button.setAttribute("aria-label", `Enlarge: ${name}`);
    button.addEventListener("click", () => {
      dialog.setAttribute("aria-label", name);
      dialog.append(holder.firstElementChild);
      dialog.showModal();
      dialog.addEventListener("close", () => holder.append(dialog.querySelector("svg")), { once: true });
    });
    figure.prepend(button);
  }

  // Opens whatever is folded around the place that a link leads to.
  const reveal = () => {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) return;
    for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    place.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
