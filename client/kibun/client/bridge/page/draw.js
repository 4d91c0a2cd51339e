// Pictures on canvases, in the colours of the style sheet. Each also says in words what it shows.

import { TRAITS } from "./state.js";

const WINDOW_S = 12;
const LETTERS = ["O", "C", "E", "A", "N"];

/** The canvas at the screen's resolution, cleared; coordinates are CSS pixels. */
function prepare(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const scale = devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const g = canvas.getContext("2d");
  g.setTransform(scale, 0, 0, scale, 0, 0);
  g.clearRect(0, 0, width, height);
  g.font = "12px system-ui, sans-serif";
  g.lineJoin = "round";
  return { g, width, height };
}

export function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return {
    text: of("--text"), muted: of("--muted"), line: of("--line"), card: of("--card"),
    speakers: [of("--first"), of("--second"), of("--third"), of("--fourth")],
    traits: LETTERS.map((letter) => of(`--${letter}`)),
  };
}

function say(canvas, text) {
  if (canvas.getAttribute("aria-label") !== text) canvas.setAttribute("aria-label", text);
}

/** The mark of the n-th participant, so that colour is not all that tells them apart. */
export function mark(g, shape, x, y, r) {
  g.beginPath();
  if (shape === 0) g.arc(x, y, r, 0, 2 * Math.PI);
  else if (shape === 1) g.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
  else if (shape === 2) { g.moveTo(x, y - r * 1.2); g.lineTo(x + r * 1.1, y + r * 0.8); g.lineTo(x - r * 1.1, y + r * 0.8); g.closePath(); }
  else { g.moveTo(x, y - r * 1.2); g.lineTo(x + r * 1.2, y); g.lineTo(x, y + r * 1.2); g.lineTo(x - r * 1.2, y); g.closePath(); }
}

// ---- waveform

export function drawWave(canvas, participant, colour, c) {
  const { g, width, height } = prepare(canvas);
  const end = Math.max(participant.time, WINDOW_S);
  const x = (time) => ((time - end) / WINDOW_S + 1) * width;
  const bottom = height - 16;
  const middle = bottom / 2;
  g.fillStyle = colour;
  g.globalAlpha = 0.16;
  for (const [from, to] of participant.speech.items) {
    const right = x(to ?? participant.time);
    if (right > 0) g.fillRect(x(from), 0, right - x(from), bottom);
  }
  g.globalAlpha = 1;
  g.strokeStyle = c.line;
  line(g, 0, middle, width, middle);
  const bins = participant.bins.items;
  // Soft voices fill the strip as well as loud ones; silence stays flat.
  const loudest = bins.reduce((most, [low, high]) => Math.max(most, high, -low), 0.05);
  const perBin = width * 0.02 / WINDOW_S;
  let at = x(participant.time);
  for (let i = bins.length - 1; i >= 0 && at > 0; i--, at -= perBin) {
    const [low, high] = bins[i];
    const up = (high / loudest) * (middle - 4), down = (-low / loudest) * (middle - 4);
    g.fillRect(at - perBin, middle - up, Math.max(perBin - 0.3, 0.7), Math.max(up + down, 1));
  }
  g.strokeStyle = c.text;
  g.lineWidth = 1.5;
  for (const [from, to] of participant.utterances.items) {
    if (x(to) > 0) bracket(g, x(from), x(to), bottom);
  }
  g.lineWidth = 1;
  g.fillStyle = c.muted;
  g.textAlign = "center";
  for (let time = Math.ceil((end - WINDOW_S) / 2) * 2; time <= end; time += 2) {
    if (x(time) > 12 && x(time) < width - 12) g.fillText(`${time} s`, x(time), height - 3);
  }
  const utterance = participant.utterances.last;
  say(canvas, `Sound of ${participant.name}: ${participant.state}; shaded where speech was found`
    + (utterance ? `; last utterance ${utterance[0].toFixed(1)} to ${utterance[1].toFixed(1)} seconds` : ""));
}

function bracket(g, from, to, bottom) {
  g.beginPath();
  g.moveTo(from, bottom - 8);
  g.lineTo(from, bottom - 1);
  g.lineTo(to, bottom - 1);
  g.lineTo(to, bottom - 8);
  g.stroke();
}

function line(g, x1, y1, x2, y2) {
  g.beginPath();
  g.moveTo(x1, y1);
  g.lineTo(x2, y2);
  g.stroke();
}

// ---- valence and arousal

export function drawPlane(canvas, participants, c) {
  const { g, width, height } = prepare(canvas);
  const [left, right, top, bottom] = [44, width - 14, 12, height - 36];
  const x = (valence) => left + ((clip(valence, 1, 5) - 1) / 4) * (right - left);
  const y = (arousal) => bottom - ((clip(arousal, 1, 5) - 1) / 4) * (bottom - top);
  g.textAlign = "center";
  for (let value = 1; value <= 5; value++) {
    g.strokeStyle = value === 3 ? c.muted : c.line;
    line(g, x(value), top, x(value), bottom);
    line(g, left, y(value), right, y(value));
    g.fillStyle = c.muted;
    g.fillText(value, x(value), bottom + 15);
    g.fillText(value, left - 11, y(value) + 4);
  }
  g.fillStyle = c.text;
  g.fillText("unpleasant ← valence → pleasant", (left + right) / 2, height - 4);
  g.save();
  g.translate(12, (top + bottom) / 2);
  g.rotate(-Math.PI / 2);
  g.fillText("calm ← arousal → excited", 0, 0);
  g.restore();
  participants.forEach((participant, n) => trajectory(g, participant, n, x, y, c));
  const said = participants.filter(({ finals }) => finals.last).map(({ name, finals: { last } }) =>
    `${name}: valence ${last.valence.toFixed(2)}, arousal ${last.arousal.toFixed(2)}`);
  say(canvas, `Valence and arousal, 1 to 5. ${said.join("; ") || "Nothing heard yet"}`);
}

function trajectory(g, { name, finals, interims }, n, x, y, c) {
  const shown = finals.items.slice(-24);
  const colour = c.speakers[n % 4];
  g.strokeStyle = g.fillStyle = colour;
  shown.forEach(({ valence, arousal }, i) => {
    const age = (i + 1) / shown.length;
    g.globalAlpha = 0.25 + 0.75 * age;
    if (i) line(g, x(shown[i - 1].valence), y(shown[i - 1].arousal), x(valence), y(arousal));
    mark(g, n % 4, x(valence), y(arousal), i === shown.length - 1 ? 8 : 4);
    g.fill();
  });
  const last = finals.last;
  g.globalAlpha = 0.55;
  interims.items.forEach(({ valence, arousal }) => { mark(g, n % 4, x(valence), y(arousal), 6); g.stroke(); });
  g.globalAlpha = 1;
  if (last) {
    g.strokeStyle = c.card;
    g.lineWidth = 1.5;
    mark(g, n % 4, x(last.valence), y(last.arousal), 8);
    g.stroke();
    g.lineWidth = 1;
    label(g, name, x(last.valence), y(last.arousal) + (last.arousal > 4.5 ? 22 : -13), c);
  }
}

function label(g, text, x, y, c) {
  const half = g.measureText(text).width / 2;
  const limit = g.canvas.width / (devicePixelRatio || 1);
  const at = clip(x, half + 4, limit - half - 4);
  g.lineWidth = 4;
  g.strokeStyle = c.card;
  g.strokeText(text, at, y);
  g.lineWidth = 1;
  g.fillStyle = c.text;
  g.fillText(text, at, y);
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);

// ---- personality

export function drawRadar(canvas, participant, colour, c) {
  const { g, width, height } = prepare(canvas);
  const [cx, cy] = [width / 2, height / 2 + 6];
  const radius = Math.min(width, height) / 2 - 18;
  const point = (i, value) => {
    const angle = -Math.PI / 2 + (i * 2 * Math.PI) / 5;
    const r = ((clip(value, 1, 7) - 1) / 6) * radius;
    return [cx + r * Math.cos(angle), cy + r * Math.sin(angle)];
  };
  const outline = (values) => {
    g.beginPath();
    values.forEach((value, i) => g[i ? "lineTo" : "moveTo"](...point(i, value)));
    g.closePath();
  };
  g.strokeStyle = c.line;
  for (const value of [3, 5, 7]) { outline(Array(5).fill(value)); g.stroke(); }
  g.strokeStyle = c.muted;
  outline(Array(5).fill(4));
  g.setLineDash([2, 3]);
  g.stroke();
  g.setLineDash([]);
  const estimate = participant.personality;
  const doubtful = participant.doubtful;
  g.textAlign = "center";
  TRAITS.forEach((trait, i) => {
    g.strokeStyle = c.line;
    line(g, cx, cy, ...point(i, 7));
    const [x, y] = point(i, 7);
    const further = (radius + 11) / radius;
    g.fillStyle = doubtful.includes(trait) ? c.muted : c.text;
    g.fillText(LETTERS[i] + (doubtful.includes(trait) ? "?" : ""), cx + (x - cx) * further, cy + (y - cy) * further + 4);
  });
  if (!estimate) {
    say(canvas, `Apparent personality of ${participant.name}: not estimated yet`);
    return;
  }
  const { traits, expected_error: error } = estimate;
  const values = TRAITS.map((trait) => traits[trait]);
  if (error) {
    g.fillStyle = colour;
    g.globalAlpha = 0.2;
    g.beginPath();
    TRAITS.forEach((trait, i) => g[i ? "lineTo" : "moveTo"](...point(i, traits[trait] + error[trait])));
    g.closePath();
    // The band: the outer outline with the inner one cut out.
    [...TRAITS].reverse().forEach((trait, j) => {
      const i = 4 - j;
      g[j ? "lineTo" : "moveTo"](...point(i, traits[trait] - error[trait]));
    });
    g.closePath();
    g.fill("evenodd");
    g.globalAlpha = 1;
  }
  g.strokeStyle = colour;
  g.lineWidth = 2;
  outline(values);
  g.stroke();
  g.lineWidth = 1;
  g.fillStyle = colour;
  values.forEach((value, i) => { g.beginPath(); g.arc(...point(i, value), 3, 0, 2 * Math.PI); g.fill(); });
  say(canvas, `Apparent personality of ${participant.name}, 1 to 7: ${TRAITS.map((trait, i) =>
    `${trait} ${values[i].toFixed(1)}${error ? ` ± ${error[trait].toFixed(1)}` : ""}`).join(", ")}`);
}

export function drawCourse(canvas, participant, c) {
  const { g, width, height } = prepare(canvas);
  const [left, right, top, bottom] = [18, width - 18, 8, height - 20];
  const shown = participant.course.items.slice(-40);
  const x = (i) => left + (shown.length > 1 ? i / (shown.length - 1) : 0.5) * (right - left);
  const y = (value) => bottom - ((clip(value, 1, 7) - 1) / 6) * (bottom - top);
  g.textAlign = "center";
  for (const value of [1, 4, 7]) {
    g.strokeStyle = c.line;
    line(g, left, y(value), right, y(value));
    g.fillStyle = c.muted;
    g.fillText(value, 7, y(value) + 4);
  }
  const total = participant.personality?.utterance_count ?? 0;
  g.fillText(total ? `${total} utterance${total > 1 ? "s" : ""}` : "utterances", (left + right) / 2, height - 4);
  const ends = [];
  TRAITS.forEach((trait, i) => {
    g.strokeStyle = g.fillStyle = c.traits[i];
    g.setLineDash(participant.doubtful.includes(trait) ? [3, 3] : []);
    g.lineWidth = 2;
    g.beginPath();
    shown.forEach(({ traits }, n) => g[n ? "lineTo" : "moveTo"](x(n), y(traits[trait])));
    g.stroke();
    if (shown.length) ends.push([i, y(shown.at(-1).traits[trait])]);
    if (shown.length === 1) { g.beginPath(); g.arc(x(0), y(shown[0].traits[trait]), 3, 0, 2 * Math.PI); g.fill(); }
  });
  g.setLineDash([]);
  g.lineWidth = 1;
  ends.sort((a, b) => a[1] - b[1]);
  let free = -Infinity;
  for (const [i, at] of ends) { // letters that would lie over each other are moved apart
    const where = Math.max(at, free);
    g.fillStyle = c.traits[i];
    g.fillText(LETTERS[i], width - 8, where + 4);
    free = where + 12;
  }
  say(canvas, `Course of the traits of ${participant.name} over ${shown.length} utterances`);
}
