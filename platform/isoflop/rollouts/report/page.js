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
  const sets = [...new Set(about.prompts.map(([spec]) => spec))], called = spec => spec || "own prompts";
  sets.forEach(spec => {
    const group = make("optgroup");
    group.label = called(spec);
    about.prompts.forEach(([own, text], index) => { if (own === spec) group.append(new Option(shown(text), index)); });
    byId("prompt").append(...(sets.length > 1 ? [group] : group.children));
  });
  for (let i = 0; i < selection.samples; i++) byId("sample").add(new Option(i, i));
  about.names.forEach((name, index) => byId("metric").add(new Option(name.replaceAll("_", " "), index)));

  const chosenRuns = () => {
    const words = byId("runs").value.toLowerCase().split(/\s+/).filter(Boolean);
    return about.runs.map((run, index) => index).filter(index =>
      words.every(word => (about.runs[index].label + " " + about.runs[index].run).toLowerCase().includes(word)));
  };
  const number = (value, digits = 3) => value === null || value === undefined ? "none"
    : Number.isInteger(value) ? String(value) : String(Number(Number(value).toPrecision(digits)));
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
    const copied = spans && row[COPY] || [];
    for (let i = 0; i < copied.length; i += 2)
      stretch(ends[copied[i]], ends[Math.min(spans.length, copied[i] + copied[i + 1])], "copy");
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
    const names = ["surprise", "repetition", "loop_onset", "longest_copy", "length"].filter(name => about.names.includes(name));
    return make("div", "facts", names.map(name =>
      [name.replaceAll("_", " "), row[VALUES][about.names.indexOf(name)]]).filter(([, value]) => value !== null)
      .map(([name, value]) => `${name} ${number(value)}`).join(" · "));
  };
  const given = prompt => make("div", "text given", about.prompts[prompt][1] || "(empty prompt)");
  const find = (rows, prompt, sample) => (rows || []).find(row => row[PROMPT] === prompt && row[SAMPLE] === sample);

  const side = async into => {
    const runs = chosenRuns(), seen = runs.slice(0, MOST_COLUMNS), prompt = +byId("prompt").value, sample = +byId("sample").value;
    const all = await Promise.all(seen.map(rowsOf));
    const table = make("table", "grid"), head = make("thead"), top = make("tr"), body = make("tbody");
    top.append(make("th", "", "capture"));
    seen.forEach(index => {
      const run = about.runs[index], cell = make("th", "", run.label);
      cell.append(make("div", "facts", run.loss === null ? "not finished" : `loss ${number(run.loss)}`));
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
  const dashed = place => place < COLOURS.length ? {} : { "stroke-dasharray": "4 2" };
  let curves;
  const strip = (name, seen, described) => {
    const lines = seen.map(index => (curves.means[index][name] || [])).filter(points => points.length);
    if (!lines.length) return null;
    const human = (about.reference[name] || []).filter(value => value !== null), points = lines.flat();
    const values = [...points.flatMap(point => point.slice(1)).filter(value => value !== null), ...human];
    let low = Math.min(...values), high = Math.max(...values);
    if (low === high) { low -= .5; high += .5; }
    const last = Math.max(...points.map(point => point[0]), 1);
    const x = step => 46 + 264 * Math.log1p(step) / Math.log1p(last), y = value => 125 - 110 * (value - low) / (high - low);
    const figure = make("figure"), svg = draw(figure, "svg", { viewBox: "0 0 320 150", role: "img", "aria-label": name });
    if (human.length) draw(svg, "rect", { x: 46, width: 264, fill: "#00000018", y: y(Math.max(...human)) - 1,
      height: Math.max(2, y(Math.min(...human)) - y(Math.max(...human))) });
    [low, high].forEach(value => { draw(svg, "text", { x: 43, y: y(value) + 4, "text-anchor": "end" }).textContent = number(value, 2); });
    draw(svg, "text", { x: 310, y: 144, "text-anchor": "end" }).textContent = `step ${last} (log)`;
    draw(svg, "text", { x: 46, y: 144 }).textContent = "0";
    seen.forEach((index, place) => {
      const own = curves.means[index][name] || [], colour = COLOURS[place % COLOURS.length];
      const band = own.filter(point => point[2] !== null && point[3] !== null);
      // Of more runs than a few, bands would hide each other: the interval at the end stands for all.
      const end = band.at(-1);
      if (seen.length > 4 && end) draw(svg, "line", { x1: x(end[0]), x2: x(end[0]), y1: y(end[2]), y2: y(end[3]), stroke: colour, opacity: .5 });
      else if (band.length > 1) draw(svg, "polygon", { fill: colour, opacity: .12, points: [...band.map(p => `${x(p[0])},${y(p[3])}`),
        ...band.reverse().map(p => `${x(p[0])},${y(p[2])}`)].join(" ") });
      const line = draw(svg, "polyline", { fill: "none", stroke: colour, "stroke-width": 1.4, ...dashed(place), points: own.map(p => `${x(p[0])},${y(p[1])}`).join(" ") });
      draw(line, "title", {}).textContent = about.runs[index].label;
      own.forEach(p => draw(svg, "circle", { cx: x(p[0]), cy: y(p[1]), r: 2, fill: colour }));
    });
    const rollouts = about.rows[name.includes("/") ? name.split("/")[0] : ""];
    const few = described && described.least > rollouts ? ` ${described.least} rollouts give it to 5 %; here are ${rollouts}.` : "";
    figure.append(make("figcaption", "", described ? `${shortly(name)} (${described.unit}): ${described.description}.${few}` : shortly(name)));
    return figure;
  };
  const shortly = name => name.split("/").pop().replaceAll("_", " ");
  // A line for each run of what changes along the text, at its last capture.
  const along = (title, seen, spec, points) => {
    const lines = seen.map(index => curves.courses[index][spec] ? points(curves.courses[index][spec]) : []);
    const all = lines.flat();
    if (!all.length) return null;
    const last = Math.max(...all.map(point => point[0]), 1), low = Math.min(0, ...all.map(point => point[1]));
    const high = Math.max(...all.map(point => point[1])) || 1;
    const x = token => 46 + 264 * token / last, y = value => 125 - 110 * (value - low) / (high - low);
    const figure = make("figure"), svg = draw(figure, "svg", { viewBox: "0 0 320 150", role: "img", "aria-label": title });
    [low, high].forEach(value => { draw(svg, "text", { x: 43, y: y(value) + 4, "text-anchor": "end" }).textContent = number(value, 2); });
    draw(svg, "text", { x: 310, y: 144, "text-anchor": "end" }).textContent = `token ${last}`;
    draw(svg, "text", { x: 46, y: 144 }).textContent = "0";
    lines.forEach((own, place) => {
      const line = draw(svg, "polyline", { fill: "none", stroke: COLOURS[place % COLOURS.length], "stroke-width": 1.4,
        ...dashed(place), points: own.map(p => `${x(p[0])},${y(p[1])}`).join(" ") });
      draw(line, "title", {}).textContent = about.runs[seen[place]].label;
    });
    figure.append(make("figcaption", "", title));
    return figure;
  };
  const entropies = found => found.entropy.map((value, token) => [token, value]).filter(point => point[1] !== null);
  const steps = found => found.times.flatMap((time, i) => [[time, i ? found.shares[i - 1] : 1], [time, found.shares[i]]])
    .concat([[found.entropy.length, found.shares.at(-1)]]);
  let drawn = sets[0];
  const strips = async into => {
    curves = curves || await open("curves");
    const seen = chosenRuns().slice(0, MOST_COLUMNS), grid = make("div", "strips"), key = make("p", "soft");
    seen.forEach((index, place) => {
      const item = make("span", "key", (place < COLOURS.length ? "● " : "○ ") + about.runs[index].label);
      item.style.color = COLOURS[place % COLOURS.length];
      key.append(item, " ");
    });
    const bar = make("div", "row"), select = make("select");
    sets.forEach(spec => select.add(new Option(called(spec), spec)));
    select.value = drawn;
    select.setAttribute("aria-label", "set of prompts");
    select.addEventListener("change", () => { drawn = select.value; refresh(); });
    if (sets.length > 1) bar.append("prompts:", select);
    const mine = name => (name.includes("/") ? name.split("/")[0] : "") === drawn;
    const names = [...new Set(seen.flatMap(index => Object.keys(curves.means[index])))].filter(mine);
    names.forEach(name => {
      const figure = strip(name, seen, about.metrics.find(metric => metric.name === name.split("/").pop()));
      if (figure) grid.append(figure);
    });
    [["entropy along the text (nats), at the last capture", entropies],
      ["share of rollouts not yet in a loop, along the text, at the last capture", steps]].forEach(([title, points]) => {
      const figure = along(title, seen, drawn, points);
      if (figure) grid.append(figure);
    });
    const held = Object.keys(about.reference).some(mine) ? "The grey band is held-out text of the same length, with its interval." : "";
    const others = chosenRuns().length - seen.length;
    const more = others > 0 ? ` ${others} more runs are not drawn; name fewer to see them.` : "";
    into.replaceChildren(make("p", "soft", `Means with 95 % intervals over prompts, at every capture. ${held}${more}`), bar, key, grid);
  };

  const card = (item, value) => {
    const made = make("div", "card"), row = item.row;
    made.append(make("div", "facts", `${value} · ${about.runs[item.run].label} · step ${item.step} · sample ${row[SAMPLE]}`),
      make("div", "text none", shown(about.prompts[row[PROMPT]][1])), written(row));
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
    const direction = (about.metrics.find(m => m.name === about.names[metric]) || {}).direction;
    const ends = { up: ["lowest: worst in", "highest: best in"], down: ["lowest: best in", "highest: worst in"] }[direction] || ["lowest", "highest"];
    [[ends[0], found.slice(0, MOST_CARDS)], [ends[1], found.slice(-MOST_CARDS).reverse()]].forEach(([title, items]) => {
      const box = make("div");
      box.append(make("h2", "", `${title} ${name}`));
      items.forEach(item => box.append(card(item, number(item.row[VALUES][metric]))));
      pair.append(box);
    });
    const human = sets.map(spec => [spec, about.reference[spec ? `${spec}/${about.names[metric]}` : about.names[metric]]]).filter(([, held]) => held);
    const held = human.map(([spec, [value, low, high]]) => `${number(value)} [${number(low)}, ${number(high)}]${sets.length > 1 ? ` (${called(spec)})` : ""}`);
    const says = ({ up: "Higher is better.", down: "Lower is better.", band: "Neither end is good." }[direction] || "") + (held.length ? ` Held-out text has ${held.join(", ")}.` : "");
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
  // Student's t: the probability of at least |t|, two-sided, by Simpson's rule on its density in an angle.
  const beyond = (t, freedom) => {
    const end = Math.atan(Math.abs(t) / Math.sqrt(freedom)), n = 400, f = angle => Math.cos(angle) ** (freedom - 1);
    const area = to => {
      let sum = f(0) + f(to);
      for (let i = 1; i < n; i++) sum += (i % 2 ? 4 : 2) * f(to * i / n);
      return sum * to / (3 * n);
    };
    return Math.max(0, 1 - area(end) / area(Math.PI / 2));
  };
  const within95 = freedom => {
    let low = 0, high = 1000;
    for (let i = 0; i < 60; i++) { const middle = (low + high) / 2; if (beyond(middle, freedom) > .05) low = middle; else high = middle; }
    return high;
  };
  const FEWEST = 5; // prompts
  // Pairs of the same prompt and seed; prompts are the sample, so errors are clustered by them (Liang & Zeger 1986).
  const paired = (a, b) => {
    const other = new Map(b.map(row => [row[PROMPT] + ":" + row[SAMPLE], row])), found = [];
    about.names.forEach((name, metric) => {
      const sums = new Map(), values = [];
      a.forEach(row => {
        const mate = other.get(row[PROMPT] + ":" + row[SAMPLE]), one = row[VALUES][metric], two = mate && mate[VALUES][metric];
        if (mate && one !== null && two !== null) values.push([row[PROMPT], two - one]);
      });
      if (!values.length) return;
      const mean = values.reduce((sum, [, value]) => sum + value, 0) / values.length;
      values.forEach(([prompt, value]) => sums.set(prompt, (sums.get(prompt) || 0) + value - mean));
      const G = sums.size, error = G < 2 ? 0 : Math.sqrt(G / (G - 1) * [...sums.values()].reduce((sum, x) => sum + x * x, 0)) / values.length;
      const known = error > 0 && G >= FEWEST, half = known ? within95(G - 1) * error : null;
      found.push({ name, mean, half, pairs: values.length, prompts: G, p: known ? beyond(mean / error, G - 1) : null });
    });
    let most = 0; // Holm's correction: all of them at once
    const tested = found.filter(each => each.p !== null).sort((x, y) => x.p - y.p);
    tested.forEach((each, i) => { most = Math.max(most, Math.min(1, each.p * (tested.length - i))); each.holm = most; });
    return [...tested, ...found.filter(each => each.p === null)];
  };
  const differing = (a, b) => {
    const table = make("table"), head = make("tr"), wide = make("div", "wide short");
    ["metric", "second less first", "95 % interval", "pairs", "prompts", "p", "p of all (Holm)"].forEach(text => head.append(make("th", "", text)));
    table.append(head);
    paired(a, b).forEach(each => {
      const line = make("tr", each.holm < .05 ? "sure" : "");
      const ends = each.half === null ? "none" : `${number(each.mean - each.half)} to ${number(each.mean + each.half)}`;
      const least = (about.metrics.find(metric => metric.name === each.name) || { least: 0 }).least;
      const pairs = each.pairs < least ? `${each.pairs} of ${least}` : each.pairs;
      [each.name.replaceAll("_", " "), number(each.mean), ends, pairs, each.prompts, number(each.p), number(each.holm)]
        .forEach(text => line.append(make("td", "", String(text))));
      table.append(line);
    });
    wide.append(table);
    return wide;
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
    const says = "Over all pairs of the same prompt and seed that the page holds; bold where no chance explains it, "
      + "all metrics together. Of so many pairs: the metric declares to need them, and with fewer a difference may not "
      + "show. isoflop rollouts --compare counts every row.";
    into.replaceChildren(bar, make("h2", "", "In numbers"), make("p", "soft", says), differing(a, b),
      make("h2", "", "In words"), given(prompt));
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
    const sides = [];
    for (const run of [first, second]) {
      const step = about.runs[run].steps.at(-1);
      sides.push({ run, step, rows: (await rowsOf(run))[step] || [] });
    }
    const common = sides[0].rows.filter(row => find(sides[1].rows, row[PROMPT], row[SAMPLE]));
    if (!common.length) { into.replaceChildren(make("p", "soft", "These two have no rollout in common."), next()); return; }
    const chosen = any(common), prompt = chosen[PROMPT], sample = chosen[SAMPLE];
    sides.forEach(side => { side.row = find(side.rows, prompt, sample); });
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
        preferences.push({ study: about.study, set: about.prompts[prompt][0], prompt: about.prompts[prompt][1], sample, a: of(sides[0]), b: of(sides[1]), preferred });
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
    document.querySelectorAll("[data-for]").forEach(each => { each.hidden = !each.dataset.for.split(" ").includes(current); });
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
