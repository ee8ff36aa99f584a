// Returns what keeps people from using the page, a line each: landmarks, headings, names, tables, ids, contrast.
(() => {
  const faults = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const say = (rule, element) => faults.push(`${rule}: ${element.outerHTML.slice(0, 120)}`);
  const named = (element) => {
    const labelled = element.getAttribute("aria-labelledby");
    if (labelled) return labelled.split(" ").every((id) => document.getElementById(id)?.textContent.trim());
    return Boolean((element.getAttribute("aria-label") || element.textContent).trim());
  };
  const shown = (element) => element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true });

  if (!document.documentElement.lang) faults.push("the page says no language");
  if (!document.title.trim()) faults.push("the page has no title");
  for (const tag of ["main", "h1", "header"]) if (all(tag).length !== 1) faults.push(`there is not one ${tag}`);
  for (const element of all("nav, section")) if (!named(element) || !element.hasAttribute("aria-labelledby")) say("a part without a name", element);
  for (const element of document.body.children) {
    const place = element.matches("header, main, footer, nav, script, dialog, a.skip");
    if (!place) say("outside every landmark", element);
  }

  let level = 0;
  for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) say(`a heading of level ${own} after one of ${level}`, heading);
    if (!heading.textContent.trim()) say("an empty heading", heading);
    level = own;
  }

  const ids = new Map();
  for (const element of all("[id]")) ids.set(element.id, (ids.get(element.id) || 0) + 1);
  for (const [id, count] of ids) if (count > 1) faults.push(`the id ${id} stands ${count} times`);
  for (const link of all("a[href^='#']")) {
    if (!ids.has(decodeURIComponent(link.hash.slice(1)))) say("a link to nowhere", link);
  }
  for (const name of ["aria-labelledby", "aria-describedby", "aria-controls"]) {
    for (const element of all(`[${name}]`)) {
      for (const id of element.getAttribute(name).split(" ")) if (!ids.has(id)) say(`${name} names nothing`, element);
    }
  }

  for (const image of all("img")) if (!image.hasAttribute("alt")) say("a picture without alt", image);
  for (const svg of all("svg:not(svg svg)")) {
    if (svg.getAttribute("role") !== "img" || !svg.getAttribute("aria-label")?.trim()) say("a figure without a name", svg);
  }
  for (const element of all("a[href], button, summary")) if (!named(element)) say("nothing to call it by", element);
  for (const element of all("[tabindex]")) if (element.tabIndex > 0) say("a tab stop out of order", element);
  for (const element of all("ul > *, ol > *")) if (!element.matches("li")) say("in a list and no item", element);

  for (const table of all("table")) {
    if (!table.caption?.textContent.trim()) say("a table without a caption", table);
    for (const header of table.querySelectorAll("th")) {
      if (!["col", "row"].includes(header.scope)) say("a header without scope", header);
      if (!header.textContent.trim()) say("an empty header", header);
    }
    for (const row of table.tBodies[0].rows) {
      if (row.cells[0].tagName !== "TH") say("a row without a header", row);
    }
  }
  for (const element of all("*")) {
    const scrolls = ["auto", "scroll"].includes(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth + 1;
    const reached = element.tabIndex === 0 || element.querySelector("a[href]:not([tabindex='-1']), button");
    if (scrolls && shown(element) && !reached) say("scrolls, but not by the keyboard", element);
  }
  if (document.documentElement.scrollWidth > innerWidth + 1) faults.push("the page scrolls sideways");

  // Contrast of text with what lies behind it (WCAG 2.2, 1.4.3): 4.5, or 3 where it is large.
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const colours = new Map();
  const rgba = (text) => {
    if (!colours.has(text)) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = text;
      pen.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
      colours.set(text, [r, g, b, a / 255]);
    }
    return colours.get(text);
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const looked = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || looked.has(element) || element.matches("script, style") || !shown(element)) continue;
    looked.add(element);
    // Words on a coloured cell of a figure are light or dark as the cell asks: what lies behind is not known here.
    if (["#111111", "#fefefe"].some((fill) => element.getAttribute("style")?.includes(fill))) continue;
    const style = getComputedStyle(element);
    const paper = behind(element);
    const ink = over(rgba(element.closest("svg") ? style.fill : style.color), paper);
    const [dark, light] = [luminance(ink), luminance(paper)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize);
    const enough = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < enough) say(`contrast ${ratio.toFixed(2)}`, element);
  }
  return faults;
})();
