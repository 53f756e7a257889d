// Sort a table by a click on a column's head: down, up, and back to the groups that it came in.
for (const table of document.querySelectorAll("table.sortable")) {
  const home = [...table.tBodies].map((body) => [body, [...body.rows]]);
  const heads = [...table.querySelectorAll("thead th")];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      const order = { descending: "ascending", ascending: null }[was];
      const next = was === null ? "descending" : order;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      home.forEach(([body, rows]) => body.append(...rows));
      table.classList.toggle("sorted", next !== null);
      if (next === null) return;
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const rows = home.flatMap(([, group]) => group.filter((row) => !row.classList.contains("group")));
      rows.sort((a, b) => {
        const [one, other] = [key(a, column), key(b, column)];
        if (one === "" || other === "") return (one === "") - (other === ""); // empty cells last, both ways
        return sign * compare(one, other);
      });
      home[0][0].append(...rows);
    });
  });
}
