// Sort a table by a click on a column's head: down, up, and back to the groups that it came in.
// A cell's value is its data-value, else its text. A word is less than any number, empty cells are last both ways, and what is
// equal stays in the order that it came in. Heads are buttons, so keys work, and aria-sort tells the order.
{
  const words = new Intl.Collator("en", { numeric: true });
  const value = (row, column) => {
    const cell = row.cells[column];
    return (cell?.dataset.value ?? cell?.textContent ?? "").trim();
  };
  const amount = (text) => Number(text.replace("−", "-").replace(/\s/g, ""));
  const compare = (a, b) => {
    const [one, other] = [amount(a), amount(b)];
    if (isNaN(one) || isNaN(other)) return isNaN(other) - isNaN(one) || words.compare(a, b);
    return one - other;
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const home = [...table.tBodies].map((body) => [body, [...body.rows]]);
    const heads = [...table.querySelectorAll("thead th")];
    heads.forEach((head, column) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const order = { descending: "ascending", ascending: null }[head.getAttribute("aria-sort")];
        const next = order === undefined ? "descending" : order;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        home.forEach(([body, rows]) => body.append(...rows));
        table.classList.toggle("sorted", next !== null);
        if (next === null) return;
        head.setAttribute("aria-sort", next);
        const sign = next === "ascending" ? 1 : -1;
        const rows = home.flatMap(([, group]) => group.filter((row) => !row.classList.contains("group")));
        rows.sort((a, b) => {
          const [one, other] = [value(a, column), value(b, column)];
          if (one === "" || other === "") return (one === "") - (other === "");
          return sign * compare(one, other);
        });
        home[0][0].append(...rows);
      });
    });
  }
}
