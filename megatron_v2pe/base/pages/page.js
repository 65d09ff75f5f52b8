// Tells the values of a figure under the pointer; asks for nothing outside of the page.
for (const figure of document.querySelectorAll("figure[data-points]")) {
  const drawing = figure.querySelector("svg");
  const tip = figure.querySelector(".tip");
  const data = JSON.parse(figure.dataset.points);
  const number = (value) => (Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? value.toExponential(3) : String(+value.toPrecision(5)));
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  line.setAttribute("class", "s-quiet");
  line.setAttribute("visibility", "hidden");
  drawing.append(line);
  const hide = () => { tip.hidden = true; line.setAttribute("visibility", "hidden"); };
  const show = (event) => {
    const box = drawing.getBoundingClientRect();
    const view = drawing.viewBox.baseVal;
    const place = ((event.clientX - box.left) / box.width) * view.width;
    const rows = [];
    let at = null;
    for (const series of data.series) {
      let best = null;
      for (const point of series.points) if (best === null || Math.abs(point[2] - place) < Math.abs(best[2] - place)) best = point;
      if (best === null) continue;
      rows.push([series, best]);
      if (at === null || Math.abs(best[2] - place) < Math.abs(at[2] - place)) at = best;
    }
    if (at === null) return hide();
    tip.replaceChildren(`${data.label} ${number(at[0])}`);
    for (const [series, point] of rows) {
      if (Math.abs(point[2] - at[2]) > 4) continue;
      const row = document.createElement("div");
      const mark = document.createElement("i");
      mark.className = `mark b-${series.colour}`;
      row.append(mark, `${series.name} ${number(point[1])}`);
      tip.append(row);
    }
    for (const [name, value] of [["x1", at[2]], ["x2", at[2]], ["y1", 8], ["y2", view.height - 36]]) line.setAttribute(name, value);
    line.setAttribute("visibility", "visible");
    tip.hidden = false;
    const half = place > view.width / 2;
    tip.style.left = half ? "auto" : `${(at[2] / view.width) * 100 + 2}%`;
    tip.style.right = half ? `${(1 - at[2] / view.width) * 100 + 2}%` : "auto";
  };
  drawing.addEventListener("pointermove", show);
  drawing.addEventListener("pointerleave", hide);
}
