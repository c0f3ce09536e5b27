"use strict";
// Draws every chart of the page from the data that stands in it. Data are columns, and become rows here; a coded column
// holds, for each row, places in a list of words.
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function rows({columns, coded, words}) {
    const names = Object.keys(columns);
    return columns[names[0]].map((_, i) => {
      const row = Object.fromEntries(names.map(name => [name, columns[name][i]]));
      for (const name in coded) row[name] = coded[name][i].map(place => words[place]).join("  ");
      return row;
    });
  }

  function colours() {
    const [text, line] = dark.matches ? ["#c3ccd8", "#343d4a"] : ["#3c4654", "#d9dfe7"];
    const axis = {labelColor: text, titleColor: text, gridColor: line, domainColor: line, tickColor: line};
    return {background: null, font: "system-ui, sans-serif", axis, view: {stroke: null},
            rule: {color: text}, legend: {labelColor: text, titleColor: text, orient: "bottom", columns: 3, labelLimit: 220}};
  }

  async function draw() {
    const known = Object.fromEntries(Object.entries(page.datasets).map(([name, data]) => [name, rows(data)]));
    const look = {theme: dark.matches ? "dark" : "light"};
    for (const {id, data, spec} of page.charts) {
      const place = document.getElementById(id);
      if (place.view) place.view.finalize();
      const whole = {...spec, width: "container", height: 240, autosize: {type: "fit", contains: "padding"},
                     data: {name: data}, datasets: {[data]: known[data]}};
      // `ast`: expressions are interpreted, so the page needs no eval and forbids it
      const options = {mode: "vega-lite", ast: true, renderer: "canvas", actions: false, config: colours(), tooltip: look};
      place.view = (await vegaEmbed(place, whole, options)).view;
    }
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  let drawing = draw();
  dark.addEventListener("change", () => { drawing = drawing.then(draw); });
})();
