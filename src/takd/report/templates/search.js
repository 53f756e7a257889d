// The generations: search their texts, choose set and models, sort by how far models lie apart. Without it all is shown.
{
  const get = (id) => document.getElementById(id);
  const [query, set, order, count] = ["query", "set", "order", "count"].map(get);
  const models = [...document.querySelectorAll("#choice input")];
  const sets = [...document.querySelectorAll("[data-set]")].map((element) => ({
    name: element.dataset.set,
    element,
    prompts: [...element.querySelectorAll(".prompt")].map((prompt) => ({
      element: prompt,
      spread: prompt.querySelector(".spread"),
      answers: [...prompt.querySelectorAll(".answer")],
    })),
  }));
  const prompts = sets.flatMap((found) => found.prompts);

  // A text is read from the page once. What unfolds goes on where the text before it ended.
  const texts = new Map();
  function textOf(element) {
    if (!texts.has(element)) {
      const parts = [...element.querySelectorAll(".text:not(.empty)")].filter(
        (part) => element.matches(".answer") || !part.closest(".answer"),
      );
      texts.set(element, parts.map((part) => (part.matches(".rest") ? "" : "\n") + part.textContent).join(""));
    }
    return texts.get(element);
  }

  // Matches are marked in the text nodes themselves, so text stays text; and only near the window, however many there are.
  let words = null;
  const near = new IntersectionObserver(
    (entries) => {
      for (const entry of entries.filter((found) => found.isIntersecting)) {
        near.unobserve(entry.target);
        mark(entry.target);
      }
    },
    { rootMargin: "100%" },
  );
  function mark(prompt) {
    if (!words || prompt.hidden || prompt.querySelector("mark")) return; // told of late
    for (const text of prompt.querySelectorAll(".text:not(.empty)")) {
      if (text.closest("[hidden]")) continue;
      for (const node of [...text.childNodes]) {
        for (const found of [...node.data.matchAll(words)].reverse()) {
          const match = node.splitText(found.index);
          match.splitText(found[0].length);
          const marked = document.createElement("mark");
          match.replaceWith(marked);
          marked.append(match);
        }
      }
      const fold = text.closest("details");
      if (fold && !fold.open && text.querySelector("mark")) fold.open = fold.dataset.opened = true;
    }
  }
  function unmark() {
    near.disconnect();
    const touched = new Set();
    for (const marked of document.querySelectorAll("mark")) {
      touched.add(marked.parentNode);
      marked.replaceWith(...marked.childNodes);
    }
    touched.forEach((text) => text.normalize());
    for (const fold of document.querySelectorAll("[data-opened]")) {
      fold.open = false;
      delete fold.dataset.opened;
    }
  }

  function apply() {
    unmark();
    const asked = query.value.trim().split(/\s+/).filter(Boolean);
    const escaped = asked.map((word) => word.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
    const wanted = escaped.map((word) => new RegExp(word, "iu"));
    // longer words first: one may begin with another
    words = asked.length ? new RegExp(escaped.sort((a, b) => b.length - a.length).join("|"), "giu") : null;
    const chosen = new Set(models.filter((box) => box.checked).map((box) => box.value));
    get("chosen").textContent =
      chosen.size === models.length ? `all ${models.length}` : `${chosen.size} of ${models.length}`;

    let hits = 0;
    for (const { name, element, prompts } of sets) {
      const here = !set?.value || set.value === name;
      const before = hits;
      for (const prompt of prompts) {
        for (const answer of prompt.answers) answer.hidden = !chosen.has(answer.dataset.model);
        const answers = prompt.answers.filter((answer) => !answer.hidden);
        const means = answers.map((answer) => +answer.dataset.mean);
        prompt.apart = means.length ? Math.max(...means) - Math.min(...means) : 0;
        prompt.spread.textContent = means.length > 1 ? prompt.apart.toFixed(0) : "–";
        const parts = [prompt.element, ...answers];
        const hit = here && wanted.every((word) => parts.some((part) => word.test(textOf(part))));
        prompt.element.hidden = !hit;
        hits += hit;
        if (hit && words) near.observe(prompt.element);
      }
      element.hidden = prompts.length > 0 && hits === before;
      const sorted = order.value === "spread" ? [...prompts].sort((a, b) => b.apart - a.apart) : prompts;
      const stand = [...element.querySelectorAll(".prompt")];
      if (sorted.some((prompt, place) => prompt.element !== stand[place])) {
        element.append(...sorted.map((prompt) => prompt.element));
      }
    }
    count.textContent = `${hits} of ${prompts.length} prompts`;
  }

  // A link to a prompt shows it, whatever was searched for.
  function arrive() {
    const target = prompts.find(({ element }) => `#${element.id}` === location.hash);
    if (!target) return;
    if (target.element.hidden) {
      query.value = "";
      if (set) set.value = "";
      apply();
    }
    history.scrollRestoration = "manual"; // where a reload would go was measured before all was laid out
    const go = () => target.element.scrollIntoView();
    go();
    requestAnimationFrame(() => requestAnimationFrame(go)); // what comes near is laid out, and may push it away
  }

  let waiting;
  query.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, 150);
  });
  [set, order, ...models].forEach((control) => control?.addEventListener("change", apply));
  for (const button of document.querySelectorAll("#choice button")) {
    button.addEventListener("click", () => {
      models.forEach((box) => (box.checked = Boolean(button.dataset.all)));
      apply();
    });
  }
  addEventListener("hashchange", arrive);
  if (prompts.length) {
    get("tools").hidden = false;
    apply(); // a browser may have kept what was chosen before
    arrive();
  }
}
