// Tabs of the example problems, and the colour of each token by its margin. Without scripts every figure is still on the page.
for (const box of document.querySelectorAll(".examples")) {
  const tabs = [...box.querySelectorAll("[role=tab]")];
  const panels = [...box.querySelectorAll("[role=tabpanel]")];
  tabs.forEach((tab, chosen) => tab.addEventListener("click", () => {
    tabs.forEach((other, i) => other.setAttribute("aria-selected", String(i === chosen)));
    panels.forEach((panel, i) => { panel.hidden = i !== chosen; });
  }));
}
for (const token of document.querySelectorAll(".token")) {
  const margin = Number(token.dataset.margin);
  const strength = Math.min(1, Math.abs(margin) / 8);
  token.style.backgroundColor = margin > 0 ? `rgba(42, 111, 176, ${0.4 * strength})` : `rgba(200, 64, 47, ${0.25 + 0.5 * strength})`;
}
