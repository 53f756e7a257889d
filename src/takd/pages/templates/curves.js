// Draws the learning curves: a panel for each quantity, with axes that fit the lines that are shown.
{
  const { quantities, runs } = JSON.parse(document.getElementById("curves").textContent);
  const form = document.getElementById("lines");
  const panels = document.getElementById("panels");
  const boxes = [...form.querySelectorAll("[name=line]")];
  const [WIDE, HIGH, LEFT, TOP, RIGHT, BOTTOM] = [480, 300, 58, 30, 24, 46];

  function add(parent, name, attributes = {}, text = "") {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return parent.appendChild(element);
  }

  function ticks(low, high, count) {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, place) => (first + place) * step);
  }

  function short(value) {
    for (const [size, name] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      const unit = name === "k" ? 1e3 : size;
      if (Math.abs(value) >= size) return `${+(value / unit).toPrecision(3)}${name}`;
    }
    return `${+value.toPrecision(4)}`.replace("-", "−");
  }

  // Points {step, x, y, low, high}: of one training, or the mean of several at the steps that all have.
  function line(trainings, title, axis) {
    const found = trainings.map((run) => {
      const { step, value, [axis]: x } = run.values[title];
      return new Map(step.map((at, place) => [at, { x: x[place], y: value[place] }]));
    });
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    return [...found[0].keys()]
      .filter((step) => found.every((run) => run.has(step)))
      .map((step) => {
        const all = found.map((run) => run.get(step));
        const values = all.map((point) => point.y);
        return { step, x: mean(all.map((point) => point.x)), y: mean(values), low: Math.min(...values), high: Math.max(...values) };
      });
  }

  function lines(title, axis, single) {
    return boxes.filter((box) => box.checked).flatMap((box) => {
      const trainings = runs.filter((run) => run.lineage === box.value && run.values[title]);
      const groups = single ? trainings.map((run) => [run]) : trainings.length ? [trainings] : [];
      const sample = box.parentElement.querySelector(".stroke");
      return groups.map((group) => ({
        lineage: box.value,
        name: box.parentElement.textContent.trim() + (single ? `, seed ${group[0].seed}` : ""),
        colour: sample.getAttribute("fill"),
        dashes: sample.querySelector("path").getAttribute("stroke-dasharray"),
        shape: sample.querySelector("g"),
        points: line(group, title, axis),
        kept: group.map((run) => line([run], title, axis).find((point) => point.step === run.kept)).filter(Boolean),
      }));
    });
  }

  function draw(svg, { title, dev, scale }, axis, single) {
    svg.replaceChildren();
    const shown = lines(title, axis, single);
    const points = shown.flatMap((found) => found.points);
    const others = quantities.filter((other) => scale && other.scale === scale && other.title !== title);
    const compared = [...points, ...others.flatMap((other) => lines(other.title, axis, single).flatMap((found) => found.points))];
    // random weights (step 0) would press all later values into a line
    const later = compared.filter((point) => point.step > 0);
    const fitted = later.length ? later : points;
    if (!points.length) return add(svg, "text", { x: LEFT, y: HIGH / 2 }, "nothing shown");
    const edge = (Math.max(...fitted.map((p) => p.high)) - Math.min(...fitted.map((p) => p.low)) || 1) * 0.05;
    const low = Math.min(...fitted.map((p) => p.low)) - edge;
    const high = Math.max(...fitted.map((p) => p.high)) + edge;
    const last = Math.max(...points.map((p) => p.x)) * 1.02 || 1;
    const x = (value) => LEFT + (value / last) * (WIDE - LEFT - RIGHT);
    const y = (value) => TOP + ((high - value) / (high - low)) * (HIGH - TOP - BOTTOM);
    add(svg, "text", { x: LEFT, y: 18, "font-weight": "bold" }, title);
    for (const at of ticks(low, high, 5)) {
      add(svg, "path", { d: `M${LEFT} ${y(at)}H${WIDE - RIGHT}`, stroke: "#e4e4e4" });
      add(svg, "text", { x: LEFT - 6, y: y(at) + 5, "text-anchor": "end" }, short(at));
    }
    for (const at of ticks(0, last, 5)) {
      add(svg, "text", { x: x(at), y: HIGH - BOTTOM + 19, "text-anchor": "middle" }, short(at));
    }
    add(svg, "text", { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 6, "text-anchor": "middle" }, axis);
    add(svg, "path", { d: `M${LEFT} ${TOP}V${HIGH - BOTTOM}H${WIDE - RIGHT}`, fill: "none", stroke: "#1b1f24" });
    // an inner element cuts off what is drawn outside of it
    const inner = add(svg, "svg", {
      x: LEFT, y: TOP - 6, width: WIDE - LEFT, height: HIGH - TOP - BOTTOM + 6, viewBox: `${LEFT} ${TOP - 6} ${WIDE - LEFT} ${HIGH - TOP - BOTTOM + 6}`,
    });
    for (const { lineage, name, colour, dashes, shape, points, kept } of shown) {
      const group = add(inner, "g", { "data-lineage": lineage, fill: colour, stroke: colour });
      add(group, "title", {}, name);
      const path = (key) => points.map((point) => `${x(point.x).toFixed(1)},${y(point[key]).toFixed(1)}`);
      if (points.some((point) => point.high > point.low)) {
        add(group, "polygon", { points: [...path("high"), ...path("low").reverse()].join(" "), opacity: 0.15, stroke: "none" });
      }
      add(group, "polyline", { points: path("y").join(" "), fill: "none", "stroke-width": 1.8, "stroke-dasharray": dashes });
      const every = Math.max(1, Math.floor(points.length / 8));
      for (const point of points.filter((_, place) => place % every === 0)) {
        const mark = group.appendChild(shape.cloneNode(true));
        mark.setAttribute("transform", `translate(${x(point.x) - 18} ${y(point.y) - 6})`);
      }
      for (const point of dev ? kept : []) {
        add(group, "circle", { cx: x(point.x), cy: y(point.y), r: 5.5, fill: "none", "stroke-width": 1.5 });
      }
    }
    return points.some((point) => point.low < low || point.high > high);
  }

  const figures = quantities.map((quantity, place) => {
    if (quantity.part && quantity.part !== quantities[place - 1]?.part) {
      panels.appendChild(document.createElement("h2")).textContent = quantity.part;
    }
    const figure = panels.appendChild(document.createElement("figure"));
    figure.dataset.quantity = quantity.title;
    const svg = add(figure, "svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "curves", role: "img", "aria-label": quantity.title });
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.className = "note";
    return { quantity, svg, caption };
  });
  const all = new Set(runs.map((run) => run.lineage)).size;

  function show() {
    const axis = document.getElementById("x").value;
    const single = document.getElementById("single")?.checked ?? false;
    for (const { quantity, svg, caption } of figures) {
      const cut = draw(svg, quantity, axis, single) === true;
      const logged = new Set(runs.filter((run) => run.values[quantity.title]).map((run) => run.lineage)).size;
      caption.textContent = [
        `${quantity.title}, ${quantity.about}`,
        logged < all ? `logged by ${logged} of ${all} models` : "",
        cut ? "some values before training (step 0) lie beyond the edge" : "",
      ].filter(Boolean).join("; ");
    }
  }
  // A link to a lineage shows its line alone.
  function arrive() {
    const lineage = decodeURIComponent(location.hash.slice(1));
    if (boxes.some((box) => box.value === lineage)) for (const box of boxes) box.checked = box.value === lineage;
    show();
  }
  addEventListener("hashchange", arrive);
  form.addEventListener("change", show);
  form.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const { all, group } = button.dataset;
    const some = all === undefined ? button.closest("fieldset").querySelectorAll("[name=line]") : boxes;
    for (const box of some) box.checked = (all ?? group) === "1";
    show();
  });
  form.hidden = false;
  arrive();
}
