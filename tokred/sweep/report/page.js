// Sorts the table by a click on a column, and writes it as CSV.
const table = document.getElementById("points");
const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

table.tHead.addEventListener("click", ({ target }) => {
  const column = target.cellIndex;
  const order = target.dataset.order === "1" ? -1 : 1;
  for (const cell of table.tHead.rows[0].cells) delete cell.dataset.order;
  target.dataset.order = order;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === ""); // empty cells stay at the end
    return order * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  });
  table.tBodies[0].append(...rows);
});

document.getElementById("download").addEventListener("click", ({ target }) => {
  const cell = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = [...table.rows].map((row) => [...row.cells].map((_, i) => cell(value(row, i))).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = target.dataset.name;
  link.click();
  URL.revokeObjectURL(link.href);
});
