// Sorts a table by the column whose heading is chosen, and says where a table is wider than the screen.

const collator = new Intl.Collator("en", { numeric: true });
const compare = (first, second) => {
  if (first.dataset.value === undefined) return collator.compare(first.textContent, second.textContent);
  return Number(first.dataset.value) - Number(second.dataset.value);
};
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].sort((first, second) => {
      const [left, right] = [first.cells[column], second.cells[column]];
      const empty = (left.dataset.value === "") - (right.dataset.value === "");  // no figure: last in both directions
      return empty || direction * compare(left, right);
    });
    body.append(...rows);
  }));
}

for (const box of document.querySelectorAll(".scroll")) {
  const hint = element("p", "Scroll sideways to see all of it →", "hint");
  box.before(hint);
  const check = () => {
    hint.hidden = box.scrollWidth <= box.clientWidth + 1;
    if (!hint.hidden) box.tabIndex = 0;  // so that the arrow keys scroll it
  };
  new ResizeObserver(check).observe(box);
  check();
}
