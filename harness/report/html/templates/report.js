"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].map((row) => [value(row), row]);
      rows.sort(([a], [b]) => {
        const [x, y] = [Number(a), Number(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return (Number.isNaN(x) - Number.isNaN(y)) || a.localeCompare(b);
        return x - y;
      });
      if (!up) rows.reverse();
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}
// On paper nothing can be opened.
const closed = [];
addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) { closed.push(each); each.open = true; }
});
addEventListener("afterprint", () => { for (const each of closed.splice(0)) each.open = false; });
// A link into a closed part opens it.
const show = () => { const at = location.hash && document.getElementById(location.hash.slice(1)); if (at && at.tagName === "DETAILS") { at.open = true; at.scrollIntoView(); } };
addEventListener("hashchange", show);
show();
