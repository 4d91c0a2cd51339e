// The console: puts sources, streams and pictures together.

import * as audio from "./audio.js";
import * as draw from "./draw.js";
import { Participant, Recent, seconds, TRAITS } from "./state.js";
import { BridgeGone, Stream, watch } from "./stream.js";

const $ = (id) => document.getElementById(id);
const LOG_LINES = 200;
const REFRESH_MS = 66;
const INFO_MS = 5000;

const participants = new Map(); // name -> {participant, card, stream, stop, n}
const latencies = new Recent(50);
const conversation = newConversation();
const live = new Set(); // what is open: {finish, end}
let dirty = true;
let info;
let bridgeAway = false;

function newConversation() {
  return `console-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
}

// ---- participants

function entry(name) {
  if (!participants.has(name)) {
    const n = participants.size;
    const card = $("participant-card").content.firstElementChild.cloneNode(true);
    card.dataset.participant = name;
    card.querySelector(".name").textContent = name;
    card.querySelector("h2").id = `title-${n}`;
    card.setAttribute("aria-labelledby", `title-${n}`);
    card.classList.add(`speaker-${n % 4}`);
    card.querySelector("svg").append(shape(n % 4));
    card.querySelector(".end").addEventListener("click", () => entry(name).stream?.endTurn());
    card.querySelector(".stop").addEventListener("click", () => entry(name).stop?.());
    for (const button of card.querySelectorAll("button")) button.setAttribute("aria-label", `${button.textContent} of ${name}`);
    $("participants").append(card);
    participants.set(name, { participant: new Participant(name), card, n });
  }
  return participants.get(name);
}

function shape(n) {
  const paths = ["M6 1a5 5 0 1 0 .01 0z", "M1.5 1.5h9v9h-9z", "M6 .8 11.5 10.5h-11z", "M6 .3 11.7 6 6 11.7.3 6z"];
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", paths[n]);
  return path;
}

// ---- streams

function openStream(name, rate, extra = {}) {
  const one = entry(name);
  const { participant } = one;
  const config = () => ({
    audio_config: { encoding: "AUDIO_ENCODING_FLOAT32", sample_rate_hertz: rate },
    conversation_id: conversation,
    participant_id: name,
    features: { interim_results: true, enable_voice_activity_events: true },
    ...($("give").checked && { given_personality: given() }),
    ...extra,
  });
  const stream = new Stream(config, $("token").value, {
    message: (message) => take(one, stream, message),
    error: (error) => fail(error),
    note: (text) => log(name, text),
    gone: () => { participant.interrupt(); gone(); },
    closed: () => {
      if (one.stream === stream) { one.stream = undefined; one.stop?.(); one.stop = undefined; }
      buttons(one);
    },
  });
  one.stream = stream;
  participant.begin(seconds(extra.audio_start_offset));
  buttons(one);
  return {
    stream,
    push(block) {
      if (stream.push(block)) participant.hear(block, rate);
      dirty = true;
    },
  };
}

function take(one, stream, message) {
  const { participant } = one;
  participant.apply(message, !one.stream || one.stream === stream);
  dirty = true;
  const { stream_started: started, stream_warning: warning, utterance_result: result, turn_result: turn } = message;
  if (started) {
    back();
    $("alert").replaceChildren();
    $("model").textContent = started.model;
    $("conversation").textContent = started.conversation_id;
    honest({ synthetic: started.synthetic_model, model: started.model });
    log(participant.name, started.prior_utterance_count ? "turn began" : "first turn began");
    buttons(one);
  } else if (warning) {
    if (warning.reason === "MODEL_UNTRAINED") honest({ untrained: true, model: $("model").textContent });
    log(participant.name, `${warning.message} (${warning.reason})`);
  } else if (result?.is_final) {
    const late = stream?.since(seconds(result.end_offset));
    if (late !== undefined) latencies.push(late);
    const { emotion } = result;
    const found = emotion ? `valence ${emotion.valence.toFixed(2)}, arousal ${emotion.arousal.toFixed(2)}` : "no emotion: too little speech, or turned off";
    log(participant.name, `${seconds(result.start_offset).toFixed(1)}–${seconds(result.end_offset).toFixed(1)} s: ${found}`);
  } else if (turn) {
    const count = turn.utterance_count ?? 0;
    log(participant.name, `turn over: ${count} utterance${count === 1 ? "" : "s"}, ${seconds(turn.speech_duration).toFixed(1)} s of speech`);
  }
}

function buttons({ card, stream }) {
  for (const button of card.querySelectorAll("button")) button.disabled = !stream || stream.over;
  $("start").textContent = live.size ? "Start another" : "Start";
}

// ---- sources

const SOURCES = { microphone: listen, file: playFile, demo: playDemo, watch: follow };

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const source = SOURCES[chosen()];
  const name = $("participant").value;
  if ((source === listen || source === playFile) && participants.get(name)?.stream) {
    fail({ reason: "PARTICIPANT_BUSY", message: `${name} is being listened to already: stop that first, or name another speaker.` });
    return;
  }
  $("start").disabled = true;
  try {
    $("alert").replaceChildren();
    await source(name);
  } catch (error) {
    if (error instanceof BridgeGone) gone();
    else fail({ reason: error.name, message: sentence(error) });
  } finally {
    $("start").disabled = false;
  }
});

const chosen = () => document.querySelector("input[name=source]:checked").value;

function running(one, finish) {
  const item = { finish };
  live.add(item);
  one.stop = () => {
    live.delete(item);
    one.stop = undefined;
    finish();
    buttons(one);
  };
}

async function listen(name) {
  let push = () => {};
  const microphone = await audio.openMicrophone($("device").value, (block) => push(block));
  const one = entry(name);
  const opened = openStream(name, microphone.rate);
  push = opened.push;
  running(one, () => { microphone.stop(); opened.stream.finish(); });
  buttons(one);
  $("settings").textContent = settings(microphone);
  await listDevices();
}

function settings({ label, rate, settings: got }) {
  const names = { echoCancellation: "echo cancellation", noiseSuppression: "noise suppression", autoGainControl: "gain control" };
  const on = Object.keys(names).filter((key) => got[key]).map((key) => names[key]);
  const unknown = Object.keys(names).filter((key) => got[key] === undefined).map((key) => names[key]);
  const parts = [`${label || "Microphone"}: ${rate} Hz, ${got.channelCount ?? 1} channel${got.channelCount > 1 ? "s" : ""}`];
  if (on.length) parts.push(`the browser keeps ${on.join(", ")} on, which changes how voices sound: turn it off in the system's settings`);
  else if (unknown.length) parts.push(`the browser does not say whether ${unknown.join(", ")} is off`);
  else parts.push("echo cancellation, noise suppression and gain control are off");
  return `${parts.join("; ")}.`;
}

async function playFile(name) {
  const [file] = $("file").files;
  if (!file) throw new Error("Choose a recording, or drop one on the page.");
  const { samples, rate } = await audio.decode(await file.arrayBuffer());
  const one = entry(name);
  const opened = openStream(name, rate);
  const stopping = new AbortController();
  const pace = Number($("pace").value);
  const silence = pace === 1 && $("aloud").checked ? audio.play(samples, rate) : () => {};
  running(one, () => { stopping.abort(); silence(); opened.stream.finish(); });
  buttons(one);
  $("settings").textContent = `${file.name}: ${(samples.length / rate).toFixed(1)} s, as ${rate} Hz, one channel.`;
  feedAll(samples, rate, pace, opened, stopping.signal).then(() => one.stop?.());
}

async function feedAll(samples, rate, pace, { stream, push }, signal) {
  while (!stream.started && !stream.over && !signal.aborted) await new Promise((done) => setTimeout(done, 10));
  await audio.feed(samples, rate, pace, push, () => stream.ready, signal);
}

async function playDemo() {
  const [sound, turns] = await Promise.all([
    load("demo/dialogue.flac").then((answer) => answer.arrayBuffer()).then(audio.decode),
    load("demo/dialogue.json").then((answer) => answer.json()),
  ]);
  const { samples, rate } = sound;
  const pace = Number($("pace").value) || 4;
  const stopping = new AbortController();
  const isAloud = pace === 1 && $("aloud").checked;
  const silence = isAloud ? audio.play(samples, rate) : () => {};
  const finish = () => { stopping.abort(); silence(); };
  const item = { finish };
  live.add(item);
  $("settings").textContent = `Demo dialogue: ${turns.length} turns of ${[...new Set(turns.map((turn) => turn.participant_id))].join(" and ")}, generated voices, ${(samples.length / rate).toFixed(0)} s.`;
  if (isAloud && audio.isMuted()) $("settings").textContent += " Click anywhere to hear it.";
  const began = performance.now();
  for (const turn of turns) entry(turn.participant_id);
  const run = async () => {
    await Promise.all(turns.map(async (turn) => {
      const wait = (turn.start_s * 1000) / pace - (performance.now() - began);
      await new Promise((done) => setTimeout(done, wait));
      if (stopping.signal.aborted) return;
      const one = entry(turn.participant_id);
      const opened = openStream(turn.participant_id, rate, { audio_start_offset: `${turn.start_s}s` });
      one.stop = () => { finish(); opened.stream.finish(); };
      const part = samples.subarray(Math.round(turn.start_s * rate), Math.round(turn.end_s * rate));
      await feedAll(part, rate, pace, opened, stopping.signal);
      one.stop = undefined;
      opened.stream.finish();
    }));
    live.delete(item);
    for (const one of participants.values()) buttons(one);
  };
  run();
}

const load = (path) => fetch(path).catch(() => { throw new BridgeGone(); });

let unwatch;
const watched = new Set(); // names of those whose card shows what a watch told

async function follow() {
  const id = $("watched").value.trim();
  if (!id) throw new Error("Enter the id of the conversation to watch: what its client calls conversation_id.");
  unwatch?.();
  unwatch = watch(id, $("token").value, {
    connected: () => {
      back();
      for (const one of [...watched].map(entry)) if (!one.stream) one.participant = new Participant(one.participant.name);
      watched.clear();
    },
    message: ({ participant_id: name, event, past, watch_started: began, watch_gap: gap, watch_ended: ended }, again) => {
      dirty = true;
      if (began) {
        $("conversation").textContent = id;
        $("settings").textContent = began.conversation ? `Watching ${id}.` : `Nobody has spoken in ${id} yet: waiting.`;
        const { model, synthetic_model: synthetic } = began.conversation ?? {};
        if (model) { $("model").textContent = model; honest({ model, synthetic }); }
      } else if (gap) log("", `${gap.message} (${gap.reason})`);
      else if (ended) log("", `The conversation was ${ended.reason.toLowerCase()}.`);
      else if (name && event) {
        const one = entry(name);
        watched.add(name);
        one.participant.follow(event);
        if (past && again) one.participant.apply(event); // the events below have told it
        else take(one, undefined, event);
        buttons(one);
      }
    },
    error: fail,
    gone,
    closed: () => { $("settings").textContent = `No longer watching ${id}.`; },
  });
}

function setSource() {
  for (const element of document.querySelectorAll(".of-microphone, .of-file, .of-demo, .of-watch")) {
    element.hidden = !element.classList.contains(`of-${chosen()}`);
  }
}

for (const radio of document.querySelectorAll("input[name=source]")) radio.addEventListener("change", setSource);

async function listDevices() {
  const found = await audio.microphones();
  const before = $("device").value;
  $("device").replaceChildren(new Option("Default microphone", ""), ...found
    .filter(({ deviceId }) => deviceId !== "default")
    .map(({ deviceId, label }, i) => new Option(label || `Microphone ${i + 1}`, deviceId)));
  $("device").value = before;
}

document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  $("file").files = event.dataTransfer.files;
  document.querySelector("input[value=file]").checked = true;
  setSource();
  $("form").requestSubmit();
});

// ---- given personality

for (const trait of TRAITS) {
  const label = document.createElement("label");
  const range = Object.assign(document.createElement("input"), { type: "range", min: 1, max: 7, step: 0.1, value: 4, id: `give-${trait}` });
  const output = document.createElement("output");
  output.textContent = "4.0";
  range.addEventListener("input", () => {
    output.textContent = Number(range.value).toFixed(1);
    $("give").checked = true;
  });
  label.append(`${trait} `, range, output);
  $("sliders").append(label);
}

const given = () => Object.fromEntries(TRAITS.map((trait) => [trait, Number($(`give-${trait}`).value)]));

// ---- what the server says

function honest({ synthetic, untrained, model }) {
  const described = info?.models?.find(({ name }) => name === model);
  const parts = [];
  if (untrained || described?.untrained) parts.push("Untrained model: its estimates mean nothing.");
  else if (synthetic || described?.synthetic) parts.push("Synthetic model: it learnt from generated speech and tells you nothing about real people.");
  if (described?.notice && !parts.length) parts.push(described.notice);
  $("honesty").textContent = parts.join(" ");
  $("honesty").hidden = !parts.length;
}

async function ask() {
  try {
    const token = $("token").value;
    const answer = await fetch("v1/service_info", { headers: token ? { Authorization: `Bearer ${token}` } : {} });
    const content = await answer.json();
    back();
    if (content.error) {
      $("server").textContent = content.error.code === "UNAUTHENTICATED" ? "requires a token" : "away";
      $("server").className = "bad";
      $("server").title = content.error.message;
    } else {
      info = content;
      $("server").textContent = `connected, kibun ${info.server_version}`;
      $("server").className = "good";
      $("server").title = "";
      const model = info.models?.find((one) => one.is_default);
      if (model && $("model").textContent === "–") {
        $("model").textContent = model.name;
        honest({ model: model.name });
      }
    }
  } catch {
    $("server").textContent = "bridge away";
    $("server").className = "bad";
    $("server").title = GONE;
    if (!bridgeAway) gone();
  }
}

// ---- errors and events

const FIXES = {
  UNAUTHENTICATED: "The server requires a token, and does not accept this one: enter another under More, then start again.",
  UNAVAILABLE: "The server cannot be reached. Start one with `kibun serve --model demo-tiny`, then start again.",
  TOO_MANY_SOCKETS: "All of the bridge’s sockets are in use: close other pages, or start it with more --max-sockets.",
};

const GONE = "The bridge is gone. Start it again with the same command and port, such as `kibun console`: this page then goes on by itself. What is said meanwhile is lost.";

function gone() {
  if (!bridgeAway) log("", GONE);
  bridgeAway = true;
  show(GONE);
}

function back() {
  if (!bridgeAway) return;
  bridgeAway = false;
  $("alert").replaceChildren();
  log("", "The bridge is back.");
}

function fail({ code, reason, message, field }) {
  const text = FIXES[reason] ?? FIXES[code] ?? message;
  show(text, [reason, field].filter(Boolean).join(", "));
  log("", `${text} (${reason})`);
}

function show(text, detail = "") {
  const line = document.createElement("p");
  const small = document.createElement("small");
  small.textContent = ` ${detail}`;
  line.append(text, small);
  $("alert").replaceChildren(line);
}

function sentence(error) {
  const texts = {
    NotAllowedError: "The browser was not allowed to use the microphone: allow it in the address bar, then start again.",
    NotFoundError: "No microphone was found: plug one in, or choose a recording.",
    NotReadableError: "Another program has the microphone: close that, then start again.",
  };
  return texts[error.name] ?? error.message;
}

function log(name, text) {
  const line = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = new Date().toLocaleTimeString([], { hour12: false });
  const who = document.createElement("b");
  who.textContent = name;
  const n = participants.get(name)?.n;
  if (n !== undefined) who.className = `speaker-${n % 4}`;
  line.append(time, " ", who, " ", text);
  $("log").prepend(line);
  while ($("log").childElementCount > LOG_LINES) $("log").lastElementChild.remove();
}

// ---- pictures

function refresh() {
  if (!dirty || document.hidden) return;
  dirty = false;
  const c = draw.colours();
  const all = [...participants.values()];
  draw.drawPlane($("plane"), all.map(({ participant }) => participant), c);
  for (const { participant, card, n } of all) {
    const colour = c.speakers[n % 4];
    draw.drawWave(card.querySelector(".wave"), participant, colour, c);
    draw.drawRadar(card.querySelector(".radar"), participant, colour, c);
    draw.drawCourse(card.querySelector(".course"), participant, c);
    numbers(participant, card);
  }
  const sorted = [...latencies.items].sort((a, b) => a - b);
  if (sorted.length) $("latency").textContent = `${(sorted[Math.floor(sorted.length / 2)] / 1000).toFixed(2)} s`;
}

function numbers(participant, card) {
  const { finals, interims, personality, doubtful, state } = participant;
  const emotion = interims.last ?? finals.last;
  const texts = [emotion?.valence, emotion?.arousal].map((value) => value?.toFixed(2) ?? "–");
  texts.push(...TRAITS.map((trait) => personality?.traits[trait].toFixed(1) ?? "–"));
  texts.push(personality ? `${personality.utterance_count ?? 0} utt., ${seconds(personality.speech_duration).toFixed(0)} s` : "–");
  const row = card.querySelector(".values");
  texts.forEach((text, i) => {
    const cell = row.cells[i] ?? row.insertCell();
    if (cell.textContent !== text) cell.textContent = text;
  });
  const set = (selector, text) => {
    const element = card.querySelector(selector);
    if (element.textContent !== text) element.textContent = text;
  };
  set(".state", state);
  set(".doubt", doubtful.length ? `No better than guessing the mean for everyone: ${doubtful.join(", ")}.` : "");
}

setInterval(refresh, REFRESH_MS);
setInterval(ask, INFO_MS);
addEventListener("resize", () => { dirty = true; });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { dirty = true; });
document.addEventListener("visibilitychange", () => { dirty = true; });

fetch("demo/dialogue.json", { method: "HEAD" }).then(({ ok }) => {
  $("demo-source").hidden = !ok;
  if (ok && location.hash === "#demo") {
    document.querySelector("input[value=demo]").checked = true;
    setSource();
    $("form").requestSubmit();
  }
});
setSource();
listDevices();
ask();

// For tests, and for whoever wants to look at what the page knows.
globalThis.kibun = { participants, entry, take, latencies };
