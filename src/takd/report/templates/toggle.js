// Show and hide the lines of a lineage in all panels. Without this script all lines are shown.
{
  const form = document.getElementById("lines");
  const boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const lines = new Map(boxes.map((box) => [box.value, []]));
  for (const line of document.querySelectorAll(".panels [data-lineage]")) lines.get(line.dataset.lineage).push(line);
  const show = () => {
    for (const box of boxes) {
      for (const line of lines.get(box.value)) line.style.display = box.checked ? "" : "none";
    }
  };
  const set = (some, checked) => {
    for (const box of some) box.checked = checked;
    show();
  };
  form.addEventListener("change", show);
  form.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { all, group } = button.dataset;
    if (all !== undefined) set(boxes, all === "1");
    else set(button.closest("fieldset").querySelectorAll("input"), group === "1");
  });
  form.classList.add("ready");
  show();
}
