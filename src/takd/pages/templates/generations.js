// Search, filter, sort and page through the prompts. Without this script all of them are shown, with all training seeds.
{
  const get = (id) => document.getElementById(id);
  const query = get("query");
  const value = (id) => get(id)?.value ?? "";
  const models = [...document.querySelectorAll("#choice input")];
  const blocks = [...document.querySelectorAll("[data-set]")];
  const prompts = [...document.querySelectorAll(".prompt")].map((element) => ({
    element,
    place: blocks.indexOf(element.closest("[data-set]")),
    texts: [...element.querySelectorAll(".text")].filter((text) => !text.closest(".answer")),
    answers: [...element.querySelectorAll(".answer")],
  }));
  const seeds = new Map(); // model -> its training seeds
  for (const { dataset } of prompts[0]?.answers ?? []) {
    seeds.set(dataset.model, [...(seeds.get(dataset.model) ?? []), dataset.seed]);
  }
  let page = 0;

  // The head of a chain has one seed, which is shown with any.
  function isChosen({ dataset }, chosen, seed) {
    const own = seeds.get(dataset.model);
    return chosen.has(dataset.model) && (seed === "all" || dataset.seed === (own.includes(seed) ? seed : own[0]));
  }

  const TEXTS = new Map();
  function textOf(element) {
    if (!TEXTS.has(element)) TEXTS.set(element, element.textContent);
    return TEXTS.get(element);
  }

  // Matches are highlighted without a change of the page's elements.
  function highlight(shown, words) {
    if (!CSS.highlights) return;
    const ranges = [];
    for (const text of shown.flatMap((prompt) => [...prompt.element.querySelectorAll(".text")])) {
      const before = ranges.length;
      const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
      for (let node; words && !text.closest("[hidden]") && (node = walker.nextNode()); ) {
        for (const found of node.data.matchAll(words)) {
          const range = new Range();
          range.setStart(node, found.index);
          range.setEnd(node, found.index + found[0].length);
          ranges.push(range);
        }
      }
      text.classList.toggle("hit", ranges.length > before);
    }
    CSS.highlights.set("found", new Highlight(...ranges));
  }

  function apply() {
    const asked = query.value.trim().split(/\s+/).filter(Boolean);
    const escaped = asked.map((word) => word.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
    const wanted = escaped.map((word) => new RegExp(word, "iu"));
    // longer words first: one may begin with another
    const words = asked.length ? new RegExp(escaped.sort((a, b) => b.length - a.length).join("|"), "giu") : null;
    const chosen = new Set(models.filter((box) => box.checked).map((box) => box.value));
    get("chosen").textContent =
      chosen.size === models.length ? `all ${models.length}` : `${chosen.size} of ${models.length}`;
    const [set, stratum, change, order] = ["set", "stratum", "change", "order"].map(value);
    const seed = get("seed")?.value ?? "all";

    for (const prompt of prompts) {
      for (const answer of prompt.answers) answer.hidden = !isChosen(answer, chosen, seed);
      const answers = prompt.answers.filter((answer) => !answer.hidden);
      const means = answers.map((answer) => +answer.dataset.mean);
      const over = answers.map((answer) => answer.dataset.over).filter(Boolean).map(Number);
      prompt.keys = {
        spread: means.length ? Math.max(...means) - Math.min(...means) : 0,
        gain: over.length ? Math.max(...over) : 0,
        loss: over.length ? -Math.min(...over) : 0,
      };
      prompt.element.querySelector(".spread").textContent = means.length > 1 ? prompt.keys.spread.toFixed(0) : "–";
      const parts = [...prompt.texts, ...answers.map((answer) => answer.querySelector(".text")).filter(Boolean)];
      prompt.hit =
        (!set || blocks[prompt.place].dataset.set === set) &&
        (!stratum || prompt.element.dataset.stratum === stratum) &&
        (!change || answers.some((answer) => answer.dataset.change === change)) &&
        wanted.every((word) => parts.some((part) => word.test(textOf(part))));
    }
    const hits = prompts.filter((prompt) => prompt.hit);
    if (order !== "data") hits.sort((a, b) => a.place - b.place || b.keys[order] - a.keys[order]);
    const size = +value("size") || prompts.length;
    page = Math.max(0, Math.min(page, Math.ceil(hits.length / size) - 1));
    const shown = hits.slice(page * size, (page + 1) * size);
    for (const prompt of prompts) prompt.element.hidden = !shown.includes(prompt);
    for (const [place, block] of blocks.entries()) {
      const here = shown.filter((prompt) => prompt.place === place);
      block.hidden = prompts.length > 0 && here.length === 0;
      block.append(...here.map((prompt) => prompt.element));
    }
    highlight(shown, words);
    const last = page * size + shown.length;
    const whole = shown.length === hits.length;
    const range = whole ? "" : `${page * size + 1}–${last} of `;
    const part = hits.length === prompts.length && !whole ? "" : `${hits.length} of `;
    get("count").textContent = `${range}${part}${prompts.length} prompts`;
    get("back").hidden = get("next").hidden = whole;
    get("back").disabled = page === 0;
    get("next").disabled = last === hits.length;
    return hits;
  }

  function restart() {
    page = 0;
    apply();
  }

  // A link to a model shows its responses alone; one to a prompt shows it, whatever was searched for.
  function arrive() {
    const lineage = location.hash.replace("#model=", "");
    if (models.some((box) => box.dataset.lineage === lineage)) {
      for (const box of models) box.checked = box.dataset.lineage === lineage;
      restart();
    }
    const target = prompts.find(({ element }) => `#${element.id}` === location.hash);
    if (!target) return;
    if (!target.hit) {
      for (const id of ["query", "set", "stratum", "change"]) if (get(id)) get(id).value = "";
    }
    const size = +value("size") || prompts.length;
    page = Math.floor(apply().indexOf(target) / size);
    apply();
    target.element.scrollIntoView();
  }

  let waiting;
  query.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(restart, 150);
  });
  for (const id of ["set", "stratum", "seed", "change", "order", "size"]) get(id)?.addEventListener("change", restart);
  for (const box of models) box.addEventListener("change", restart);
  for (const button of document.querySelectorAll("#choice button")) {
    button.addEventListener("click", () => {
      for (const box of models) box.checked = Boolean(button.dataset.all);
      restart();
    });
  }
  for (const [id, step] of [["back", -1], ["next", 1]]) {
    get(id).addEventListener("click", () => {
      page += step;
      apply();
      get("tools").scrollIntoView();
    });
  }
  get("marks").addEventListener("change", (event) => document.body.classList.toggle("unmarked", !event.target.checked));
  addEventListener("hashchange", arrive);
  if (prompts.length) {
    get("tools").hidden = false;
    apply(); // a browser may have kept what was chosen before
    arrive();
  }
}
