// The page says everything without this: here its cells open their cases, its rows can be filtered,
// and its figures are drawn.
(function () {
  "use strict";
  var root = document.documentElement;
  var byId = function (id) { return document.getElementById(id); };
  var made = function (name, text) {
    var element = document.createElement(name);
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // The theme.
  var dark = matchMedia("(prefers-color-scheme: dark)");
  var isDark = function () { return root.dataset.theme ? root.dataset.theme === "dark" : dark.matches; };
  var themeButton = byId("theme");
  var themed = function () {
    themeButton.textContent = isDark() ? "Light" : "Dark";
    themeButton.setAttribute("aria-pressed", String(isDark()));
    themeButton.setAttribute("aria-label", "Change to the " + (isDark() ? "light" : "dark") + " theme");
    drawn.forEach(paint);
  };
  themeButton.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("pinstorm-theme", root.dataset.theme); } catch (refused) { /* no storage */ }
    themed();
  });
  dark.addEventListener("change", function () { themed(); });

  // The figures: each is drawn when it comes near the window, and before printing.
  var drawn = [];
  var figures = Array.prototype.slice.call(document.querySelectorAll(".figure"));
  var colour = function (name) { return getComputedStyle(root).getPropertyValue("--" + name).trim(); };
  var colours = function (layout, printed) {
    var ink = printed ? "#000" : colour("ink"), line = printed ? "#ccc" : colour("line");
    var changes = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink,
      "legend.bgcolor": "rgba(0,0,0,0)", "hoverlabel.bgcolor": printed ? "#fff" : colour("soft"),
      "hoverlabel.font.color": ink
    };
    Object.keys(layout).forEach(function (key) {
      if (!/^[xy]axis\d*$/.test(key)) return;
      changes[key + ".gridcolor"] = line;
      changes[key + ".linecolor"] = line;
      changes[key + ".zerolinecolor"] = line;
      changes[key + ".tickcolor"] = line;
    });
    return changes;
  };
  var paint = function (figure) { return Plotly.relayout(figure, colours(figure.layout, false)); };
  var fit = function (figure, layout) {
    if (layout.height) figure.style.height = figure.style.minHeight = layout.height + "px";
  };
  // One at a time: what is chosen while a figure is being drawn waits for it.
  var draw = function (figure) {
    if (figure.drawing) return figure.drawing;
    var told = figure.told, layout = told.layout;
    layout.autosize = true;
    fit(figure, layout);
    figure.drawing = Plotly.newPlot(figure, told.data, layout, {
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"]
    }).then(function () { drawn.push(figure); return paint(figure); });
    return figure.drawing;
  };
  // plotly's own menu is out of the keyboard's reach: a select has its entries.
  var choose = function (figure) {
    var menus = figure.told.layout.updatemenus;
    delete figure.told.layout.updatemenus;
    if (!menus) return;
    var buttons = menus[0].buttons, id = figure.parentNode.id;
    var box = made("p"), label = made("label", "show"), select = made("select");
    box.className = "choice";
    label.id = id + "-show";
    label.htmlFor = select.id = id + "-choice";
    figure.parentNode.querySelector("h3").id = id + "-h";
    select.autocomplete = "off";
    select.setAttribute("aria-labelledby", label.id + " " + id + "-h");
    buttons.forEach(function (button) { select.add(new Option(button.label)); });
    select.addEventListener("change", function () {
      var chosen = buttons[select.selectedIndex].args;
      figure.drawing = draw(figure).then(function () {
        return Plotly.update(figure, chosen[0], chosen[1]);
      }).then(function () {
        fit(figure, figure.layout);
        return paint(figure);
      });
    });
    box.append(label, " ", select);
    figure.before(box);
  };
  if (figures.length && window.Plotly) {
    figures.forEach(function (figure) {
      figure.told = JSON.parse(figure.nextElementSibling.textContent);
      choose(figure);
    });
    var near = new IntersectionObserver(function (entries) {
      entries.forEach(function (entry) {
        if (entry.isIntersecting) { near.unobserve(entry.target); draw(entry.target); }
      });
    }, { rootMargin: "600px" });
    figures.forEach(function (figure) { near.observe(figure); });
  }
  var opened = [];
  addEventListener("beforeprint", function () {
    if (window.Plotly) {
      figures.forEach(draw);
      drawn.forEach(function (figure) { Plotly.relayout(figure, colours(figure.layout, true)); });
    }
    opened = Array.prototype.filter.call(document.querySelectorAll("details.case"), function (one) { return !one.open; });
    opened.forEach(function (one) { one.open = true; });
  });
  addEventListener("afterprint", function () {
    opened.forEach(function (one) { one.open = false; });
    drawn.forEach(paint);
  });
  themed();

  // A deep link opens the case that it names.
  var reveal = function () {
    var target = byId(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.tagName === "DETAILS") target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  // The matrix: its cells are one stop of the Tab key, the arrows go between them.
  var map = byId("map"), panel = byId("panel"), body = byId("panel-body");
  var commands = JSON.parse(byId("commands").textContent);
  var rowsOf = {};
  document.querySelectorAll("#rows > tbody").forEach(function (rows) {
    (rowsOf[rows.dataset.cell] = rowsOf[rows.dataset.cell] || []).push(rows);
  });
  var quoted = function (word) {
    return /^[\w@%+=:,./-]+$/.test(word) ? word : "'" + word.replace(/'/g, "'\"'\"'") + "'";
  };
  var copied = function (code) {
    if (!navigator.clipboard || code.nextElementSibling) return;
    var button = made("button", "copy");
    button.type = "button";
    button.className = "copy";
    button.addEventListener("click", function () {
      navigator.clipboard.writeText(code.textContent).then(
        function () { button.textContent = "copied"; },
        function () { button.textContent = "not allowed"; });
    });
    code.after(button);
  };
  document.querySelectorAll("code.command").forEach(copied);

  // A case of which the table has all: its lines become columns, with the rule and the cause.
  var sheet = function (rows) {
    var heads = Array.prototype.slice.call(document.querySelectorAll("#rows > thead th")).slice(1);
    var table = made("table");
    table.className = "plain sides";
    var lines = Array.prototype.map.call(rows.rows, function (row) {
      return Array.prototype.slice.call(row.querySelectorAll("td"));
    });
    var named = {};
    heads.forEach(function (head, number) {
      if (lines.every(function (cells) { return /^-?$/.test(cells[number].textContent); })) return;
      var row = table.insertRow();
      var th = made("th", head.textContent);
      th.scope = "row";
      row.append(th);
      lines.forEach(function (cells) {
        var cell = row.insertCell();
        cells[number].childNodes.forEach(function (node) { cell.append(node.cloneNode(true)); });
        var link = cells[number].querySelector("a[href^='#']");
        if (link) named[link.getAttribute("href").slice(1)] = link.textContent;
      });
    });
    var told = made("dl");
    Object.keys(named).forEach(function (id) {
      var dt = byId(id);
      if (!dt) return;
      told.append(made("dt", (id.indexOf("rule-") === 0 ? "rule " : "cause ") + named[id]));
      var dd = dt.nextElementSibling.cloneNode(true);
      told.append(dd);
    });
    var kernels = Array.prototype.map.call(rows.rows, function (row) { return row.dataset.kernel; });
    var again = {};
    kernels.forEach(function (kernel) { if (commands[kernel]) again[commands[kernel]] = 1; });
    Object.keys(again).forEach(function (command, number) {
      told.append(made("dt", number ? "" : "repeat"));
      var dd = made("dd"), code = made("code", command + " --only " + quoted(rows.dataset.case));
      code.className = "command";
      dd.append(code);
      told.append(dd);
      copied(code);
    });
    var box = made("div");
    box.className = "scroll";
    box.append(table);
    return [box, told];
  };
  var open = function (name) {
    byId("panel-h").textContent = name.replace("/", " on ");
    body.replaceChildren();
    (rowsOf[name] || []).forEach(function (rows) {
      body.append(made("h3", rows.dataset.case));
      var whole = rows.dataset.id ? byId(rows.dataset.id) : null;
      if (whole) {
        var copy = whole.querySelector(".body").cloneNode(true);
        copy.querySelectorAll(".copy").forEach(function (one) { one.remove(); });
        body.append(copy);
        copy.querySelectorAll("code.command").forEach(copied);
      } else {
        sheet(rows).forEach(function (part) { body.append(part); });
      }
    });
    panel.showModal();
    panel.scrollTop = 0;
  };
  if (map) {
    var cells = Array.prototype.slice.call(map.querySelectorAll("a[data-cell]"));
    cells.forEach(function (cell, number) { cell.tabIndex = number ? -1 : 0; });
    var stop = cells[0];
    var go = function (cell) {
      if (!cell) return;
      if (stop) stop.tabIndex = -1;
      stop = cell;
      cell.tabIndex = 0;
      cell.focus();
    };
    map.addEventListener("click", function (event) {
      var cell = event.target.closest("a[data-cell]");
      if (!cell || event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(cell);
      history.replaceState(null, "", cell.getAttribute("href"));
      open(cell.dataset.cell);
    });
    map.addEventListener("keydown", function (event) {
      var cell = event.target.closest("a[data-cell]");
      var step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!cell || !step) return;
      event.preventDefault();
      var row = cell.closest("tr").rowIndex, column = cell.closest("td").cellIndex;
      for (row += step[0], column += step[1]; map.rows[row] && map.rows[row].cells[column]; row += step[0], column += step[1]) {
        var next = map.rows[row].cells[column].querySelector("a[data-cell]");
        if (next) { go(next); return; }
      }
    });
    var only = byId("only-differing");
    if (only) only.addEventListener("change", function () { map.classList.toggle("only-differing", only.checked); });
  }
  byId("close").addEventListener("click", function () { panel.close(); });
  panel.addEventListener("click", function (event) {
    if (event.target === panel) panel.close();
    var link = event.target.closest("a[href^='#']");
    if (link) { panel.close(); setTimeout(reveal); }
  });
  panel.addEventListener("close", function () { if (stop) stop.focus({ preventScroll: true }); });

  // The table of cases: every word must be in a case's lines.
  var words = byId("filter"), verdict = byId("filter-verdict"), told = byId("filtered");
  var every = Array.prototype.map.call(document.querySelectorAll("#rows > tbody"), function (rows) {
    return { rows: rows, text: null };
  });
  var filter = function () {
    var wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean), shown = 0;
    every.forEach(function (one) {
      if (one.text === null) one.text = one.rows.textContent.toLowerCase();
      var met = wanted.every(function (word) { return one.text.indexOf(word) >= 0; }) &&
        (!verdict.value || one.rows.querySelector(".t-" + verdict.value));
      one.rows.hidden = !met;
      if (met) shown += 1;
    });
    told.textContent = wanted.length || verdict.value ? shown + " of " + every.length + " cases" : "";
  };
  words.addEventListener("input", filter);
  verdict.addEventListener("change", filter);
})();
