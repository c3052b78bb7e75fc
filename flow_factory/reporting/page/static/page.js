"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = id => document.getElementById(id);
  const make = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function curves(charts) {
    const points = Math.max(0, ...charts.main.flatMap(c => c.lines.map(l => l.x.length)));
    const usual = points > 8 ? 2 * Math.max(1, Math.floor(points / 24)) + 1 : 1;
    const say = () => {
      const width = Charts.WINDOWS[$("smoothing").value];
      $("window").textContent = width > 1 ? `mean of ${width} epochs` : "off";
      return width;
    };
    $("smoothing").value = Charts.WINDOWS.filter(w => w <= usual).length - 1;
    Charts.setSmoothing(say());
    charts.main.forEach(chart => Charts.draw(chart, $("charts")));
    let drawn = null;
    $("more").addEventListener("toggle", () => { drawn ??= charts.others.map(chart => Charts.draw(chart, $("others"))); });
    $("metric").addEventListener("input", () => (drawn || []).forEach(e => {
      e.box.hidden = !e.chart.title.toLowerCase().includes($("metric").value.toLowerCase());
    }));
    $("smoothing").addEventListener("input", () => Charts.setSmoothing(say()));
    $("whole").addEventListener("click", () => Charts.zoom(null));
    const chosen = () => Charts.zoom([
      $("from").value === "" ? Charts.first() : Number($("from").value), $("to").value === "" ? Charts.last() : Number($("to").value)]);
    $("from").addEventListener("change", chosen);
    $("to").addEventListener("change", chosen);
    Charts.onZoom = range => {
      $("from").value = range ? Math.ceil(range[0]) : "";
      $("to").value = range ? Math.floor(range[1]) : "";
    };
  }

  // A slider over the first picture of a prompt and the last one, or the one that was chosen from the strip; clips without a slider.
  function comparison(card) {
    const figures = [...card.querySelectorAll("figure")];
    card.figures = figures;
    figures.forEach(figure => { figure.rewards = JSON.parse(figure.dataset.rewards); });
    if (figures.length < 2) return;
    const [before, after] = [figures[0], figures[figures.length - 1]];
    const box = make("div", "compare"), left = make("img"), right = make("img"), slider = make("input");
    const legend = make("div", "legend"), to = make("span"), changes = make("p", "changes");
    Object.assign(slider, {type: "range", min: 0, max: 100, value: 50});
    slider.setAttribute("aria-label", "before and after");
    slider.addEventListener("input", () => box.style.setProperty("--at", `${slider.value}%`));
    left.src = before.querySelector("img").src;
    left.alt = "before"; right.alt = "after";
    left.className = right.className = before.querySelector("img").className;
    left.width = before.querySelector("img").width; left.height = before.querySelector("img").height;
    const broad = left.width > 2 * left.height;  // a row of frames, of which those of one time stand one below the other
    box.classList.toggle("broad", broad);
    const choose = figure => {
      right.src = figure.querySelector("img").src;
      to.textContent = `${figure.dataset.label}${broad ? " below" : ""}`;
      figures.forEach(f => f.classList.toggle("chosen", f === figure));
      changes.replaceChildren(...Object.entries(figure.rewards).map(([name, value]) => {
        const change = value === null || before.rewards[name] == null ? null : value - before.rewards[name];
        const text = `${name} ${change === null ? "no score" : (change < 0 ? "" : "+") + change.toFixed(2)} `;
        return make("span", change > 0.005 ? "up" : change < -0.005 ? "down" : "", text);
      }));
    };
    figures.forEach(figure => {
      const pick = make("button", "pick"), image = figure.querySelector("img");
      pick.type = "button";
      image.before(pick); pick.append(image);
      pick.addEventListener("click", () => choose(figure));
    });
    choose(after);
    box.append(left, right, slider);
    legend.append(make("span", "", `${before.dataset.label}${broad ? " above" : ""}`), to);
    card.querySelector("h3").after(box, legend, changes);
  }

  function cards() {
    const home = $("cards");
    if (!home) return;
    const every = [...home.children];
    every.forEach(comparison);
    const names = [...new Set(every.flatMap(card => card.figures.flatMap(f => Object.keys(f.rewards))))];
    $("by").append(...names.map(name => Object.assign(make("option", "", name), {value: name})));
    const gain = card => {
      const name = $("by").value, [a, b] = [card.figures[0], card.figures[card.figures.length - 1]].map(f => f.rewards[name]);
      return a == null || b == null ? null : b - a;
    };
    const sort = () => {
      const sign = {better: -1, worse: 1}[$("order").value];
      const known = sign ? every.map((card, k) => [gain(card), k, card]).sort(([a, i], [b, j]) =>
        (a === null) - (b === null) || sign * (a - b) || i - j).map(entry => entry[2]) : every;
      home.append(...known);
    };
    $("order").addEventListener("change", sort);
    $("by").addEventListener("change", sort);
    $("prompt").addEventListener("input", () => every.forEach(card => {
      card.hidden = !card.querySelector("h3").textContent.toLowerCase().includes($("prompt").value.toLowerCase());
    }));
    $("all").addEventListener("input", () => home.querySelectorAll(".compare input").forEach(slider => {
      slider.value = $("all").value;
      slider.dispatchEvent(new Event("input"));
    }));
  }

  const ask = async (path, seconds, use) => {
    const again = () => setTimeout(() => ask(path, seconds, use), 1000 * seconds);
    try {
      if (!document.hidden) use(await (await fetch(path)).text());
    } catch (error) {
      console.info(`no answer: ${error.message}`);  // the server has ended, or will be back
    }
    again();
  };

  function follow() {
    if ($("reload")) $("reload").addEventListener("click", () => location.reload());
    ask(data.live, 5, text => {
      const news = JSON.parse(text);
      if (!news.charts) return;
      Charts.update(news.charts.main).forEach(chart => Charts.draw(chart, $("charts")));
      if ($("more").open) Charts.update(news.charts.others).forEach(chart => Charts.draw(chart, $("others")));
      if ($("state")) $("state").textContent = news.state;
      if ($("news")) $("news").hidden = JSON.stringify(news.stamp) === JSON.stringify(data.stamp);
    });
  }

  function list() {
    const home = $("runs");
    if (!home) return;
    const boxes = () => [...home.querySelectorAll("input[name=run]")];
    const chosen = () => boxes().filter(box => box.checked);
    const show = () => {
      const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of home.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every(word => text.includes(word)) || ($("live").checked && !("running" in row.dataset));
      }
      const many = chosen().length;
      $("over").disabled = many < 2 || many > data.most;
      $("count").textContent = many ? `${many} chosen, 2 to ${data.most} can be` : `choose 2 to ${data.most}`;
    };
    for (const [id, event] of [["filter", "input"], ["live", "change"], ["runs", "change"]]) $(id).addEventListener(event, show);
    show();
    ask("/", 10, text => {
      const rows = new DOMParser().parseFromString(text, "text/html").querySelectorAll("#runs tbody tr");
      const kept = new Set(chosen().map(box => box.value));
      home.tBodies[0].replaceChildren(...rows);
      boxes().forEach(box => { box.checked = kept.has(box.value); });
      show();
    });
  }

  if (data.charts) curves(data.charts);
  cards();
  if (data.live) follow();
  if (data.list) list();
})();
