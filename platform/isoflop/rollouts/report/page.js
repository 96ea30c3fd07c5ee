"use strict";
(async () => {
  const byId = name => document.getElementById(name);
  const make = (kind, style, text) => {
    const made = document.createElement(kind);
    if (style) made.className = style;
    if (text !== undefined) made.textContent = text; // never as markup: it is a model's
    return made;
  };
  const open = async name => {
    const packed = Uint8Array.from(atob(byId("data-" + name).textContent), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  };
  const about = await open("about");
  const opened = new Map(); // rows of a run: read when it is first shown
  const rowsOf = run => {
    if (!opened.has(run)) opened.set(run, open(run));
    return opened.get(run);
  };
  const PROMPT = 0, SAMPLE = 1, TEXT = 2, SPANS = 3, DIGITS = 4, LOOP = 5, COPY = 6, ENDED = 7, VALUES = 8;
  const MOST_COLUMNS = 12, MOST_CARDS = 10;
  const { selection } = about;
  const thinned = selection.rows < selection.written
    ? ` The page holds ${selection.rows.toLocaleString("en")} of ${selection.written.toLocaleString("en")} rollouts: `
      + `up to ${selection.captures} captures a run, ${selection.samples} samples a prompt.` : "";
  byId("about").textContent = `${about.runs.length} runs, ${about.prompts.length} prompts, `
    + `${selection.written.toLocaleString("en")} rollouts.${thinned}`;

  const shown = text => text === "" ? "(empty prompt)" : text.replace(/\s+/g, " ").slice(0, 60);
  about.prompts.forEach((text, index) => byId("prompt").add(new Option(shown(text), index)));
  for (let i = 0; i < selection.samples; i++) byId("sample").add(new Option(i, i));
  about.names.forEach((name, index) => byId("metric").add(new Option(name.replaceAll("_", " "), index)));

  const chosenRuns = () => {
    const words = byId("runs").value.toLowerCase().split(/\s+/).filter(Boolean);
    return about.runs.map((run, index) => index).filter(index =>
      words.every(word => (about.runs[index].label + " " + about.runs[index].run).toLowerCase().includes(word)));
  };
  const number = value => value === null || value === undefined ? "none"
    : Number.isInteger(value) ? String(value) : Number(value).toPrecision(3);
  const within = row => {
    const value = row[VALUES][byId("metric").value], least = byId("least").value, most = byId("most").value;
    if (least === "" && most === "") return true;
    return value !== null && (least === "" || value >= +least) && (most === "" || value <= +most);
  };
  const search = () => byId("find").value.toLowerCase();
  const passes = row => within(row) && (!search() || row[TEXT].toLowerCase().includes(search()));

  // Text in pieces that begin wherever a token, a loop, a copy or a hit begins or ends.
  const written = row => {
    const box = make("div", "text"), text = row[TEXT], spans = row[SPANS], marks = [];
    const ends = [0];
    (spans || []).forEach(length => ends.push(ends[ends.length - 1] + length));
    const stretch = (from, to, style) => { if (to > from) marks.push([from, to, style]); };
    if (spans && byId("shade").checked) spans.forEach((_, i) => {
      if (row[DIGITS][i] < 7) stretch(ends[i], ends[i + 1], "p" + row[DIGITS][i]);
    });
    if (spans && row[LOOP] !== null) stretch(ends[row[LOOP]], text.length, "loop");
    if (spans && row[COPY]) stretch(ends[row[COPY][0]], ends[Math.min(spans.length, row[COPY][0] + row[COPY][1])], "copy");
    const wanted = search();
    if (wanted) for (let at = text.toLowerCase().indexOf(wanted); at >= 0; at = text.toLowerCase().indexOf(wanted, at + 1))
      stretch(at, at + wanted.length, "found");
    const cuts = [...new Set([0, text.length, ...marks.flatMap(mark => mark.slice(0, 2))])].sort((a, b) => a - b);
    let active = [], next = 0;
    marks.sort((a, b) => a[0] - b[0]);
    cuts.slice(0, -1).forEach((from, index) => {
      while (next < marks.length && marks[next][0] <= from) active.push(marks[next++]);
      active = active.filter(mark => mark[1] > from);
      const styles = active.map(mark => mark[2]), part = text.slice(from, cuts[index + 1]);
      if (!styles.length) { box.append(part); return; }
      const piece = make(styles.includes("found") ? "mark" : "span", styles.filter(s => s !== "found").join(" "), part);
      box.append(piece);
    });
    if (row[ENDED]) box.append(make("span", "end", " ∎"));
    return box;
  };
  const facts = row => {
    const names = ["surprise", "repetition", "loop_onset", "length"].filter(name => about.names.includes(name));
    return make("div", "facts", names.map(name =>
      [name.replaceAll("_", " "), row[VALUES][about.names.indexOf(name)]]).filter(([, value]) => value !== null)
      .map(([name, value]) => `${name} ${number(value)}`).join(" · "));
  };
  const given = prompt => make("div", "text given", about.prompts[prompt] || "(empty prompt)");
  const find = (rows, prompt, sample) => (rows || []).find(row => row[PROMPT] === prompt && row[SAMPLE] === sample);

  const side = async into => {
    const runs = chosenRuns(), seen = runs.slice(0, MOST_COLUMNS), prompt = +byId("prompt").value, sample = +byId("sample").value;
    const all = await Promise.all(seen.map(rowsOf));
    const table = make("table", "grid"), head = make("thead"), top = make("tr"), body = make("tbody");
    top.append(make("th", "", "capture"));
    seen.forEach(index => {
      const run = about.runs[index], cell = make("th", "", run.label);
      cell.append(make("div", "facts", `loss ${number(run.loss)}`));
      top.append(cell);
    });
    head.append(top);
    // Runs differ in length, so a row is the nth capture, and the ends stand together.
    const longest = Math.max(0, ...seen.map(index => about.runs[index].steps.length));
    for (let place = 0; place < longest; place++) {
      const line = make("tr"), end = longest > 1 && place === longest - 1;
      line.append(make("th", "", place === 0 ? "first" : end ? "last" : `${place + 1}`));
      seen.forEach((index, column) => {
        const steps = about.runs[index].steps, own = end ? steps.length - 1 : place < steps.length - 1 || longest === 1 ? place : -1;
        const cell = make("td"), row = find(all[column][steps[own]], prompt, sample);
        if (!row) cell.append(make("span", "none", "not written"));
        else if (!passes(row)) cell.append(make("span", "none", `step ${steps[own]}: filtered out`));
        else cell.append(make("div", "facts", `step ${steps[own]}`), written(row), facts(row));
        line.append(cell);
      });
      body.append(line);
    }
    table.append(head, body);
    const wide = make("div", "wide");
    wide.append(table);
    into.replaceChildren(given(prompt), wide);
    if (runs.length > seen.length) into.append(make("p", "soft", `The first ${seen.length} of ${runs.length} runs; name fewer to see the others.`));
    if (!runs.length) into.append(make("p", "soft", "No run has such a label."));
  };

  const NS = "http://www.w3.org/2000/svg";
  const draw = (parent, kind, values) => {
    const made = document.createElementNS(NS, kind);
    Object.entries(values).forEach(([name, value]) => made.setAttribute(name, value));
    parent.append(made);
    return made;
  };
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444", "#8c6d31"];
  let curves;
  const strip = (name, seen, described) => {
    const lines = seen.map(index => (curves[index][name] || [])).filter(points => points.length);
    if (!lines.length) return null;
    const human = (about.reference[name] || []).filter(value => value !== null), points = lines.flat();
    const values = [...points.flatMap(point => point.slice(1)).filter(value => value !== null), ...human];
    let low = Math.min(...values), high = Math.max(...values);
    if (low === high) { low -= .5; high += .5; }
    const last = Math.max(...points.map(point => point[0]), 1);
    const x = step => 40 + 270 * Math.log1p(step) / Math.log1p(last), y = value => 125 - 110 * (value - low) / (high - low);
    const figure = make("figure"), svg = draw(figure, "svg", { viewBox: "0 0 320 150", role: "img", "aria-label": name });
    if (human.length) draw(svg, "rect", { x: 40, width: 270, fill: "#00000018", y: y(Math.max(...human)) - 1,
      height: Math.max(2, y(Math.min(...human)) - y(Math.max(...human))) });
    [low, high].forEach(value => { draw(svg, "text", { x: 36, y: y(value) + 4, "text-anchor": "end" }).textContent = number(value); });
    draw(svg, "text", { x: 310, y: 144, "text-anchor": "end" }).textContent = `step ${last} (log)`;
    draw(svg, "text", { x: 40, y: 144 }).textContent = "0";
    seen.forEach((index, place) => {
      const own = curves[index][name] || [], colour = COLOURS[place % COLOURS.length];
      const band = own.filter(point => point[2] !== null && point[3] !== null);
      if (band.length > 1) draw(svg, "polygon", { fill: colour, opacity: .12, points: [...band.map(p => `${x(p[0])},${y(p[3])}`),
        ...band.reverse().map(p => `${x(p[0])},${y(p[2])}`)].join(" ") });
      const line = draw(svg, "polyline", { fill: "none", stroke: colour, "stroke-width": 1.4, points: own.map(p => `${x(p[0])},${y(p[1])}`).join(" ") });
      draw(line, "title", {}).textContent = about.runs[index].label;
      own.forEach(p => draw(svg, "circle", { cx: x(p[0]), cy: y(p[1]), r: 2, fill: colour }));
    });
    figure.append(make("figcaption", "", described ? `${name.replaceAll("_", " ")} (${described.unit}): ${described.description}` : name));
    return figure;
  };
  const strips = async into => {
    curves = curves || await open("curves");
    const seen = chosenRuns().slice(0, MOST_COLUMNS), grid = make("div", "strips"), key = make("p", "soft");
    seen.forEach((index, place) => {
      const item = make("span", "", "● " + about.runs[index].label + "  ");
      item.style.color = COLOURS[place % COLOURS.length];
      key.append(item);
    });
    const names = [...new Set(seen.flatMap(index => Object.keys(curves[index])))];
    names.forEach(name => {
      const figure = strip(name, seen, about.metrics.find(metric => name.split("/").pop() === metric.name));
      if (figure) grid.append(figure);
    });
    const held = Object.keys(about.reference).length ? "The grey band is held-out text of the same length, with its interval." : "";
    into.replaceChildren(make("p", "soft", `Means with 95 % intervals over prompts, at every capture. ${held}`), key, grid);
  };

  const card = (item, value) => {
    const made = make("div", "card"), row = item.row;
    made.append(make("div", "facts", `${value} · ${about.runs[item.run].label} · step ${item.step} · sample ${row[SAMPLE]}`),
      make("div", "text none", shown(about.prompts[row[PROMPT]])), written(row));
    return made;
  };
  const ranked = async into => {
    const seen = chosenRuns(), metric = +byId("metric").value, found = [];
    for (const run of seen.slice(0, 40)) { // the newest captures: what the runs have become
      const rows = await rowsOf(run), step = about.runs[run].steps.at(-1);
      for (const row of rows[step] || []) if (row[VALUES][metric] !== null && passes(row)) found.push({ run, step, row });
    }
    found.sort((a, b) => a.row[VALUES][metric] - b.row[VALUES][metric]);
    const pair = make("div", "pair"), name = about.names[metric].replaceAll("_", " ");
    [["lowest", found.slice(0, MOST_CARDS)], ["highest", found.slice(-MOST_CARDS).reverse()]].forEach(([title, items]) => {
      const box = make("div");
      box.append(make("h2", "", `${title} ${name}`));
      items.forEach(item => box.append(card(item, number(item.row[VALUES][metric]))));
      pair.append(box);
    });
    const direction = (about.metrics.find(m => m.name === about.names[metric]) || {}).direction;
    const says = { up: "Higher is better.", down: "Lower is better.", band: "Neither end is good: compare with held-out text." }[direction] || "";
    into.replaceChildren(make("p", "soft", `${found.length} rollouts at the last capture of ${Math.min(40, seen.length)} runs. ${says}`), pair);
  };

  // The longest common subsequence of words; completions are short enough for the plain table.
  const differences = (a, b) => {
    const width = b.length + 1, table = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--)
      table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    const parts = [];
    let i = 0, j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) { parts.push(["both", a[i++]]); j++; }
      else if (j >= b.length || (i < a.length && table[(i + 1) * width + j] >= table[i * width + j + 1])) parts.push(["del", a[i++]]);
      else parts.push(["ins", b[j++]]);
    }
    return parts;
  };
  const words = text => text.match(/\s+|\w+|[^\s\w]/g) || [];
  const picks = { one: 0, two: Math.max(0, about.runs.length - 1), at: [-1, -1] };
  const diff = async into => {
    const bar = make("div", "row"), prompt = +byId("prompt").value;
    const pick = (name, place) => {
      const select = make("select"), step = make("select"), run = about.runs[picks[name]];
      about.runs.forEach((each, index) => select.add(new Option(each.label, index)));
      run.steps.forEach((each, index) => step.add(new Option(`step ${each}`, index)));
      select.value = picks[name];
      if (picks.at[place] < 0 || picks.at[place] >= run.steps.length) picks.at[place] = run.steps.length - 1;
      step.value = picks.at[place];
      select.addEventListener("change", () => { picks[name] = +select.value; picks.at[place] = -1; refresh(); });
      step.addEventListener("change", () => { picks.at[place] = +step.value; refresh(); });
      select.setAttribute("aria-label", name);
      bar.append(select, step);
      return { run: picks[name], step: run.steps[picks.at[place]] };
    };
    const one = pick("one", 0);
    bar.append("against");
    const two = pick("two", 1);
    const [a, b] = [(await rowsOf(one.run))[one.step] || [], (await rowsOf(two.run))[two.step] || []];
    into.replaceChildren(bar, given(prompt));
    for (let sample = 0; sample < selection.samples; sample++) {
      const first = find(a, prompt, sample), second = find(b, prompt, sample);
      if (!first || !second) continue;
      const box = make("div", "card"), text = make("div", "text");
      differences(words(first[TEXT]), words(second[TEXT])).forEach(([kind, part]) =>
        text.append(kind === "both" ? part : make(kind, "", part)));
      box.append(make("div", "facts", `sample ${sample}: struck out is the first run's alone, green the second's`), text);
      into.append(box);
    }
  };

  const preferences = [];
  const blind = async into => {
    const runs = chosenRuns();
    if (runs.length < 2) { into.replaceChildren(make("p", "soft", "Blind pairs need two runs.")); return; }
    const any = list => list[Math.floor(Math.random() * list.length)];
    const first = any(runs), second = any(runs.filter(run => run !== first));
    const prompt = Math.floor(Math.random() * about.prompts.length), sample = Math.floor(Math.random() * selection.samples);
    const sides = [];
    for (const run of [first, second]) {
      const step = about.runs[run].steps.at(-1);
      sides.push({ run, step, row: find((await rowsOf(run))[step], prompt, sample) });
    }
    if (sides.some(side => !side.row)) { into.replaceChildren(make("p", "soft", "These two have no rollout in common."), next()); return; }
    const pair = make("div", "pair"), bar = make("div", "row");
    sides.forEach((side, index) => {
      const box = make("div");
      box.append(make("h2", "", "AB"[index]), make("div", "text", side.row[TEXT])); // no marks: they tell runs apart
      pair.append(box);
    });
    [["A is better", "a"], ["B is better", "b"], ["equal", "tie"]].forEach(([label, preferred]) => {
      const button = make("button", "", label);
      button.addEventListener("click", () => {
        const of = side => ({ run: about.runs[side.run].run, step: side.step, completion: side.row[TEXT] });
        preferences.push({ study: about.study, prompt: about.prompts[prompt], sample, a: of(sides[0]), b: of(sides[1]), preferred });
        refresh();
      });
      bar.append(button);
    });
    bar.append(next(), save());
    into.replaceChildren(make("p", "soft", "Two runs, same prompt and seed; which is which is not shown. Filter the runs above."), given(prompt), pair, bar);
  };
  const next = () => {
    const button = make("button", "", "skip");
    button.addEventListener("click", () => refresh());
    return button;
  };
  const save = () => {
    const button = make("button", "", `save ${preferences.length} as JSONL`);
    button.id = "save";
    button.disabled = !preferences.length;
    button.addEventListener("click", () => {
      const link = make("a");
      link.href = URL.createObjectURL(new Blob(preferences.map(each => JSON.stringify(each) + "\n"), { type: "application/jsonl" }));
      link.download = `${about.study}-preferences.jsonl`;
      link.click();
    });
    return button;
  };

  const tabs = { side, strips, ranked, diff, blind };
  let current = "side", asked = 0;
  const refresh = async () => {
    const mine = ++asked, into = make("section");
    into.id = current;
    await tabs[current](into);
    if (mine !== asked) return; // somebody has asked for something else meanwhile
    Object.keys(tabs).forEach(name => { byId(name).hidden = name !== current; });
    byId(current).replaceWith(into);
    document.body.dataset.ready = mine;
  };
  document.querySelectorAll("[data-tab]").forEach(button => button.addEventListener("click", () => {
    current = button.dataset.tab;
    document.querySelectorAll("[data-tab]").forEach(each => each.setAttribute("aria-selected", each === button));
    refresh();
  }));
  let waiting;
  byId("choices").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  await refresh();
})();
