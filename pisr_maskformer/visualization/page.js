"use strict";
// The gallery. Text from data only ever becomes text (textContent, setAttribute): names may hold anything.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 60;
  const ENDS = 4; // pictures at each end
  const FRAME = 4 / 3; // of a card's picture
  const byId = (id) => document.getElementById(id);
  const scored = data.images.some((image) => image.delta !== null);
  let shown = []; // what passes the filters, in order
  let page = 0;
  let open = -1; // position in the list that the viewer walks through
  let walked = [];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const address = (file) => file.split("/").map(encodeURIComponent).join("/");

  function signed(value) {
    if (value === null) return "–";
    const size = Math.abs(value).toFixed(1);
    return (size === "0.0" ? "±" : value < 0 ? "−" : "+") + size;
  }

  function verdict(image) {
    if (image.delta === null) return "none";
    return Math.abs(image.delta) < 0.05 ? "same" : image.delta > 0 ? "gain" : "loss";
  }

  function facts(image) {
    const line = element("span");
    const number = (value) => (value === null ? "–" : value.toFixed(1));
    if (data.scored) {
      line.append(`PQ ${number(image.pq[0])} → ${number(image.pq[1])} `);
      const change = element("b", { class: verdict(image) });
      change.textContent = signed(image.delta);
      line.append(change, " · ");
    }
    line.append(`${(100 * image.changed).toFixed(0)}% differs`);
    return line;
  }

  function pair(image, kinds, lazy) {
    const made = element("span", { class: "pair" });
    kinds.forEach((kind, side) => {
      const picture = element("img", { alt: data.sides[side], class: side ? "over" : "under", draggable: "false" });
      if (lazy) picture.loading = "lazy";
      picture.decoding = "async";
      picture.src = address(image.pictures[kind]);
      made.append(picture);
    });
    for (const [left, top, right, bottom] of image.boxes) {
      const box = element("span", { class: "box" });
      const share = (value) => `${100 * value}%`;
      Object.assign(box.style, { left: share(left), top: share(top), width: share(right - left), height: share(bottom - top) });
      made.append(box);
    }
    made.style.aspectRatio = `${image.width} / ${image.height}`;
    return made;
  }

  function slider(image, target) {
    const range = element("input", { type: "range", min: "0", max: "100", value: "50" });
    range.setAttribute("aria-label", `${image.name}: from PISR (0) to baseline (100)`);
    range.addEventListener("input", () => target.style.setProperty("--at", `${range.value}%`));
    return range;
  }

  function card(image, list) {
    const both = pair(image, ["thumb_baseline", "thumb_pisr"], true);
    both.style.width = `${Math.min(100, (100 * image.width) / image.height / FRAME)}%`;
    const look = element("button", { type: "button", class: "look", "aria-label": `Open ${image.name}` }, both);
    look.addEventListener("click", () => view(list(), image));
    const name = element("p", { class: "name", title: image.name });
    name.textContent = image.name;
    const numbers = element("p", { class: "facts" }, facts(image));
    return element("article", { class: "card" }, look, slider(image, both), name, numbers);
  }

  const byDelta = (direction) => (a, b) => {
    if (a.delta === null || b.delta === null) return (a.delta === null) - (b.delta === null);
    return direction * (b.delta - a.delta) || a.index - b.index;
  };
  const ORDERS = {
    ...(scored ? { best: ["largest gain first", byDelta(1)], worst: ["largest loss first", byDelta(-1)] } : {}),
    changed: ["most changed first", (a, b) => b.changed - a.changed || a.index - b.index],
    name: ["name", (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }) || a.index - b.index],
  };

  function fillControls() {
    for (const [key, [title]] of Object.entries(ORDERS)) byId("sort").append(new Option(title, key));
    const count = new Map();
    for (const image of data.images) for (const c of image.classes) count.set(c, (count.get(c) || 0) + 1);
    const present = [...count.keys()].sort((a, b) => data.classes[a].localeCompare(data.classes[b]));
    byId("class").append(new Option(`all (${data.images.length})`, "all"));
    for (const c of present) byId("class").append(new Option(`${data.classes[c]} (${count.get(c)})`, String(c)));
    byId("change-label").hidden = !scored;
  }

  function refresh() {
    const [wanted, change] = [byId("class").value, byId("change").value];
    const text = byId("search").value.trim().toLowerCase();
    shown = data.images
      .filter((image) => wanted === "all" || image.classes.includes(Number(wanted)))
      .filter((image) => change === "all" || verdict(image) === change)
      .filter((image) => image.name.toLowerCase().includes(text))
      .sort(ORDERS[byId("sort").value][1]);
    turnTo(0);
  }

  function turnTo(number) {
    const pages = Math.max(1, Math.ceil(shown.length / PER_PAGE));
    page = Math.min(Math.max(0, number), pages - 1);
    const first = page * PER_PAGE;
    const here = shown.slice(first, first + PER_PAGE);
    byId("gallery").replaceChildren(...here.map((image) => card(image, () => shown)));
    byId("count").textContent = `${shown.length} of ${data.images.length} images`;
    byId("range").textContent = here.length ? `${first + 1}–${first + here.length} of ${shown.length}` : "";
    byId("pager").hidden = pages === 1;
    byId("back").disabled = page === 0;
    byId("forth").disabled = page === pages - 1;
  }

  function showEnds() {
    const ranked = data.images.filter((image) => image.delta !== null).sort(byDelta(1));
    const gains = ranked.filter((image) => verdict(image) === "gain").slice(0, ENDS);
    const losses = ranked.filter((image) => verdict(image) === "loss").slice(-ENDS).reverse();
    if (ranked.length <= ENDS || !(gains.length || losses.length)) return;
    byId("gains").replaceChildren(...gains.map((image) => card(image, () => gains)));
    byId("losses").replaceChildren(...losses.map((image) => card(image, () => losses)));
    for (const [id, found] of [["gains", gains], ["losses", losses]]) {
      if (!found.length) byId(id).append("none");
    }
    byId("ends").hidden = false;
  }

  function figure(image, kind, title) {
    const picture = element("img", { alt: title });
    picture.src = address(image.pictures[kind]);
    const link = element("a", { href: address(image.pictures[kind]), target: "_blank", rel: "noopener" }, picture);
    const caption = element("figcaption");
    caption.textContent = title;
    return element("figure", {}, caption, link);
  }

  function view(list, image) {
    walked = list;
    open = list.indexOf(image);
    byId("viewer-name").textContent = byId("viewer-name").title = image.name; // long ones are cut short
    byId("viewer-numbers").replaceChildren(facts(image));
    byId("previous").disabled = open <= 0;
    byId("next").disabled = open >= list.length - 1;
    const both = pair(image, ["baseline", "pisr"], false);
    both.classList.add("large");
    const wide = `min(100%, calc(64vh * ${image.width / image.height}))`;
    both.style.width = wide;
    const range = slider(image, both);
    both.addEventListener("pointermove", (event) => {
      const frame = both.getBoundingClientRect();
      range.value = String((100 * (event.clientX - frame.left)) / frame.width);
      range.dispatchEvent(new Event("input"));
    });
    const sides = element("div", { class: "sides" });
    ["baseline", "pisr"].forEach((kind, side) => {
      const title = element("span", { class: kind });
      title.textContent = side ? `${data.sides[side]} →` : `← ${data.sides[side]}`;
      sides.append(title);
    });
    range.style.width = sides.style.width = wide;
    range.style.margin = "6px auto";
    const titles = {
      input: "input", truth: "ground truth", baseline: data.sides[0], pisr: data.sides[1],
      before: `semantic heatmap of “${image.heat}” before PISR`, after: `semantic heatmap of “${image.heat}” after PISR`,
    };
    const kinds = Object.keys(titles).filter((kind) => image.pictures[kind]);
    const more = element("div", { class: "more" }, ...kinds.map((kind) => figure(image, kind, titles[kind])));
    byId("viewer-body").replaceChildren(both, range, sides, more);
    if (!byId("viewer").open) byId("viewer").showModal();
    byId("viewer").scrollTop = 0;
  }

  function walk(step) {
    const target = walked[open + step];
    if (target) view(walked, target);
  }

  function moveFocus(event) {
    const looks = [...byId("gallery").querySelectorAll(".look")];
    const at = looks.indexOf(document.activeElement);
    if (at < 0) return;
    const tops = looks.map((look) => look.getBoundingClientRect().top);
    const across = Math.max(1, tops.filter((top) => Math.abs(top - tops[0]) < 2).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const target = event.key in steps && looks[at + steps[event.key]];
    if (!target) return;
    event.preventDefault();
    target.focus();
  }

  fillControls();
  for (const id of ["sort", "class", "change"]) byId(id).addEventListener("change", refresh);
  byId("search").addEventListener("input", refresh);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  byId("boxes").addEventListener("change", () => document.body.classList.toggle("plain", !byId("boxes").checked));
  byId("gallery").addEventListener("keydown", moveFocus);
  byId("back").addEventListener("click", () => turnTo(page - 1));
  byId("forth").addEventListener("click", () => turnTo(page + 1));
  for (const id of ["back", "forth"]) byId(id).addEventListener("click", () => byId("gallery-section").scrollIntoView());
  byId("previous").addEventListener("click", () => walk(-1));
  byId("next").addEventListener("click", () => walk(1));
  byId("close").addEventListener("click", () => byId("viewer").close());
  byId("viewer").addEventListener("click", (event) => event.target === byId("viewer") && byId("viewer").close());
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || !byId("viewer").open || event.target.type === "range") return; // there the arrows move the slider
    event.preventDefault();
    walk(step);
  });
  showEnds();
  refresh();
})();
